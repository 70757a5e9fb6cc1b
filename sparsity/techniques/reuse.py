"""What every window gave when it was last computed, for frames that do not compute all windows anew."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

ReusedPart = Literal["early", "last_block", "stage4"]
"""Parts of the encoder that windows left out on a frame take over from their last computation: patch embedding, stages 1
and 2 and the block that opens stage 3; stage 3's last global block; stage 4."""

REUSED_PARTS: tuple[ReusedPart, ...] = get_args(ReusedPart)

CHANGE = "change"
"""Kept for the cached adapter: what stage 3's blocks changed, ``[tokens, C]`` float32."""


def picture_of(unit: str) -> str:
    """Name of what a rolling refresh keeps: `sparsity.techniques.select.pictures` of what windows or cells were computed
    from."""
    return f"pictures of {unit}s"


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
        By what keeps them: `REUSED_PARTS`, `CHANGE` and `picture_of`; rows of the tensors belong to windows.
    """

    version: Hashable
    frame: int
    parts: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def serve(self, parts: frozenset[str], frame: int, version: Hashable, every: int = 1) -> bool:
        """Whether a frame can be encoded with these in place of what is left out, where every so many frames are encoded."""
        near = abs(frame - self.frame) <= every
        return near and version == self.version and parts <= set(self.parts)

    def carry(self, parts: frozenset[str]) -> None:
        """Drop all other parts: nobody computes them on this frame, and they would look as young as it."""
        self.parts = {part: found for part, found in self.parts.items() if part in parts}

    def share(self, nth: int, pictures: int) -> LastComputed:
        """What belongs to one of several pictures that were computed together, whole."""
        own = {
            part: tuple(rows.chunk(pictures)[nth].clone() for rows in found)
            for part, found in self.parts.items()
        }
        return LastComputed(self.version, self.frame, own)

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
