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
from importlib.metadata import version
from pathlib import Path
from typing import Any

from probes.errors import InputError
from probes.models import fingerprint
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.calibration.drift import drift_of
from sparsity.calibration.looking import look
from sparsity.calibration.promise import choose
from sparsity.calibration.reach import certifiable, check_reach
from sparsity.calibration.request import Request
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
from sparsity.calibration.stating import stated
from sparsity.calibration.telling import coverage, limits, recall, row
from sparsity.calibration.watching import afford, cost_of, say, shortcut_of, watch
from sparsity.evaluation.jobs import Spread, map_clips
from sparsity.evaluation.same_model import SameModel
from sparsity.options import ModelChoice
from sparsity.profile import Profile
from sparsity.profiles import BUILTIN

SEARCH_SHARE = 1 / 3
"""Of the clips, those that thresholds and the order of testing come from."""


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
    search, promised = split_clips(request.clips, SEARCH_SHARE, request.seed)
    check_reach(request, len(promised))
    looks = look(request.source, request.clips)
    predictor = shared_predictor(request.choice)
    stamp = stamp_of(predictor, request.choice)
    folder = work / hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:12]
    say(f"{len(request.clips)} clips: {len(search)} to search, {len(promised)} for the promise.")
    say(certifiable(request, len(promised)))

    traces = watch(request, search, folder / "traces")
    shortcut = shortcut_of(request, traces, folder / "shortcuts")
    lengths = {name: one.frames for name, one in looks.items()}
    tried, tested_at_most = afford(request, search, promised, lengths, folder)
    base, longest = BUILTIN[request.base], max(search, key=lambda name: lengths[name])
    cost, in_time = cost_of(request, longest, shortcut, folder)
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
    costs, in_order = [c.cost for c in tested], range(len(tested))
    choice = choose(held, in_order, costs, request.confidence, request.level, request.bound)

    chosen = None if choice.index is None else tested[choice.index].profile
    seen = [looks[name] for name in promised]
    profile = stated(request, chosen, choice, outcomes, traces, cost, seen)
    bound_to = {"model": stamp["model"], "image_size": predictor.image_size}
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


def stamp_of(predictor: EfficientSAM2VideoPredictor, choice: ModelChoice) -> dict[str, Any]:
    """What decides the figures of a clip beside the clip: those of another model or device are not gone on with."""
    return {
        "model": fingerprint(predictor),
        "size": predictor.image_size,
        "device": predictor.device.type,
        "dtype": choice.number_format(predictor.device.type),
        "made_by": version("efficient-sam2"),
    }


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
    runs = Runs(request.source, request.choice, tuple(profile.to_json() for profile in profiles))
    work = SameModel(runs, request.choice, stamp["model"])
    placeless = [p.model_dump_json(by_alias=True, exclude={"shortcut": {"file"}}) for p in profiles]
    contents = {name: request.source.listing(name) for name in names}
    settings = {**stamp, "profiles": placeless}
    summary = map_clips(work, names, folder, settings, spread, contents)
    summary.check()
    if outcomes is not None:
        outcomes.update(summary.results)
    return losses(summary.results, [profile.name for profile in profiles])
