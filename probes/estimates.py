"""How sure a mean over clips is: an interval that keeps its word with few clips. Needs neither torch nor sam2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from probes.errors import InputError

FEWEST = 3
"""Clips that an interval takes at least: of fewer nothing tells how their values spread and lean."""

OUTSIDE = 0.2
"""Share of what may lie outside that `interval` takes Student's t for: 1 % for 95 %."""

LEAN = 0.5
"""By how much of their skewness `interval` reaches further on the side that values lean to."""


@dataclass(frozen=True)
class Estimate:
    """A mean over clips with its 95 % interval (`interval`); both ends are NaN where the clips are too few for one."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        said = f"95 % interval {self.low:.3g} to {self.high:.3g}"
        if math.isnan(self.low):
            said = "too few for an interval"
        return f"{self.mean:.3g} ({said}, n = {self.n} clips)"


def over_clips(
    values: Mapping[str, float] | Sequence[float],
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Mean of one number a clip, and its interval; NaN clips don't count.

    Parameters
    ----------
    values
        By clip, or in any order.
    within
        Between which numbers all such values lie, and so their mean: the interval ends there.

    Raises
    ------
    InputError
        No clip has a value.

    >>> str(over_clips([1.0, 1.0, 1.0])), str(over_clips([1.0, 2.0]))
    ('1 (95 % interval 1 to 1, n = 3 clips)', '1.5 (too few for an interval, n = 2 clips)')
    """
    given = list(values.values()) if isinstance(values, Mapping) else list(values)
    found = np.array([value for value in given if not np.isnan(value)])
    if not len(found):
        raise InputError(
            "no clip has a value; expected at least one; record longer clips or another site"
        )
    ends = interval(found) if len(found) >= FEWEST else (math.nan, math.nan)
    low, high = np.clip(ends, *within).tolist()
    return Estimate(float(found.mean()), low, high, len(found))


def ratio_over_clips(values: Mapping[str, float] | Sequence[float]) -> Estimate:
    """Geometric mean of one positive ratio a clip, and its interval: `over_clips` of the logarithms.

    Of ratios, half and double are as far from 1, and no interval holds what is not positive.

    >>> str(ratio_over_clips([0.5, 1.0, 2.0])).split(" (")[0]
    '1'
    """
    given = list(values.values()) if isinstance(values, Mapping) else list(values)
    found = over_clips([math.log(value) for value in given])
    return Estimate(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.n)


def interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of the mean of all clips there are, from few of them.

    Student's t for `OUTSIDE` of what may lie outside, and its arm on the side that values lean to longer by `LEAN`
    times their skewness: where most clips lose little and some much, the mean of few of them misses Student's own
    interval three times as often as it says. The two numbers were set by simulation: of 3 to 30 clips a 95 % interval
    holds the mean in 99 of 100 draws of normal values, in 97 to 99 of exponential and in 94 to 99 of log-normal ones
    (sigma 1). One of percentiles of a bootstrap holds it in 61 to 93.

    Parameters
    ----------
    values
        One a clip, ``[n]``, finite; of equal values each end is that value.
    confidence
        That the mean of all clips there are lies inside, in (0, 1).

    Raises
    ------
    InputError
        There are fewer than `FEWEST`.

    >>> interval([50.0, 50.0, 50.0])
    (50.0, 50.0)
    >>> low, high = interval([1.0, 2.0, 6.0])
    >>> low < 1 and high - 3 > 3 - low
    True
    """
    x = np.asarray(values, float)
    n = len(x)
    if n < FEWEST:
        raise InputError(
            f"too few clips for an interval: {n} given; expected {FEWEST} at least; add clips"
        )
    mean, spread = float(x.mean()), float(x.std(ddof=1))
    if np.ptp(x) == 0:
        return float(x[0]), float(x[0])
    arm = float(stdtrit(n - 1, 1 - OUTSIDE * (1 - confidence) / 2)) * spread / math.sqrt(n)
    lean = LEAN * float((((x - mean) / spread) ** 3).sum()) * n / ((n - 1) * (n - 2))
    return mean - arm * (1 + max(-lean, 0)), mean + arm * (1 + max(lean, 0))
