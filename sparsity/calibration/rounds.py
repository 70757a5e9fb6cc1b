"""Rounds of real runs that move towards the accepted loss: what to run next, and in which order to test.

Replays tell what a setting computes and reads, and nothing of how much is lost where much is: recall saturates. So runs on the
clips of the search are fitted by a small model of loss, and what is run next is what it expects most of. The model is
linear in how much a setting leaves out, with weights that are not negative: it is monotone in every threshold, and a
dozen runs are enough for it. A run is worth what it adds: a setting that saves no more than another that surely holds is
not run, and of what is unsure, that is run from which the most may be gained. All this guides the search alone; what is
promised comes from other clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import Ridge

from sparsity.calibration.bounds import FEW, BoundKind, spared
from sparsity.calibration.search import LADDER, Candidate, shortlist
from sparsity.calibration.thresholds import MARGINS

ROUND = 3
"""Settings that are run together."""

FLOOR = 0.25
"""Points that are added to a loss before its logarithm is taken; gains count as no loss."""

SPREAD = 0.7, 2.0
"""Standard deviation of the logarithm of clips' losses under one setting, and the number of clips that it counts for."""

PULL = 0.01
"""Of the ridge, towards settings that all lose the same."""

UNSURE = 0.3
"""Standard deviation of a mean log loss that was run about what the model expected of it."""

CASES = stats.norm.ppf(np.arange(0.1, 1.0, 0.2))
"""Equally likely cases of it, in standard deviations."""

Runs = NDArray[np.float64]
"""Points by source and setting, ``[n, m]``."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a setting.

    Attributes
    ----------
    level
        Loss that is accepted, in points; infinite where the surest is wanted, whatever it loses.
    clips
        That it will be tested on; sources count as one.
    confidence, kind
        Of the test, see `sparsity.calibration.bounds.bound`.
    """

    level: float
    clips: int
    confidence: float
    kind: BoundKind

    def chance(self, centre: NDArray[np.float64], spread: float) -> NDArray[np.float64]:
        """How likely settings hold, whose clips' log losses lie about `centre` ``[m]`` with a standard deviation.

        Where the surest is wanted, it is how likely a clip loses less than a point.
        """
        level = 1.0 if math.isinf(self.level) else self.level
        within = stats.norm.cdf((math.log(level + FLOOR) - centre) / spread)
        if math.isinf(self.level):
            return np.asarray(within)
        allowed = spared(self.clips, self.confidence)
        most = stats.binom.cdf(allowed, self.clips, 1 - within)
        if self.kind == "share" and self.clips < FEW:
            return np.asarray(most)
        # a mean over clips: that of the log losses, widened by what the bound adds to it
        reach = stats.norm.ppf(self.confidence)
        height = (math.log(level + FLOOR) - centre - spread**2 / 2) * math.sqrt(self.clips) / spread
        mean = stats.norm.cdf(height - reach)
        return np.asarray(np.minimum(most, mean) if self.kind == "share" else mean)


def left_out(candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    """How much settings leave out, ``[m, features]``, each in [0, 1] and larger where more is risked.

    What no order can be given to, base, unit and whether windows are left out at all, has a column for each case, so that its
    weight may be of either sign. Memory has columns for each base: where features are reused, fewer of its tokens were seen to
    lose less, and to learn from the other base that they lose more kept the search from the cheapest settings.
    """
    rows = []
    for c in candidates:
        profile, guard = c.profile, c.profile.guard
        routing = (
            None if profile.routing is None or profile.routing.unit == "frame" else profile.routing
        )
        reuses = bool(profile.reuse)
        keep = np.mean(profile.retrieval.keep) if profile.retrieval is not None else 1.0
        kinds = [
            routing is None,
            routing is not None and routing.unit == "window",
            routing is not None and routing.unit == "cell",
            reuses,
            routing is not None and not reuses,
        ]
        thresholds = [0.0] * 5
        if routing is not None:
            thresholds = [
                1 - routing.margin_px / MARGINS[-1],
                float(routing.candidates == "best"),
                1 - 1 / guard.refresh_every if guard.refresh_every else 1.0,
                float(guard.mask_jump is None),
                1 - c.windows,
            ]
        memory = np.outer([not reuses, reuses], [1 - c.keys, -math.log10(keep) / 2]).ravel()
        carried = 0.0 if profile.routing is None else 1 - 1 / profile.routing.every
        quantized = float(profile.quantize is not None)
        rows.append([*map(float, kinds), *thresholds, *memory, carried, quantized])
    return np.array(rows)


@dataclass(frozen=True)
class Beliefs:
    """What runs say of settings: mean log loss of each, ``[m]``, and the spread of a fresh clip's about it."""

    centre: NDArray[np.float64]
    spread: float


def gain(
    chance: NDArray[np.float64],
    saving: NDArray[np.float64],
    known: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """How much settings add to the saving that is expected of those that are known.

    What makes a setting fail makes a less likely one fail, too. So one draw u in [0, 1] decides: all settings with a chance
    above it hold, and the cheapest of these is taken.

    Parameters
    ----------
    chance, saving
        Of each setting, ``[..., m]``.
    known
        The same of those that are known, ``[k]`` each.

    Examples
    --------
    >>> known = np.array([1.0, 0.5]), np.array([0.1, 0.3])
    >>> gain(np.array([1.0, 0.8, 0.5]), np.array([0.1, 0.2, 0.5]), known).round(2).tolist()
    [0.0, 0.03, 0.1]
    """
    order = np.argsort(-known[0], kind="stable")
    ends = [1.0, *known[0][order], 0.0]
    bests = np.maximum.accumulate([0.0, *known[1][order]])
    total = np.zeros(np.broadcast_shapes(chance.shape, saving.shape))
    for (high, low), best in zip(pairwise(ends), bests, strict=True):
        total += (np.minimum(chance, high) - low).clip(0) * (saving - best).clip(0)
    return total


def believed(candidates: Sequence[Candidate], run: Sequence[Candidate], losses: Runs) -> Beliefs:
    """Fit the model of loss to runs, and say what it expects of settings; those that were run keep what was seen.

    Parameters
    ----------
    losses
        Of `run`, ``[n, m]``.
    """
    seen = logged(losses)
    centre = seen.mean(0)
    model = Ridge(alpha=PULL, positive=True).fit(left_out(run), centre)
    of = {c.profile.name: value for c, value in zip(run, centre, strict=True)}
    expected = model.predict(left_out(candidates))
    found = [of.get(c.profile.name, e) for c, e in zip(candidates, expected, strict=True)]
    return Beliefs(np.array(found), spread_of(seen))


def logged(losses: Runs) -> Runs:
    """Log losses: clips differ by factors, not by points."""
    return np.asarray(np.log(np.maximum(losses, 0.0) + FLOOR))


def spread_of(seen: Runs) -> float:
    """Standard deviation of a fresh clip's log loss about the mean of those seen, ``[n, m]``."""
    usual, weight = SPREAD
    degrees = len(seen) - 1
    within = float(seen.var(0, ddof=1).mean()) if degrees else 0.0
    variance = (weight * usual**2 + degrees * within) / (weight + degrees)
    return math.sqrt(variance * (1 + 1 / len(seen)))


def next_round(
    candidates: Sequence[Candidate],
    run: Sequence[Candidate],
    losses: Runs,
    wanted: Wanted,
    count: int,
) -> list[Candidate]:
    """Choose up to `count` settings that were not run: one after the other that from which the most is gained.

    What the model expects of a setting may be wrong either way, and what it gains is a mean over these cases; one that was
    chosen counts as known, and no two of nearly the same cost are. Where the surest is wanted, the surest are chosen.
    """
    names = {c.profile.name for c in run}
    left = [c for c in candidates if c.profile.name not in names]
    if not left:
        return []
    beliefs, seen = believed(left, run, losses), logged(losses).mean(0)
    cases = np.stack([wanted.chance(beliefs.centre + z * UNSURE, beliefs.spread) for z in CASES])
    saving, saved = (np.array([max(0.0, 1 - c.cost) for c in some]) for some in (left, run))
    known = wanted.chance(seen, beliefs.spread), saved
    picked: list[int] = []
    while len(picked) < count:
        worth = cases if math.isinf(wanted.level) else gain(cases, saving, known)
        order = np.argsort(-worth.mean(0), kind="stable")
        best = next((i for i in order if all(differs(left[i], left[j]) for j in picked)), None)
        if best is None:
            break
        picked.append(int(best))
        known = np.append(known[0], cases[:, best].mean()), np.append(known[1], saving[best])
    return [left[i] for i in picked]


def differs(one: Candidate, other: Candidate) -> bool:
    """Whether two settings differ enough to be run both."""
    return one.profile.name != other.profile.name and abs(one.cost - other.cost) > 0.005


def rounds_of(tried: int) -> int:
    """Return in how many rounds so many settings are tried."""
    return 1 + max(0, -(-(tried - LADDER) // ROUND))


def search_in_rounds(
    candidates: Sequence[Candidate],
    run: Callable[[Sequence[Candidate]], Runs],
    known: tuple[Sequence[Candidate], Runs],
    wanted: Wanted,
    tried: int,
) -> tuple[list[Candidate], Runs]:
    """Run a first ladder, then round by round what the runs so far promise most of.

    Parameters
    ----------
    candidates
        All there are.
    run
        From settings to their losses.
    known
        Settings that were run before, and their losses: for the model of loss alone.
    tried
        Settings that are run.

    Returns
    -------
    tuple
        The settings in the order of running, and their losses.
    """
    settings = shortlist(candidates, min(LADDER, tried), surest=math.isinf(wanted.level))
    losses = run(settings)
    while len(settings) < tried:
        every = [*known[0], *settings], np.concatenate([known[1], losses], 1)
        more = next_round(candidates, *every, wanted, min(ROUND, tried - len(settings)))
        if not more:
            break
        losses = np.concatenate([losses, run(more)], 1)
        settings += more
    return settings, losses


def order_of_testing(losses: Runs, costs: Sequence[float], wanted: Wanted, count: int) -> list[int]:
    """Order settings from the surest to the cheapest, and keep the `count` from which the most saving is expected.

    A setting that costs more than a surer one is not tested. Testing ends at the first that fails, and what makes a setting
    fail makes a cheaper one fail, too: so each adds what it saves beyond the one before it, times how likely it holds.

    Parameters
    ----------
    losses
        Points per video and setting, ``[n, m]``, of clips that the promise is not made on.
    """
    seen = logged(losses)
    chance = wanted.chance(seen.mean(0), spread_of(seen))
    surest = sorted(range(len(costs)), key=lambda i: (-chance[i], seen[:, i].mean(), costs[i]))
    if math.isinf(wanted.level):
        return surest[:count]
    order: list[int] = []
    for i in surest:
        if not order or costs[i] < costs[order[-1]]:
            order.append(i)

    def expected(chain: Sequence[int]) -> float:
        saved = -np.diff([1.0, *(costs[i] for i in chain)])
        return float(saved @ chance[list(chain)])

    while len(order) > count:
        order = max((order[:i] + order[i + 1 :] for i in range(len(order))), key=expected)
    return order
