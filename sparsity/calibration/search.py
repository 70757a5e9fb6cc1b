"""Which settings to try for real, and which of them to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from probes.errors import InputError
from sparsity.calibration.cost import SECOND, WHOLE, Cost, Drift, Setting, built_on
from sparsity.calibration.thresholds import (
    MARGINS,
    NEVER,
    WHICH,
    Unit,
    covered,
    keep_for,
    margin_for,
    mask_jump_for,
    mask_only,
    saliency_mass_for,
    scene_cut_for,
    score_below_for,
)
from sparsity.calibration.traces import Trace, replay_retrieval
from sparsity.profile import BUILTIN, Profile
from sparsity.techniques.adapter import Adapter
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import Guard, Routing

COVERED = 0.95
"""Share of a frame's object tokens that is too little to leave out: what less is covered of, thresholds shall catch."""

LEAST_COVERED = 0.9
"""The same for the setting that leaves most out."""

MEMORY_SHARES = (0.02, 0.035, 0.06, 0.1, 0.2, 0.4, 0.7)
"""Mean kept shares of memory tokens in the grid; layers share them by their mass recall."""

WORTH = 0.97
"""Cost above which a setting isn't worth a place among those that are run: it would hold, and save nothing."""

SAVES = 0.8
"""Cost at most of the one setting that is run where one alone can be tried."""

LADDER = 4
"""Settings of the first round, which replays choose."""

TRIED, TESTED = 13, 6
"""Settings that are run for real on the clips of the search, and on those of the promise."""


@dataclass(frozen=True)
class Candidate:
    """A setting, and what replays say of it.

    Attributes
    ----------
    windows, keys
        Shares computed and read; dense frames count as 1, trimmed windows by what is left of them.
    cost
        Of a frame, against the same model with every window and key; in int8, times its share of the time.
    recall
        Share of object tokens inside what is computed, times share of memory attention on keys that are read,
        times share of agreement that is kept between dense frames.
    """

    profile: Profile
    windows: float
    keys: float
    cost: float
    recall: float


def units_of(traces: Sequence[Trace]) -> tuple[Unit, ...]:
    """What can be routed: windows, and cells where a window has more than one."""
    whole = all(trace.grid.window == trace.grid.cells.window for trace in traces)
    return ("window",) if whole else ("window", "cell")


def fewest_cells(traces: Sequence[Trace]) -> Routing:
    """The routing of the grid that leaves most out: what drift is measured and adapters are fitted with."""
    unit = units_of(traces)[-1]
    return mask_only(margin_for(traces, "best", LEAST_COVERED, unit), "best", unit)


def drifting(traces: Sequence[Trace], adapter: Adapter, base: Profile) -> Profile:
    """The setting whose drift is measured: the fewest cells of the grid or every second frame, and few keys.

    No frames are whole by the clock.
    """
    retrieval = next(iter(memories(traces)), None)
    routing = SECOND if base.name == WHOLE else fewest_cells(traces)
    setting = Setting(routing, retrieval=retrieval)
    return built_on(base, "drifting", setting, adapter)


def grid(traces: Sequence[Trace], drift: Drift) -> list[Setting]:
    """List settings: every unit, mask and margin, with thresholds that come from the traces' statistics.

    Routing never goes without the guard's rules for scene cuts and lost objects, which cost nothing on frames where
    they don't act; the one for mask jumps acts on most frames of fast clips, so it is tried on and off.
    """
    routed: list[tuple[Routing, Guard]] = []
    cut = scene_cut_for(traces)
    refreshes = [None] if drift.refresh is None else [None, 2 * drift.refresh, drift.refresh]
    mass = saliency_mass_for(traces, COVERED)
    for unit, which, margin in product(units_of(traces), WHICH, MARGINS):
        alone = mask_only(margin, which, unit)
        score = score_below_for(traces, alone, COVERED)
        jump = mask_jump_for(traces, alone, COVERED)
        widened = alone.model_copy(update={"score_below": score, "saliency_mass": mass})
        guards = [
            Guard(mask_jump=rule, scene_cut=cut, score_below=0.0, refresh_every=refresh)
            for rule, refresh in product((jump, None), refreshes)
        ]
        routings = (alone,) if score == NEVER else (alone, widened)
        routed += [(routing, guard) for routing in routings for guard in guards]
    return [
        Setting(routing, guard, retrieval)
        for (routing, guard), retrieval in product(dict.fromkeys(routed), (None, *memories(traces)))
    ]


def grid_of_whole(traces: Sequence[Trace]) -> list[Setting]:
    """List settings that leave no window out: of memory alone, and with whole frames every second frame."""
    guard = Guard(scene_cut=scene_cut_for(traces), score_below=0.0)
    shares = memories(traces)
    return [
        *(Setting(None, retrieval=retrieval) for retrieval in shares),
        *(Setting(SECOND, guard, retrieval) for retrieval in (None, *shares)),
    ]


def memories(traces: Sequence[Trace]) -> list[Retrieval]:
    """Shares of memory that are tried, the fewest first; none where memory was not recorded."""
    if any(trace.memory is None for trace in traces):
        return []
    return [*dict.fromkeys(Retrieval(keep=keep_for(traces, share)) for share in MEMORY_SHARES)]


def candidates(
    traces: Sequence[Trace],
    settings: Sequence[Setting],
    cost: Cost,
    drift: Drift,
    adapter: Adapter,
    base: Profile,
    int8: float | None = None,
) -> list[Candidate]:
    """Replay settings over traces: their predicted cost and recall, mean over clips.

    Routing and memory are replayed apart and once for each setting that differs. Settings that route get the adapter,
    and what they build on; masks of a dense run don't tell these from others, so they count by `drift` and `cost` alone.

    Parameters
    ----------
    int8
        Share of the cost in int8, see `sparsity.calibration.cost`; None where no setting has it.
    """
    pruned = {
        retrieval: _pruned(traces, retrieval) for retrieval in {s.retrieval for s in settings}
    }
    found = []
    for n, s in enumerate(settings):
        profile, guard = built_on(base, f"{base.name}-{n}", s, adapter), s.guard
        keys, recall = pruned[s.retrieval]
        windows = 1.0
        if profile.routing is not None:
            windows, inside = covered(traces, profile.routing, guard)
            recall *= inside * drift.kept(guard.refresh_every)
        share = int8 if s.quantize is not None and int8 is not None else 1.0
        found.append(Candidate(profile, windows, keys, share * cost(windows, keys), recall))
    return found


def _pruned(traces: Sequence[Trace], retrieval: Retrieval | None) -> tuple[float, float]:
    """Shares of keys read and of attention that finds its keys."""
    if retrieval is None:
        return 1.0, 1.0
    found = [replay_retrieval(trace, retrieval) for trace in traces]
    return float(np.mean([r.keys for r in found])), float(np.mean([r.mass for r in found]))


def frontier(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that none other beats in both cost and recall, the cheapest first."""
    best: list[Candidate] = []
    for one in sorted(found, key=lambda c: (c.cost, -c.recall)):
        if not best or one.recall > best[-1].recall:
            best.append(one)
    return best


@dataclass(frozen=True)
class Base:
    """A built-in profile that settings build on, and what is measured of it before any is tried.

    Attributes
    ----------
    cost, in_time
        Of a frame, in operations and in time on this machine.
    drift
        What is lost since the last dense frame.
    riskiest
        The setting that `drift` was measured with.
    int8
        Share of the cost in int8; None where that is not there, or saves nothing.
    """

    name: str
    cost: Cost
    in_time: Cost
    drift: Drift
    riskiest: Candidate
    int8: float | None = None

    def candidates(self, traces: Sequence[Trace], adapter: Adapter) -> list[Candidate]:
        """Replay the settings that build on it, each with int8 and without."""
        whole, base = self.name == WHOLE, BUILTIN[self.name]
        settings = grid_of_whole(traces) if whole else grid(traces, self.drift)
        if self.int8 is not None:
            settings += [
                replace(setting, quantize="int8")
                for setting in ([Setting(None)] if whole else []) + settings
            ]
        return candidates(traces, settings, self.cost, self.drift, adapter, base, self.int8)

    def share_of(self, profile: Profile) -> float:
        """Share of the cost that a setting's number format leaves."""
        return 1.0 if profile.quantize is None or self.int8 is None else self.int8

    def made(self, profile: Profile) -> bool:
        """Whether a candidate's profile builds on it."""
        return profile.name.rpartition("-")[0] == self.name

    def as_json(self) -> dict[str, Any]:
        """Return what was measured as JSON can hold it."""
        return {
            "cost": asdict(self.cost),
            "cost_in_time": asdict(self.in_time),
            "drift": {"lost": self.drift.lost, "refresh": self.drift.refresh},
            "int8": self.int8,
        }


def fast_enough(found: Sequence[Candidate], speedup: float | None) -> list[Candidate]:
    """Return the candidates that are so much cheaper than a frame with every window and key; all without a wish.

    Raises
    ------
    InputError
        None is that fast.
    """
    fast = [c for c in found if speedup is None or 1 / c.cost >= speedup]
    if not fast:
        raise InputError(
            f"target-speedup {speedup:g} given; on these clips the cheapest setting is "
            f"{1 / min(c.cost for c in found):.2f}x; ask for less"
        )
    return fast


def shortlist(found: Sequence[Candidate], count: int, surest: bool = False) -> list[Candidate]:
    """Take `count` candidates to be run first: spread along their frontiers, or the surest of them.

    Where there is more than one to take, each base and unit has a frontier of its own: what is lost by what is reused, and
    where windows are trimmed, a dense run's masks can't tell. Of int8 and of features that are carried over they tell
    nothing, so those are left to later rounds.
    """
    kinds: dict[tuple[str, bool], list[Candidate]] = {}
    for one in [c for c in found if told_by_replay(c.profile)] or found:
        unit = one.profile.routing.unit if one.profile.routing else "window"
        kind = (unit, bool(one.profile.reuse)) if count > 1 else ("window", False)
        kinds.setdefault(kind, []).append(one)
    picked: list[Candidate] = []
    for n, of_kind in enumerate(kinds.values()):
        share, best = len(range(n, count, len(kinds))), frontier(of_kind)
        if share:
            picked += best[-share:] if surest else spread_out(best, share)
    return picked


def told_by_replay(profile: Profile) -> bool:
    """Whether replays say something of what a setting loses."""
    return profile.quantize is None and (profile.routing is None or profile.routing.every == 1)


def spread_out(found: Sequence[Candidate], count: int) -> list[Candidate]:
    """Take `count` candidates of a frontier at equal steps of cost, both ends included; one alone is the surest that saves.

    Those that cost more than `WORTH` are left out, unless all do; where there is one to take, more than `SAVES`.
    """
    found = [c for c in found if c.cost <= WORTH] or found
    if count == 1:
        return [([c for c in found if c.cost <= SAVES] or found[:1])[-1]]
    if len(found) <= count:
        return list(found)
    costs = np.array([c.cost for c in found])
    wanted = np.linspace(costs[0], costs[-1], count)
    picked = dict.fromkeys(int(np.abs(costs - cost).argmin()) for cost in wanted)
    return [found[i] for i in picked]


def split_clips(names: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Split clips at random into those of the search and those of the promise, at least two each.

    Examples
    --------
    >>> split_clips(["a", "b", "c", "d"], 0.4, 0)
    (['a', 'c'], ['b', 'd'])
    """
    count = min(max(2, round(share * len(names))), max(2, len(names) - 2))
    drawn = set(np.random.default_rng(seed).permutation(len(names))[:count].tolist())
    return (
        [name for i, name in enumerate(names) if i in drawn],
        [name for i, name in enumerate(names) if i not in drawn],
    )


def describe(profile: Profile) -> str:
    """Say a setting's thresholds in one line."""
    said = []
    if profile.routing is not None and profile.routing.every > 1:
        said.append(f"features of one frame in {profile.routing.every}")
    if profile.routing is not None and profile.routing.unit != "frame":
        routing = profile.routing
        said.append(f"margin {routing.margin_px:g} px of {routing.candidates}")
        if routing.unit == "cell":
            said.append("by cells")
        if routing.score_below > NEVER:
            said.append(f"saliency {routing.saliency_mass:g} under score {routing.score_below:g}")
        if profile.adapter.kind != "identity":
            said.append(f"{profile.adapter.kind} adapter")
        if routing.refresh is not None:
            said.append(f"rolling refresh {routing.refresh.one_in}")
        if profile.reuse:
            said.append("reuse")
    if profile.retrieval is not None:
        keep = profile.retrieval.keep
        layers = keep if isinstance(keep, tuple) else (keep,)
        readers = " by routed readers" if profile.retrieval.readers == "routed" else ""
        said.append("keep " + "/".join(f"{share:.3g}" for share in layers) + readers)
    if profile.quantize is not None:
        said.append(profile.quantize)
    guard = profile.guard.model_dump(exclude_none=True, exclude={"kept_share"})
    said += [f"{rule.replace('_', ' ')} {value:g}" for rule, value in guard.items()]
    return ", ".join(said)
