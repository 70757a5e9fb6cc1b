"""How much quality a setting may cost: upper bounds on the mean loss per video.

A loss is counted in points of J&F (0 to 100), one number a video: the frames of a video say much the same,
so the video is the unit. What is certain at every sample size (Hoeffding-Bentkus, and betting as of Waudby-Smith
and Ramdas) assumes only that a video loses at most 100 points and is wide on few videos. Where that leaves no
room under the wanted loss, a Student / BCa bound stands in, and is called approximate: it cannot know of a kind of
video that none of the given ones is. Conformal risk control is offered too: it bounds the loss of the next video
on average over calibrations, which takes fewer videos than a bound that fails with a small probability.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import numpy as np
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value, get_r_hat_plus
from numpy.typing import NDArray
from scipy import optimize, stats

from probes.errors import InputError

POINTS = 100.0
"""The most that a video can lose."""

HEADROOM = 2.5
"""Multiple of `smallest_certifiable` from which on an accepted loss leaves a certain bound room for losses; nearer to
the least it holds next to none. With the number of videos it decides on the bound, so that none is picked after the
losses are seen."""

BETTING_FROM = 100
"""Number of videos from which, with that headroom, betting is the tighter of the two certain bounds."""

WITHOUT_LEVEL = 2.5
"""Points that stand for the accepted loss in `kind_for` where none is named."""

ORDER = 0
"""Seed of the order in which betting takes the videos."""

CERTAIN = {False: "Hoeffding-Bentkus", True: "Waudby-Smith and Ramdas"}
APPROXIMATE = "Student t and BCa, the larger (approximate)"
EXPECTATION = "conformal risk control (in expectation)"

BoundKind = Literal["certain", "approximate", "expectation"]

RESAMPLES = 2000
"""Of the BCa bootstrap."""

_GRID = np.geomspace(1e-4, 1.0, 200)
"""Candidate bounds of the betting method, shares of `POINTS`."""


@dataclass(frozen=True)
class Bound:
    """An upper bound on the mean loss per video.

    Attributes
    ----------
    mean
        Mean observed loss, in points.
    upper
        The bound, in points.
    confidence
        With which the bound holds, in (0, 1).
    method
        How it was found; says so where it is approximate or holds in expectation.
    videos
        Number of videos behind it.
    """

    mean: float
    upper: float
    confidence: float
    method: str
    videos: int


def smallest_certifiable(videos: int, confidence: float) -> float:
    """Return the smallest mean loss, in points, that so many videos can certify: the bound at zero observed loss.

    Examples
    --------
    >>> round(smallest_certifiable(45, 0.9), 1), round(smallest_certifiable(230, 0.9), 1)
    (5.0, 1.0)
    """
    return POINTS * (1 - (1 - confidence) ** (1 / videos))


def smallest_expected(videos: int) -> float:
    """Return the smallest mean loss, in points, that conformal risk control can state on so many videos.

    Examples
    --------
    >>> smallest_expected(99)
    1.0
    """
    return POINTS / (videos + 1)


def videos_needed(max_drop: float, confidence: float) -> int:
    """Return how many videos without any loss certify `max_drop` points.

    Examples
    --------
    >>> videos_needed(1.0, 0.9)
    230
    """
    if max_drop >= POINTS:
        return 1
    return math.ceil(math.log(1 - confidence) / math.log(1 - max_drop / POINTS))


def certain_bound(
    losses: NDArray[np.floating], confidence: float, max_drop: float = math.inf
) -> Bound:
    """Bound the mean loss with nothing assumed but that a video loses at most 100 points.

    Parameters
    ----------
    losses
        Points per video, ``[n]``. A gain counts as no loss, which can only raise the bound.
    confidence
        In (0, 1).
    max_drop
        The loss that the bound is held against, in points; with the number of videos it decides on the method.

    References
    ----------
    Bates et al. 2021 (risk-controlling prediction sets), Angelopoulos et al. 2021 (learn then test),
    Waudby-Smith and Ramdas 2024 (betting).
    """
    x = _checked(losses)
    risks = np.clip(x / POINTS, 0, 1)
    least = smallest_certifiable(len(x), confidence)
    betting = len(x) >= BETTING_FROM and max_drop >= HEADROOM * least
    upper = (_betting if betting else _hoeffding_bentkus)(risks, 1 - confidence)
    return Bound(float(x.mean()), POINTS * upper, confidence, CERTAIN[betting], len(x))


def approximate_bound(losses: NDArray[np.floating], confidence: float, seed: int = 0) -> Bound:
    """Bound the mean loss as if the given videos showed every kind there is: Student's t and BCa, the larger.

    Parameters
    ----------
    losses
        Points per video, ``[n]``, at least two videos.
    seed
        Of the bootstrap.
    """
    x = _checked(losses)
    upper = float(
        x.mean() + stats.t.ppf(confidence, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equal losses: the bootstrap is degenerate, t stands alone
        resampled = stats.bootstrap(
            (x,), np.mean, confidence_level=confidence, alternative="less", n_resamples=RESAMPLES,
            method="BCa", rng=np.random.default_rng(seed),
        )  # fmt: skip
    upper = float(np.nanmax([upper, resampled.confidence_interval.high]))
    return Bound(float(x.mean()), upper, confidence, APPROXIMATE, len(x))


def expected_bound(losses: NDArray[np.floating]) -> Bound:
    """Bound the loss of the next video in expectation over calibration sets (conformal risk control).

    Its `confidence` is 0.5 by convention: it holds on average, not with a chosen probability.
    """
    x = _checked(losses)
    one = np.clip(x / POINTS, 0, 1)[:, None]
    _, upper = get_r_hat_plus(one, np.array([1.0]), "crc", None, None, None)
    return Bound(float(x.mean()), POINTS * float(upper[0]), 0.5, EXPECTATION, len(x))


def kind_for(videos: int, confidence: float, max_drop: float) -> BoundKind:
    """Certain where videos without any loss would certify two fifths of `max_drop`, else approximate.

    Never by the losses. Without an accepted loss (`max_drop` infinite) it is as for `WITHOUT_LEVEL`.

    Examples
    --------
    >>> kind_for(747, 0.95, 1.0), kind_for(748, 0.95, 1.0)
    ('approximate', 'certain')
    """
    level = WITHOUT_LEVEL if math.isinf(max_drop) else max_drop
    enough = level >= HEADROOM * smallest_certifiable(videos, confidence)
    return "certain" if enough else "approximate"


def bound(
    losses: NDArray[np.floating], confidence: float, max_drop: float, kind: BoundKind | None = None
) -> Bound:
    """Bound the mean loss in the way asked for, or as `kind_for` says."""
    kind = kind or kind_for(len(losses), confidence, max_drop)
    if kind == "expectation":
        return expected_bound(losses)
    if kind == "certain":
        return certain_bound(losses, confidence, max_drop)
    return approximate_bound(losses, confidence)


def _checked(losses: NDArray[np.floating]) -> NDArray[np.float64]:
    x = np.asarray(losses, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise InputError(
            f"{x.size} video given; no bound on the mean loss is possible from fewer than 2; "
            "record more videos (frames of one video do not count apart)"
        )
    if not np.isfinite(x).all():
        raise InputError(
            f"losses of {int((~np.isfinite(x)).sum())} of {len(x)} videos are not numbers; expected points of "
            "J&F; look at those videos' masks"
        )
    return x


def _hoeffding_bentkus(risks: NDArray[np.float64], delta: float) -> float:
    """The smallest rate that the Hoeffding-Bentkus test rejects, in [0, 1]."""
    mean, n = risks.mean(keepdims=True), len(risks)

    def excess(rate: float) -> float:
        return float(compute_hoeffding_bentkus_p_value(mean, n, np.array([rate]))[0, 0]) - delta

    low, high = float(mean[0]) + 1e-9, 1 - 1e-9
    if low >= high or excess(high) >= 0:
        return 1.0
    return float(optimize.brentq(excess, low, high))


def _betting(risks: NDArray[np.float64], delta: float) -> float:
    """The betting bound, in [0, 1], and never below the mean, which it may fall under by chance.

    Bets on a video are placed after those before it, so their order has to say nothing about the losses: clips come
    sorted by name, those of a kind together, so they are taken in an order that was drawn before. The library
    multiplies the largest wealth of the first half of the videos by that of the second. Each half's exceeds x with
    probability 1 / x at most, so their product exceeds 1 / d with probability d (1 - ln d) at most: the level given
    to it is the d for which that is `delta`.
    """
    risks = np.random.default_rng(ORDER).permutation(risks)
    level = optimize.brentq(lambda d: d * (1 - math.log(d)) - delta, 1e-15, delta)

    def rejected(rate: float) -> bool:
        found = get_r_hat_plus(risks[:, None], np.array([rate]), "rcps", "wsr", level, 0.25)
        return bool(found[1][0] == rate)

    # one rate at a time: together they would take the square of their number for each video
    found = float([*_GRID, 1.0][bisect_left(_GRID, True, key=rejected)])
    return max(found, float(risks.mean()))
