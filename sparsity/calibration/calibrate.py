"""Calibrate: from videos to a profile that keeps a promise.

Clips are split in two. On the first part the model is watched once densely, thresholds follow from what it
attended to, some hundred settings are replayed without the model, and the best few are run for real. On the
second part, which none of that has seen, these few are tested in an order that is fixed by then, and the cheapest
that holds is taken. Every clip's figures lie in a file of its own, so an interrupted calibration goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from probes.errors import InputError
from probes.models import fingerprint
from sparsity.calibration.cost import Cost
from sparsity.calibration.drift import drift_of
from sparsity.calibration.promise import Choice, choose
from sparsity.calibration.request import Request, certifiable
from sparsity.calibration.runs import Runs, losses, shared_predictor
from sparsity.calibration.search import (
    Candidate,
    candidates,
    describe,
    drifting,
    frontier,
    grid,
    order_of_testing,
    split_clips,
    spread_out,
)
from sparsity.calibration.telling import coverage, limits, recall, row
from sparsity.calibration.traces import Trace
from sparsity.calibration.watching import afford, cost_of, say, shortcut_of, watch
from sparsity.evaluation.jobs import Spread, map_clips
from sparsity.profile import EXACT_TECHNIQUES, Profile, Promise
from sparsity.profiles import BUILTIN

SEARCH_SHARE = 1 / 3
"""Of the clips, those that thresholds and the order of testing come from."""

NO_BOUND = float("inf")


@dataclass(frozen=True)
class Calibration:
    """What was found.

    Attributes
    ----------
    profile
        With its promise.
    report
        Everything a report shows, as JSON can hold it.
    """

    profile: Profile
    report: dict[str, Any]

    def text(self) -> str:
        """Return the promise in a few lines."""
        promise, said = self.profile.promise, self.report["said"]
        assert promise is not None
        return "\n".join(
            [
                f"chosen   {describe(self.profile) or 'every window and key'}",
                f"promise  {promise.text()}",
                f"expected windows {promise.expected_windows:.0%}, keys {promise.expected_keys:.0%}, "
                f"{promise.expected_speedup:.2f}x fewer operations than with all of them",
                *said,
            ]
        )


def calibrate(request: Request, work: Path, spread: Spread) -> Calibration:
    """Calibrate a model on clips.

    Parameters
    ----------
    work
        Folder for what is done clip by clip; a second start goes on there.
    spread
        Where real runs happen.

    Raises
    ------
    InputError
        Something given can't be used, or a clip failed.
    """
    request.check()
    predictor = shared_predictor(request.choice)
    model = fingerprint(predictor)
    stamp = {
        "model": model,
        "size": predictor.image_size,
        "dtype": request.choice.number_format(predictor.device.type),
        "made_by": version("efficient-sam2"),
    }
    search, promised = split_clips(request.clips, SEARCH_SHARE, request.seed)
    say(f"{len(request.clips)} clips: {len(search)} to search, {len(promised)} for the promise.")
    say(certifiable(request, len(promised)))

    folder = work / hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:12]
    traces = watch(request, search, folder / "traces")
    shortcut = shortcut_of(request, traces, folder / "shortcuts")
    tried, tested_at_most = afford(request, search, promised, folder)
    base, costs = BUILTIN[request.base], f"cost-{request.base}-{shortcut.kind}.json"
    cost, in_time = cost_of(request, search[0], shortcut, folder / costs)
    probed: dict[str, Any] = {}
    drifts = [drifting(traces, shortcut, base)]
    _run(request, search, drifts, folder / "drift", stamp, spread, probed)
    drift = drift_of([runs["drifting"]["since_dense"] for runs in probed.values()])
    start = time.perf_counter()
    settings = grid(traces, drift)
    replayed = candidates(traces, settings, cost, drift, shortcut, base)
    say(f"{len(settings)} settings replayed in {time.perf_counter() - start:.1f} s.")
    best = _shortlist(frontier(replayed), request, tried)

    searched = _run(request, search, [c.profile for c in best], folder / "search", stamp, spread)
    order = order_of_testing(searched, request.confidence, tested_at_most)
    tested = [best[i] for i in order]
    outcomes: dict[str, Any] = {}
    trials = [c.profile for c in tested]
    held = _run(request, promised, trials, folder / "promise", stamp, spread, outcomes)
    choice = _choose(request, held, tested)

    chosen = None if choice.index is None else tested[choice.index]
    bound_to = {"model": model, "image_size": predictor.image_size}
    profile = _profile(request, chosen, choice, outcomes, traces, cost, promised)
    profile = profile.model_copy(update=bound_to)
    said = limits(request, choice, tested)
    report = {
        "profile": profile.model_dump(mode="json", by_alias=True),
        "said": said,
        "certifiable": certifiable(request, len(promised)),
        "max_drop": request.max_drop,
        "shortcut": request.shortcut,
        "base": request.base,
        "replayed": [row(c) for c in replayed],
        "frontier": [row(c) for c in frontier(replayed)],
        "searched": [{**row(c), "losses": searched[:, i].tolist()} for i, c in enumerate(best)],
        "tested": [
            {
                **row(c),
                "losses": held[:, i].tolist(),
                "bound": asdict(choice.bounds[i]) if i in choice.bounds else None,
            }
            for i, c in enumerate(tested)
        ],
        "clips": {"search": search, "promise": promised},
        "outcomes": outcomes,
        "drift": {"lost": drift.lost, "refresh": drift.refresh},
        "cost": asdict(cost),
        "cost_in_time": asdict(in_time),
        "coverage": coverage(traces),
        "recall": recall(traces),
    }
    return Calibration(profile, report)


def _shortlist(found: list[Candidate], request: Request, tried: int) -> list[Candidate]:
    """Return the settings of a frontier that are run for real."""
    if request.target_speedup is None:
        return spread_out(found, tried)
    fast = [c for c in found if 1 / c.cost >= request.target_speedup]
    if not fast:
        raise InputError(
            f"target-speedup {request.target_speedup:g} given; on these clips the cheapest setting is "
            f"{1 / found[0].cost:.2f}x; ask for less"
        )
    return fast[-tried:]


def _run(
    request: Request,
    names: list[str],
    profiles: Sequence[Profile],
    folder: Path,
    stamp: dict[str, Any],
    spread: Spread,
    outcomes: dict[str, Any] | None = None,
) -> Any:
    """Run settings on clips for real; losses ``[clips, settings]``.

    What a shortcut's weights are decides whether earlier runs count, not where they lie.
    """
    work = Runs(request.source, request.choice, tuple(profile.to_json() for profile in profiles))
    placeless = [p.model_dump_json(by_alias=True, exclude={"shortcut": {"file"}}) for p in profiles]
    contents = {name: request.source.listing(name) for name in names}
    settings = {**stamp, "profiles": placeless}
    summary = map_clips(work, names, folder, settings, spread, contents)
    summary.check()
    if outcomes is not None:
        outcomes.update(summary.results)
    return losses(summary.results, [profile.name for profile in profiles])


def _choose(request: Request, held: Any, tested: Sequence[Candidate]) -> Choice:
    """Test in order; with a target speedup the surest setting alone is taken, whatever it loses."""
    if request.target_speedup is not None:
        first = [tested[0].cost]
        return choose(held[:, :1], [0], first, request.confidence, NO_BOUND, request.bound)
    costs = [c.cost for c in tested]
    order = range(len(tested))
    return choose(held, order, costs, request.confidence, request.max_drop, request.bound)


def _profile(
    request: Request,
    chosen: Candidate | None,
    choice: Choice,
    outcomes: dict[str, Any],
    traces: Sequence[Trace],
    cost: Cost,
    promised: Sequence[str],
) -> Profile:
    """The chosen setting with its promise; every window and key where none holds."""
    labelled = all(request.source.open(name).truth is not None for name in promised)
    unit = "J&F points, mean over videos" + ("" if labelled else ", against the dense run's masks")
    if chosen is None:
        promise = Promise(
            mean_loss=0.0, upper_bound=0.0, confidence=request.confidence,
            method="every window and key is computed", clips=len(outcomes), unit=unit,
            expected_windows=1.0, expected_keys=1.0, expected_speedup=1.0,
        )  # fmt: skip
        profile = Profile(name="calibrated", techniques=dict.fromkeys(EXACT_TECHNIQUES, True))
    else:
        stated = choice.promise
        runs = [found[chosen.profile.name] for found in outcomes.values()]
        windows, keys = (float(np.mean([run[k] for run in runs])) for k in ("windows", "keys"))
        promise = Promise(
            mean_loss=round(stated.mean, 4), upper_bound=round(stated.upper, 4),
            confidence=stated.confidence, method=stated.method, clips=stated.videos, unit=unit,
            expected_windows=round(windows, 4), expected_keys=round(keys, 4),
            expected_speedup=round(1 / cost(windows, keys), 3),
        )  # fmt: skip
        profile = chosen.profile
    made_by = {
        "versions": {name: version(name) for name in ("efficient-sam2", "sam2", "torch", "mapie")},
        "clips": list(request.clips),
        "recordings": {trace.name: trace.digest for trace in traces},
        "settings": {
            "max_drop": request.max_drop,
            "target_speedup": request.target_speedup,
            "bound": request.bound,
            "budget": request.budget,
            "shortcut": request.shortcut,
            "base": request.base,
        },
        "seed": request.seed,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    return profile.model_copy(update={"name": "calibrated", "promise": promise, "made_by": made_by})
