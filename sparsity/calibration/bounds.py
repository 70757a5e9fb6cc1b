"""How much quality a setting may cost: what can be stated of it from a few videos, and the choice under that.

A loss is counted in points (0 to 100), one number a video: the frames of a video say much the same, so the video
is the unit. A bound on the mean that is certain at every sample size (Hoeffding-Bentkus, and betting as of Waudby-Smith
and Ramdas) assumes only that a video loses at most 100 points and is wide on few videos. Where that leaves no
room under the wanted loss, the share of videos that lose more than it is bounded instead, which is exact at any number of
videos and assumes nothing of the losses. The mean's bound is Student's / BCa's then, and is called approximate: it
cannot know of a kind of video that none of the given ones is.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from mapie.risk_control import FWERFixedSequenceTesting
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value, get_r_hat_plus
from numpy.typing import NDArray
from scipy import optimize, stats

from probes.errors import InputError
from sparsity.profile import EXACT

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

BoundKind = Literal["certain", "share", "approximate"]
"""Of the mean; of the share of videos that lose more than is accepted; of the mean as if the videos showed every kind."""

FEW = 10
"""Number of videos from which the approximate bound on the mean is tested beside the exact one on the share."""

MOST = 0.25
"""Share of videos that may lose more than is accepted, where the videos are enough to tell. With it the mean is within
the accepted loss, too, in 95 of 100 simulated choices of `benchmarks/promise.py`; with a half it is in 80."""

STARTS = 1
"""Of fixed-sequence testing, which share the level: more of them find less on the recorded losses, see there."""

COVERAGE = {5: 0.664, 6: 0.728, 8: 0.740, 10: 0.776, 19: 0.796, 38: 0.836}
"""By number of videos: how often the approximate bound covers at 95 %, on the worst of the populations of
`benchmarks/promise.json`."""

RESAMPLES = 2000
"""Of the BCa bootstrap."""

_GRID = np.geomspace(1e-4, 1.0, 200)
"""Candidate bounds of the betting method, shares of `POINTS`."""


@dataclass(frozen=True)
class Tail:
    """An upper bound on the share of videos that lose much: exact, whatever the losses are.

    Attributes
    ----------
    over
        What is much, in points.
    lost
        Number of the given videos that lost more.
    share
        The bound, in [0, 1].
    """

    over: float
    lost: int
    share: float


@dataclass(frozen=True)
class Bound:
    """An upper bound on the mean loss per video.

    Attributes
    ----------
    mean
        Mean observed loss, in points.
    upper
        The bound, in points; the largest loss there is where the share settles it, and the mean has none.
    confidence
        With which the bound holds, in (0, 1).
    method
        How it was found; says so where it is approximate.
    videos
        Number of videos behind it.
    tail
        What is stated beside it, or where the videos are few instead of it; None where the mean's bound is certain.
    """

    mean: float
    upper: float
    confidence: float
    method: str
    videos: int
    tail: Tail | None = None


@cache
def largest_share(lost: int, videos: int, confidence: float) -> float:
    """Return the upper Clopper-Pearson bound on a share, of which `lost` of `videos` were seen.

    Examples
    --------
    >>> [round(largest_share(0, n, 0.95), 2) for n in (5, 19, 59)]
    [0.45, 0.15, 0.05]
    """
    return 1.0 if lost >= videos else float(stats.beta.ppf(confidence, lost + 1, videos - lost))


@cache
def spared(videos: int, confidence: float) -> int:
    """Return how many of the videos may lose more than is accepted, for the share to be within `MOST`; 0 where none may.

    Examples
    --------
    >>> [spared(n, 0.95) for n in (5, 19, 38)]
    [0, 1, 4]
    """
    allowed = [k for k in range(videos) if largest_share(k, videos, confidence) <= MOST]
    return max(allowed, default=0)


def tail_bound(losses: NDArray[np.floating], confidence: float, over: float = math.inf) -> Tail:
    """Bound the share of videos that lose more than `over` points, or than the worst of those given.

    The binomial distribution is exact for a fixed number of points, and for the worst video of n.
    """
    x = _checked(losses)
    if math.isinf(over):
        return Tail(float(x.max()), 0, largest_share(0, len(x), confidence))
    lost = int((x > over).sum())
    return Tail(over, lost, largest_share(lost, len(x), confidence))


def coverage_at(videos: int) -> float:
    """Return how often the approximate bound covered at so many videos, or at the next fewer that were simulated."""
    return COVERAGE[max((n for n in COVERAGE if n <= videos), default=min(COVERAGE))]


def smallest_certifiable(videos: int, confidence: float) -> float:
    """Return the smallest mean loss, in points, that so many videos can certify: the bound at zero observed loss.

    Examples
    --------
    >>> round(smallest_certifiable(45, 0.9), 1), round(smallest_certifiable(230, 0.9), 1)
    (5.0, 1.0)
    """
    return POINTS * (1 - (1 - confidence) ** (1 / videos))


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


def approximate_bound(losses: NDArray[np.floating], confidence: float) -> Bound:
    """Bound the mean loss as if the given videos showed every kind there is: Student's t and BCa, the larger.

    Parameters
    ----------
    losses
        Points per video, ``[n]``, at least two videos.
    """
    x = _checked(losses)
    upper = float(
        x.mean() + stats.t.ppf(confidence, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    )
    with warnings.catch_warnings():
        # with hardly any spread the bootstrap is degenerate, and t stands alone
        warnings.simplefilter("ignore")
        high = stats.bootstrap(
            (x,), np.mean, n_resamples=RESAMPLES, confidence_level=confidence, method="BCa",
            alternative="less", random_state=np.random.default_rng(0),
        ).confidence_interval.high  # fmt: skip
    upper = float(np.nanmax([upper, high]))
    return Bound(float(x.mean()), upper, confidence, APPROXIMATE, len(x))


def kind_for(videos: int, confidence: float, max_drop: float) -> BoundKind:
    """Certain where videos without any loss would certify two fifths of `max_drop`, else of the share.

    Never by the losses. Without an accepted loss (`max_drop` infinite) it is as for `WITHOUT_LEVEL`.

    Examples
    --------
    >>> kind_for(747, 0.95, 1.0), kind_for(748, 0.95, 1.0)
    ('share', 'certain')
    """
    level = WITHOUT_LEVEL if math.isinf(max_drop) else max_drop
    enough = level >= HEADROOM * smallest_certifiable(videos, confidence)
    return "certain" if enough else "share"


def bound(
    losses: NDArray[np.floating], confidence: float, max_drop: float, kind: BoundKind | None = None
) -> Bound:
    """Bound the loss in the way asked for, or as `kind_for` says."""
    kind = kind or kind_for(len(losses), confidence, max_drop)
    if kind == "certain":
        return certain_bound(losses, confidence, max_drop)
    if kind == "approximate":
        return approximate_bound(losses, confidence)
    tail, x = tail_bound(losses, confidence, max_drop), _checked(losses)
    if len(x) < FEW or tail.lost > spared(len(x), confidence):  # nothing is asked of the mean
        return Bound(float(x.mean()), float(x.max()), confidence, EXACT, len(x), tail)
    return replace(approximate_bound(x, confidence), tail=tail)


def holds(found: Bound, max_drop: float) -> bool:
    """Whether a bound is within the accepted loss.

    A share is within it where no more videos lose more than `spared` allows, and from `FEW` videos on the mean must be, too.
    """
    if found.tail is None:
        return found.upper <= max_drop
    mean = found.videos < FEW or found.upper <= max_drop
    return mean and found.tail.lost <= spared(found.videos, found.confidence)


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
        """What testing establishes: the loss is within `level`. Without a level, the one setting's bound.

        The bounds of single settings are no promise once they have selected: fixed-sequence testing errs with
        probability 1 - confidence at most about the level and the share that was allowed, and says nothing about smaller
        numbers. Of few videos nothing is established of the mean.
        """
        if self.index is None:
            raise ValueError("no setting was chosen")
        own = self.bounds[self.index]
        if math.isinf(self.level):
            return own
        if own.tail is None:
            return replace(own, upper=self.level)
        share = largest_share(spared(own.videos, own.confidence), own.videos, own.confidence)
        return replace(own, upper=self.level, tail=replace(own.tail, share=share))


def choose(
    losses: NDArray[np.floating],
    order: Sequence[int],
    costs: Sequence[float],
    confidence: float,
    max_drop: float,
    kind: BoundKind | None = None,
    starts: int = STARTS,
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
        Loss that is accepted, in points.
    kind
        Of bound; as `kind_for` says unless given.
    starts
        Places in the order where testing begins, each at its part of the level.

    References
    ----------
    Bauer 1991 (several starts), Angelopoulos et al. 2021 (learn then test).
    """
    if math.isinf(max_drop):
        (setting,) = order  # it is taken whatever it loses
        alone = bound(np.asarray(losses)[:, setting], confidence, max_drop, kind)
        return Choice(setting, (setting,), {setting: alone}, max_drop)
    starts = min(starts, len(order))
    each = 1 - (1 - confidence) / starts
    kind = kind or kind_for(len(losses), confidence, max_drop)
    bounds: dict[int, Bound] = {}
    passed: list[bool] = []
    for setting in order:
        bounds[setting] = bound(np.asarray(losses)[:, setting], each, max_drop, kind)
        passed.append(holds(bounds[setting], max_drop))
        if starts == 1 and not passed[-1]:
            break
    p_values = 1.0 - np.array(passed, float)  # below and above the level of each
    found = FWERFixedSequenceTesting(starts).run(p_values, 1 - confidence)
    held = [order[int(i)] for i in found]
    cheapest = min(held, key=lambda setting: costs[setting]) if held else None
    return Choice(cheapest, tuple(held), bounds, max_drop)
