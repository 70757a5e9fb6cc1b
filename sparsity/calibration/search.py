"""Which settings to try for real, and which of them to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from sparsity.calibration.bounds import approximate_bound
from sparsity.calibration.cost import Cost
from sparsity.calibration.drift import Drift
from sparsity.calibration.replay import keep_per_layer, replay_memory, replay_windows
from sparsity.calibration.router import fit_router, judge, learnable
from sparsity.calibration.settings import Setting, built_on
from sparsity.calibration.thresholds import (
    keep_for,
    margin_for,
    mask_jump_for,
    mask_only,
    saliency_mass_for,
    scene_cut_for,
    score_below_for,
)
from sparsity.calibration.traces import Trace
from sparsity.profile import Guard, Memory, Profile, Router, Shortcut, Windows

WINDOW_RECALLS = (0.9, 0.95, 0.975, 0.99, 0.995)
"""Shares of object tokens that routing is asked to cover."""

MEMORY_SHARES = (0.02, 0.035, 0.05, 0.07, 0.095)
"""Mean kept shares of memory tokens in the grid; layers share them by their mass recall."""

WORTH = 0.97
"""Cost above which a setting isn't worth a place among those that are run: it would hold, and save nothing."""

TRIED, TESTED = 6, 4
"""Settings that are run for real on the clips of the search, and on those of the promise."""


@dataclass(frozen=True)
class Candidate:
    """A setting, and what replays say of it.

    Attributes
    ----------
    windows, keys
        Shares computed and read; dense frames count as 1.
    cost
        Of a frame, against the same model with every window and key.
    recall
        Share of object tokens inside computed windows, times share of memory attention on keys that are read,
        times share of agreement that is kept between dense frames.
    """

    profile: Profile
    windows: float
    keys: float
    cost: float
    recall: float


def fewest_windows(traces: Sequence[Trace]) -> Windows:
    """The routing of the grid that leaves most windows out: what drift is measured and shortcuts are fitted with."""
    return mask_only(margin_for(traces, "best", WINDOW_RECALLS[0]), "best")


def drifting(traces: Sequence[Trace], shortcut: Shortcut, base: Profile) -> Profile:
    """The setting whose drift is measured: the fewest windows of the grid, few keys, no whole frames by the clock."""
    remembered = all(trace.memory is not None for trace in traces)
    memory = Memory(keep=keep_for(traces, MEMORY_SHARES[-1])) if remembered else None
    return built_on(base, "drifting", Setting(fewest_windows(traces), memory=memory), shortcut)


def grid(traces: Sequence[Trace], drift: Drift) -> list[Setting]:
    """List settings whose thresholds come from the traces' statistics: one for each wanted recall.

    Routing never goes without the guard's rules for scene cuts and lost objects, which cost nothing on frames where
    they don't act; the one for mask jumps acts on most frames of fast clips, so it is tried on and off. The learnt
    router takes part where it keeps fewer windows than the paper's rule on clips it has not seen.
    """
    routed: list[tuple[Windows | None, Guard, Router | None]] = [(None, Guard(), None)]
    cut = scene_cut_for(traces)
    refreshes = [None] if drift.refresh is None else [None, 2 * drift.refresh, drift.refresh]
    mass = {recall: saliency_mass_for(traces, recall) for recall in WINDOW_RECALLS}
    learnt = learnable(traces) and judge(traces).saved > 0
    for which, recall in product(("best", "all"), WINDOW_RECALLS):
        margin = margin_for(traces, which, recall)
        alone = mask_only(margin, which)
        score = score_below_for(traces, alone, recall)
        jump = mask_jump_for(traces, alone, recall)
        widened = alone.model_copy(update={"score_below": score, "saliency_mass": mass[recall]})
        guards = [
            Guard(mask_jump=rule, scene_cut=cut, score_below=0.0, refresh_every=refresh)
            for rule, refresh in product((jump, None), refreshes)
        ]
        routed += [(windows, guard, None) for windows in (alone, widened) for guard in guards]
        if learnt and which == "best":
            router = fit_router(traces, recall)
            routed += [(mask_only(0.0, which), guard, router) for guard in guards]
    pruned: list[Memory | None] = [None]
    if all(trace.memory is not None for trace in traces):
        pruned += [Memory(keep=keep_for(traces, share)) for share in MEMORY_SHARES]
    settings = [
        Setting(windows, guard, memory, router)
        for (windows, guard, router), memory in product(
            dict.fromkeys(routed), dict.fromkeys(pruned)
        )
    ]
    return [setting for setting in settings if setting.windows or setting.memory]


def candidates(
    traces: Sequence[Trace],
    settings: Sequence[Setting],
    cost: Cost,
    drift: Drift,
    shortcut: Shortcut,
    base: Profile,
) -> list[Candidate]:
    """Replay settings over traces: their predicted cost and recall, mean over clips.

    Windows and memory are replayed apart and once for each setting that differs. Settings that route get the shortcut,
    and what they build on; masks of a dense run don't tell these from others, so they count by `drift` and `cost` alone.
    """
    profiles = [built_on(base, f"candidate-{n}", s, shortcut) for n, s in enumerate(settings)]
    rules = dict.fromkeys((p.windows, p.guard, p.router) for p in profiles)
    routed = {rule: _routed(traces, *rule) for rule in rules}
    pruned = {memory: _pruned(traces, memory) for memory in {s.memory: None for s in settings}}
    found = []
    for s, profile in zip(settings, profiles, strict=True):
        kept, covered = routed[profile.windows, profile.guard, profile.router]
        keys, mass = pruned[s.memory]
        recall = covered * mass * (drift.kept(s.guard.refresh_every) if s.windows else 1.0)
        found.append(Candidate(profile, kept, keys, cost(kept, keys), recall))
    return found


def _routed(
    traces: Sequence[Trace], windows: Windows | None, guard: Guard, router: Router | None
) -> tuple[float, float]:
    """Shares of windows kept and object tokens covered."""
    if windows is None:
        return 1.0, 1.0
    found = [replay_windows(trace, windows, guard, router) for trace in traces]
    return float(np.mean([r.kept.mean() for r in found])), float(
        np.mean([r.recall.mean() for r in found])
    )


def _pruned(traces: Sequence[Trace], memory: Memory | None) -> tuple[float, float]:
    """Shares of keys read and of attention that finds its keys."""
    if memory is None:
        return 1.0, 1.0
    found = [replay_memory(trace, memory) for trace in traces]
    return float(np.mean([r.keys for r in found])), float(np.mean([r.mass for r in found]))


def frontier(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that none other beats in both cost and recall, the cheapest first."""
    best: list[Candidate] = []
    for one in sorted(found, key=lambda c: (c.cost, -c.recall)):
        if not best or one.recall > best[-1].recall:
            best.append(one)
    return best


def spread_out(found: Sequence[Candidate], count: int) -> list[Candidate]:
    """Take `count` candidates of a frontier at equal steps of cost, both ends included.

    Those that cost more than `WORTH` are left out, unless all do.
    """
    found = [c for c in found if c.cost <= WORTH] or found
    if len(found) <= count:
        return list(found)
    costs = np.array([c.cost for c in found])
    wanted = np.linspace(costs[0], costs[-1], count)
    picked = dict.fromkeys(int(np.abs(costs - cost).argmin()) for cost in wanted)
    return [found[i] for i in picked]


def order_of_testing(
    search_losses: NDArray[np.float64], confidence: float, count: int
) -> list[int]:
    """Order settings by the bound that the search clips give them, the surest first, and keep `count`.

    Parameters
    ----------
    search_losses
        Points per video and setting, ``[n, m]``, of clips that the promise is not made on.
    """
    bounds = [approximate_bound(column, confidence).upper for column in search_losses.T]
    return [int(i) for i in np.argsort(bounds, kind="stable")[:count]]


def split_clips(names: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Split clips at random into those of the search and those of the promise, at least two each.

    Examples
    --------
    >>> split_clips(["a", "b", "c", "d"], 0.4, 0)
    (['a', 'b'], ['c', 'd'])
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
    if profile.windows is not None:
        w = profile.windows
        reach = "router" if profile.router else f"margin {w.margin_px:g} px"
        said.append(f"{reach} of {w.candidates}")
        if w.score_below > -100:
            said.append(f"saliency {w.saliency_mass:g} under score {w.score_below:g}")
        if profile.shortcut.kind != "identity":
            said.append(f"{profile.shortcut.kind} shortcut")
        if w.rolling_refresh is not None:
            said.append(f"rolling refresh {w.rolling_refresh}")
        said += [name.replace("_", " ") for name in sorted(profile.calibrated_techniques)]
    if profile.memory is not None:
        layers = keep_per_layer(profile.memory, 1)
        readers = " by routed readers" if profile.memory.readers == "routed" else ""
        said.append("keep " + "/".join(f"{share:.3g}" for share in layers) + readers)
    guard = profile.guard.model_dump(exclude_none=True, exclude={"kept_share"})
    said += [f"{rule.replace('_', ' ')} {value:g}" for rule, value in guard.items()]
    return ", ".join(said)
