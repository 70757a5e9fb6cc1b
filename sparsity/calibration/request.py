"""What is asked of a calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from probes.errors import InputError
from sparsity.calibration.bounds import BoundKind
from sparsity.calibration.clips import ClipSource
from sparsity.calibration.settings import BASES
from sparsity.calibration.shortcuts import KINDS
from sparsity.options import ModelChoice

FEWEST_CLIPS = 5
"""Two to search on, and three to bound a mean with."""


@dataclass(frozen=True)
class Request:
    """What is asked of a calibration.

    Attributes
    ----------
    recordings
        Folders that ``probe`` wrote; their clips are not watched again.
    max_drop
        Mean loss per video that is accepted, in points of J&F.
    target_speedup
        Instead: how much cheaper a frame must be, in operations; the surest such setting is taken.
    confidence
        Of the bound.
    bound
        Its kind; None for what `sparsity.calibration.bounds.kind_for` says of so many clips.
    seed
        Of the split of the clips.
    shortcut
        What windows that are not computed go through, one of `sparsity.calibration.shortcuts.KINDS`.
    base
        Built-in profile that says what else becomes of them, one of `sparsity.calibration.settings.BASES`.
    budget
        Seconds that real runs may take; None for as many as `TRIED` settings need.
    """

    source: ClipSource
    clips: tuple[str, ...]
    choice: ModelChoice
    max_drop: float = 1.0
    target_speedup: float | None = None
    confidence: float = 0.95
    seed: int = 0
    budget: float | None = None
    recordings: tuple[Path, ...] = ()
    bound: BoundKind | None = None
    shortcut: str = "cached"
    base: str = "paper"

    @property
    def level(self) -> float:
        """Mean loss that settings are tested against, in points; infinite where a speedup is asked for instead."""
        return self.max_drop if self.target_speedup is None else math.inf

    def check(self) -> None:
        """Refuse what can't be calibrated.

        Raises
        ------
        InputError
            Too few clips, a kind of shortcut or a base that there isn't, or a number out of range.
        """
        if len(self.clips) < FEWEST_CLIPS:
            raise InputError(
                f"{len(self.clips)} clip{'s' * (len(self.clips) != 1)} given; no bound on the mean loss is possible "
                f"from fewer than {FEWEST_CLIPS} (the frames of one video do not count apart); give more videos, or "
                "add made clips with --made 30"
            )
        if self.shortcut not in KINDS:
            raise InputError(
                f"shortcut {self.shortcut!r} given; expected {', '.join(KINDS)}; choose one of them"
            )
        if self.base not in BASES:
            raise InputError(f"base {self.base!r} given; expected {' or '.join(BASES)}; choose one")
        if not 0 < self.max_drop <= 100:
            raise InputError(
                f"max-drop {self.max_drop:g} given; expected points of J&F above 0, such as 1.0; change it"
            )
        if not 0.5 <= self.confidence < 1:
            raise InputError(
                f"confidence {self.confidence:g} given; expected 0.5 to below 1, such as 0.95; change it"
            )
        if self.target_speedup is not None and not 1 < self.target_speedup < math.inf:
            raise InputError(
                f"target-speedup {self.target_speedup:g} given; expected a number above 1; change it"
            )
