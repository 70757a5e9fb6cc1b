"""A number over clips: its mean and the interval that drawing clips again gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.errors import InputError

DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over clips with its bootstrap interval (percentile, 95 %).

    With fewer than three clips the interval says little; it is given all the same, with n beside it.
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return (
            f"{self.mean:.3g} (95 % interval {self.low:.3g} to {self.high:.3g}, n = {self.n} clips)"
        )


def over_clips(values: Mapping[str, float] | Sequence[float], seed: int = 0) -> Estimate:
    """Mean of one number a clip, clips drawn again with replacement; NaN clips don't count.

    >>> str(over_clips([1.0, 1.0, 1.0]))
    '1 (95 % interval 1 to 1, n = 3 clips)'
    """
    given = list(values.values()) if isinstance(values, Mapping) else list(values)
    found = np.array([value for value in given if not np.isnan(value)])
    if not len(found):
        raise InputError(
            "no clip has a value; expected at least one; record longer clips or another site"
        )
    drawn = np.random.default_rng(seed).choice(found, (DRAWS, len(found))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(found.mean()), float(low), float(high), len(found))


def mean(values: NDArray[np.floating]) -> float:
    """Mean of what is a number; NaN where nothing is."""
    numbers = values[~np.isnan(values)]
    return float(numbers.astype(float).mean()) if numbers.size else float("nan")
