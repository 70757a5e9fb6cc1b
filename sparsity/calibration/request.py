"""What is asked of a calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probes.errors import InputError
from sparsity.calibration.adapter import KINDS
from sparsity.calibration.bounds import BoundKind
from sparsity.calibration.cost import BASES
from sparsity.clips.sources import ClipSource
from sparsity.work.model import ModelChoice

FEWEST_CLIPS = 5
"""Two to search on, and three to bound a loss with."""

MAX_DROP = 1.0
"""Points of J&F that are accepted where nothing is said."""

MAX_DRIFT = 5.0
"""Points of agreement that are: what differs from the dense run's mask is not wrong for it, so more than of J&F."""

Risk = Literal["loss", "drift"]
"""What is lost: J&F against true masks, or agreement with the dense run (mean J)."""


@dataclass(frozen=True)
class Request:
    """What is asked of a calibration.

    Attributes
    ----------
    recordings
        Folders that ``probe`` wrote; their clips are not watched again.
    max_drop
        Loss per video that is accepted, in points of J&F against true masks.
    max_drift
        Instead: the loss of agreement with the dense run that is, in points.
    target_speedup
        Instead: how much cheaper a frame must be, in operations; the surest such setting is taken.
    confidence
        Of the bound.
    bound
        Its kind; None for what `sparsity.calibration.bounds.kind_for` says of so many clips.
    seed
        Of the split of the clips.
    adapter
        What tokens that are not computed go through, one of `sparsity.calibration.adapter.KINDS`.
    base
        Built-in profile that says what else becomes of them, one of `sparsity.calibration.cost.BASES`; None tries all of these.
    groups
        File that says which clips are of one source, and count as one; see `sparsity.calibration.sample.sources_of`.
    budget
        Seconds that real runs may take; None for what `sparsity.calibration.search.TRIED` settings need.
    """

    source: ClipSource
    clips: tuple[str, ...]
    choice: ModelChoice
    max_drop: float | None = None
    target_speedup: float | None = None
    confidence: float = 0.95
    seed: int = 0
    budget: float | None = None
    recordings: tuple[Path, ...] = ()
    bound: BoundKind | None = None
    adapter: str = "cached"
    base: str | None = None
    max_drift: float | None = None
    groups: Path | None = None

    @property
    def bases(self) -> tuple[str, ...]:
        """Built-in profiles that settings build on."""
        return BASES if self.base is None else (self.base,)

    @property
    def risk(self) -> Risk:
        """What is lost."""
        return "loss" if self.max_drift is None else "drift"

    @property
    def option(self) -> str:
        """Name of the option that the accepted loss is given by."""
        return "max-drop" if self.risk == "loss" else "max-drift"

    @property
    def accepted(self) -> float:
        """Loss that is accepted, in points."""
        return (
            (MAX_DROP if self.max_drop is None else self.max_drop)
            if self.max_drift is None
            else self.max_drift
        )

    @property
    def level(self) -> float:
        """Loss that settings are tested against, in points; infinite where a speedup is asked for instead."""
        return self.accepted if self.target_speedup is None else math.inf

    def check(self) -> None:
        """Refuse what can't be calibrated.

        Raises
        ------
        InputError
            Too few clips, a kind of adapter or a base that there isn't, or a number out of range.
        """
        if len(self.clips) < FEWEST_CLIPS:
            raise InputError(
                f"{len(self.clips)} clip{'s' * (len(self.clips) != 1)} given; no bound on the mean loss is possible "
                f"from fewer than {FEWEST_CLIPS} (the frames of one video do not count apart); give more videos, or "
                "add made clips with --made 30"
            )
        if self.adapter not in KINDS:
            raise InputError(
                f"adapter {self.adapter!r} given; expected {', '.join(KINDS)}; choose one of them"
            )
        if not set(self.bases) <= set(BASES):
            raise InputError(f"base {self.base!r} given; expected {' or '.join(BASES)}; choose one")
        given = {
            "max-drop": self.max_drop, "max-drift": self.max_drift, "target-speedup": self.target_speedup
        }  # fmt: skip
        named = [f"--{name}" for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise InputError(
                f"{' and '.join(named)} given; each asks for something else; expected one of them; leave out the others"
            )
        if not 0 < self.accepted <= 100:
            raise InputError(
                f"{self.option} {self.accepted:g} given; expected points above 0, such as 1.0; change it"
            )
        if not 0.5 <= self.confidence < 1:
            raise InputError(
                f"confidence {self.confidence:g} given; expected 0.5 to below 1, such as 0.95; change it"
            )
        if self.target_speedup is not None and not 1 < self.target_speedup < math.inf:
            raise InputError(
                f"target-speedup {self.target_speedup:g} given; expected a number above 1; change it"
            )
