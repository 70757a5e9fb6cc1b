"""The choice of a setting under a bound, and what may be promised of it.

What is promised is the level that was tested, never the bound of the setting that was taken: that one was
taken because its bound was small, so its bound no longer covers as often as it says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sparsity.calibration.bounds import Bound, BoundKind, bound


@dataclass(frozen=True)
class Choice:
    """Which of several settings was chosen, and the bounds of those that were tested.

    Attributes
    ----------
    index
        Of the cheapest setting that holds; None when the first one tested already fails.
    held
        Settings that hold, in the order of testing.
    bounds
        By setting, for those that were tested; the last one may be the first that failed.
    level
        Mean loss that was accepted, in points; infinite where one setting alone was tested against none.
    """

    index: int | None
    held: tuple[int, ...]
    bounds: dict[int, Bound]
    level: float

    @property
    def promise(self) -> Bound:
        """What testing establishes: the mean loss is within `level`. Without a level, the one setting's bound.

        The bounds of single settings are no promise once they have selected: fixed-sequence testing errs with
        probability 1 - confidence at most about the level, and says nothing about smaller numbers.
        """
        if self.index is None:
            raise ValueError("no setting was chosen")
        own = self.bounds[self.index]
        return own if math.isinf(self.level) else replace(own, upper=self.level)


def choose(
    losses: NDArray[np.floating],
    order: Sequence[int],
    costs: Sequence[float],
    confidence: float,
    max_drop: float,
    kind: BoundKind | None = None,
) -> Choice:
    """Test settings one after the other until one fails, and take the cheapest of those that hold.

    Testing in a fixed order needs no correction for the number of settings (fixed-sequence testing), as long
    as the order was set without these losses.

    Parameters
    ----------
    losses
        Points per video and setting, ``[n, m]``.
    order
        Settings in the order of testing, the surest first.
    costs
        By setting.
    max_drop
        Mean loss that is accepted, in points.
    kind
        Of bound; as `kind_for` says unless given.
    """
    bounds: dict[int, Bound] = {}
    held: list[int] = []
    for setting in order:
        bounds[setting] = bound(np.asarray(losses)[:, setting], confidence, max_drop, kind)
        if bounds[setting].upper > max_drop:
            break
        held.append(setting)
    cheapest = min(held, key=lambda setting: costs[setting]) if held else None
    return Choice(cheapest, tuple(held), bounds, max_drop)
