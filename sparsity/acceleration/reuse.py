"""What every window gave when it was last computed, for techniques that do not compute all windows anew."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from sparsity.acceleration.derived import Version
from sparsity.profile import REUSING_TECHNIQUES, Profile

CHANGE = "change"
"""Part of the cached shortcut: what stage 3's blocks changed, ``[tokens, C]`` float32."""

PICTURE = {False: "picture", True: "picture of cells"}
"""Part of the rolling refresh: `sparsity.select.window_pictures` of the images windows were computed from, or of their
cells where windows are trimmed."""


def parts_of(profile: Profile) -> frozenset[str]:
    """List what has to be kept from frame to frame, so that routed frames can do without some windows."""
    if profile.windows is None:
        return frozenset()
    parts = profile.calibrated_techniques & set(REUSING_TECHNIQUES)
    if profile.shortcut.kind == "cached":
        parts |= {CHANGE}
    if profile.windows.rolling_refresh is not None:
        parts |= {PICTURE[profile.windows.trimmed]}
    return parts


@dataclass
class LastComputed:
    """Results of parts of the encoder, window by window as old as the window's last computation.

    Attributes
    ----------
    version
        Of the encoder that computed them: its weights and number format.
    frame
        Index of the frame that was encoded last.
    parts
        By the technique that keeps them, `CHANGE` and `PICTURE`; rows of the tensors belong to windows.
    """

    version: Version
    frame: int
    parts: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def serve(self, parts: frozenset[str], frame: int, version: Version) -> bool:
        """Whether a frame can be encoded with these in place of what is left out."""
        near = abs(frame - self.frame) <= 1
        return near and version == self.version and parts <= set(self.parts)

    def carry(self, parts: frozenset[str]) -> None:
        """Drop all other parts: nobody computes them on this frame, and they would look as young as it."""
        self.parts = {part: found for part, found in self.parts.items() if part in parts}

    def complete(self, part: str, places: Tensor | None, *fresh: Tensor) -> tuple[Tensor, ...]:
        """Put fresh rows among those that were computed before.

        Parameters
        ----------
        part
            The technique.
        places
            Rows that are fresh, int64; None when all are.
        fresh
            ``[len(places), ...]`` each.

        Returns
        -------
        tuple
            The whole tensors, which later frames overwrite.
        """
        if places is None:
            self.parts[part] = fresh
        else:
            for kept, rows in zip(self.parts[part], fresh, strict=True):
                kept.index_copy_(0, places, rows)
        return self.parts[part]
