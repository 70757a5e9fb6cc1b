"""Calibrate: from videos to a profile that keeps a promise.

Clips are split in two. On the first part the model is watched once densely, thresholds follow from what it
attended to, some hundred settings are replayed without the model, and the best few are run for real. On the
second part, which none of that has seen, these few are tested in an order that is fixed by then, and the cheapest
that holds is taken. Every clip's figures lie in a file of its own, so an interrupted calibration goes on.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from probes.errors import InputError
from probes.models import fingerprint
from sparsity.calibration.capture import capture, load_trace, save_trace
from sparsity.calibration.clips import ClipSource
from sparsity.calibration.cost import Cost, measure_cost
from sparsity.calibration.promise import Choice, choose, smallest_certifiable, videos_needed
from sparsity.calibration.recordings import read_traces
from sparsity.calibration.replay import replay_windows
from sparsity.calibration.runs import Runs, losses, shared_predictor
from sparsity.calibration.search import (
    Candidate,
    candidates,
    describe,
    frontier,
    grid,
    order_of_testing,
    split_clips,
    spread_out,
)
from sparsity.calibration.thresholds import MARGINS, mask_only
from sparsity.calibration.traces import Trace
from sparsity.evaluation.jobs import Spread, map_clips
from sparsity.options import ModelChoice
from sparsity.profile import EXACT_TECHNIQUES, Guard, Profile, Promise
from sparsity.runs import write_text

SEARCH_SHARE = 1 / 3
"""Of the clips, those that thresholds and the order of testing come from."""

TRIED, TESTED = 6, 4
"""Settings that are run for real on the clips of the search, and on those of the promise."""

FEWEST_CLIPS = 5
"""Two to search on, and three to bound a mean with."""

NO_BOUND = float("inf")


@dataclass(frozen=True)
class Request:
    """What is asked of a calibration.

    Attributes
    ----------
    recordings
        Folders that ``probe`` wrote; their clips are not watched again.
    max_drop
        Mean loss per video that is accepted, in points of J&F.
    target_speedup
        Instead: how much cheaper a frame must be, in operations; the surest such setting is taken.
    confidence
        Of the bound.
    seed
        Of the split of the clips.
    budget
        Seconds that real runs may take; None for as many as `TRIED` settings need.
    """

    source: ClipSource
    clips: tuple[str, ...]
    choice: ModelChoice
    max_drop: float = 1.0
    target_speedup: float | None = None
    confidence: float = 0.95
    seed: int = 0
    budget: float | None = None
    recordings: tuple[Path, ...] = ()

    def check(self) -> None:
        """Refuse what can't be calibrated.

        Raises
        ------
        InputError
            Too few clips, or a number out of range.
        """
        if len(self.clips) < FEWEST_CLIPS:
            raise InputError(
                f"{len(self.clips)} clip{'s' * (len(self.clips) != 1)} given; no bound on the mean loss is possible "
                f"from fewer than {FEWEST_CLIPS} (the frames of one video do not count apart); give more videos, or "
                "add made clips with --made 30"
            )
        if not 0 < self.max_drop <= 100:
            raise InputError(
                f"max-drop {self.max_drop:g} given; expected points of J&F above 0, such as 1.0; change it"
            )
        if not 0.5 <= self.confidence < 1:
            raise InputError(
                f"confidence {self.confidence:g} given; expected 0.5 to below 1, such as 0.95; change it"
            )
        if self.target_speedup is not None and self.target_speedup <= 1:
            raise InputError(
                f"target-speedup {self.target_speedup:g} given; expected a number above 1; change it"
            )


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


def certifiable(count: int, confidence: float, max_drop: float) -> str:
    """Say what so many clips can promise, before anything is run."""
    least = smallest_certifiable(count, confidence)
    said = f"{count} clips for the promise can certify a mean loss of {least:.1f} points at {confidence:.0%} at best"
    if least <= max_drop:
        return f"{said}, whatever the videos are."
    return (
        f"{said}; certifying {max_drop:g} takes {videos_needed(max_drop, confidence)} clips. "
        "The bound is therefore approximate (Student t and BCa): it can't know of kinds of videos not given."
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
    _say(f"{len(request.clips)} clips: {len(search)} to search, {len(promised)} for the promise.")
    _say(certifiable(len(promised), request.confidence, request.max_drop))

    folder = work / hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:12]
    traces = _watch(request, search, folder / "traces")
    tried, tested_at_most = _afford(request, search, promised, folder)
    cost, in_time = _cost(request, search[0], folder / "cost.json")
    start = time.perf_counter()
    settings = grid(traces)
    replayed = candidates(traces, settings, cost)
    _say(f"{len(settings)} settings replayed in {time.perf_counter() - start:.1f} s.")
    best = _shortlist(frontier(replayed), request, tried)

    searched = _run(request, search, best, folder / "search", stamp, spread)
    order = order_of_testing(searched, request.confidence, tested_at_most)
    tested = [best[i] for i in order]
    outcomes: dict[str, Any] = {}
    held = _run(request, promised, tested, folder / "promise", stamp, spread, outcomes)
    choice = _choose(request, held, tested)

    chosen = None if choice.index is None else tested[choice.index]
    profile = _profile(request, chosen, choice, outcomes, model, traces, cost, promised)
    said = _limits(request, choice, tested)
    report = {
        "profile": profile.model_dump(mode="json", by_alias=True),
        "said": said,
        "certifiable": certifiable(len(promised), request.confidence, request.max_drop),
        "max_drop": request.max_drop,
        "replayed": [_row(c) for c in replayed],
        "frontier": [_row(c) for c in frontier(replayed)],
        "searched": [{**_row(c), "losses": searched[:, i].tolist()} for i, c in enumerate(best)],
        "tested": [
            {
                **_row(c),
                "losses": held[:, i].tolist(),
                "bound": asdict(choice.bounds[i]) if i in choice.bounds else None,
            }
            for i, c in enumerate(tested)
        ],
        "clips": {"search": search, "promise": promised},
        "outcomes": outcomes,
        "cost": asdict(cost),
        "cost_in_time": asdict(in_time),
        "coverage": _coverage(traces),
        "recall": _recall(traces),
    }
    return Calibration(profile, report)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _watch(request: Request, names: Sequence[str], folder: Path) -> list[Trace]:
    """Watch the model on clips, those apart that were watched before."""
    folder.mkdir(parents=True, exist_ok=True)
    predictor = shared_predictor(request.choice)
    traces = []
    recorded = {t.name: t for path in request.recordings for t in read_traces(path)}
    one_model([*recorded.values()], fingerprint(predictor))
    for name in tqdm(names, desc="watching", unit="clip", disable=None):
        if name in recorded:
            traces.append(checked(recorded[name]))
            continue
        path = folder / f"{name}.safetensors"
        trace = load_trace(path)
        if trace is None:
            with request.choice.autocast(predictor.device.type):
                trace = capture(predictor, request.source.open(name))
            save_trace(trace, path)
        traces.append(checked(trace))
    return traces


def checked(trace: Trace) -> Trace:
    """Return a trace that calibration can use.

    Raises
    ------
    InputError
        Its masks are empty throughout, or a statistic is not a number.
    """
    if not bool(trace.best[1:].any()):
        raise InputError(
            f"the model finds nothing in {trace.name} after its first frame; an empty mask track has nothing to "
            "calibrate on; check its prompt, or leave the clip out"
        )
    memory = trace.memory
    if not bool(trace.score.isfinite().all()) or (
        memory is not None and not np.isfinite(memory.curve).all()
    ):
        raise InputError(
            f"statistics of {trace.name} are not numbers; expected finite scores and attention; check the "
            "weights, or run in float32"
        )
    return trace


def one_model(traces: Sequence[Trace], model: str) -> None:
    """Hold that all traces are of `model`.

    Raises
    ------
    InputError
        They are of several models, or of another one.
    """
    models = sorted({trace.model for trace in traces})
    named = ", ".join(f"{m[:19]}…" for m in models)
    if len(models) > 1:
        raise InputError(
            f"recordings of {len(models)} models given ({named}); expected one model; record all clips with the "
            "same weights"
        )
    if models and models[0] != model:
        raise InputError(
            f"recordings of the model {named} given; the model to calibrate is {model[:19]}…; record its clips, "
            "or name the model that was recorded"
        )


def _cost(request: Request, name: str, path: Path) -> tuple[Cost, Cost]:
    """Operations and time by windows and keys, measured once."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Cost(**found["operations"]), Cost(**found["time"])
    except (OSError, ValueError, KeyError, TypeError):
        operations, seconds = measure_cost(
            shared_predictor(request.choice), request.source.open(name)
        )
        both = {"operations": asdict(operations), "time": asdict(seconds)}
        write_text(path, json.dumps(both, indent=1))
        return operations, seconds


def _afford(
    request: Request, search: Sequence[str], promised: Sequence[str], folder: Path
) -> tuple[int, int]:
    """How many settings are tried and tested; measured once on the first clip where there is a budget."""
    if request.budget is None:
        return TRIED, TESTED
    path = folder / f"budget-{request.budget:g}.json"
    try:
        tried, tested = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        start = time.perf_counter()
        capture(shared_predictor(request.choice), request.source.open(search[0]))
        one = time.perf_counter() - start
        affordable = [
            (m, -(-m // 2))
            for m in range(2, 3 * TRIED)
            if one * (len(search) * (m + 1) + len(promised) * (-(-m // 2) + 1)) <= request.budget
        ]
        tried, tested = affordable[-1] if affordable else (1, 1)
        write_text(path, json.dumps([tried, tested]))
    _say(f"The budget allows {tried} settings to be tried and {tested} to be tested.")
    return tried, tested


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
    settings: Sequence[Candidate],
    folder: Path,
    stamp: dict[str, Any],
    spread: Spread,
    outcomes: dict[str, Any] | None = None,
) -> Any:
    """Run settings on clips for real; losses ``[clips, settings]``."""
    texts = tuple(c.profile.to_json() for c in settings)
    work = Runs(request.source, request.choice, texts)
    summary = map_clips(work, names, folder, {**stamp, "profiles": list(texts)}, spread)
    summary.check()
    if outcomes is not None:
        outcomes.update(summary.results)
    return losses(summary.results, [c.profile.name for c in settings])


def _choose(request: Request, held: Any, tested: Sequence[Candidate]) -> Choice:
    """Test in order; with a target speedup the surest setting alone is taken, whatever it loses."""
    if request.target_speedup is not None:
        return choose(held[:, :1], [0], [tested[0].cost], request.confidence, NO_BOUND)
    costs = [c.cost for c in tested]
    return choose(held, range(len(tested)), costs, request.confidence, request.max_drop)


def _profile(
    request: Request,
    chosen: Candidate | None,
    choice: Choice,
    outcomes: dict[str, Any],
    model: str,
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
            "budget": request.budget,
        },
        "seed": request.seed,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    return profile.model_copy(
        update={"name": "calibrated", "model": model, "promise": promise, "made_by": made_by}
    )


def _limits(request: Request, choice: Choice, tested: Sequence[Candidate]) -> list[str]:
    """Say what kept the profile from being faster."""
    if request.target_speedup is not None:
        return []
    failed = [i for i in choice.bounds if i not in choice.held]
    if not failed:
        return ["limit    none: every tested setting holds; a larger --budget tries more"]
    bound = choice.bounds[failed[0]]
    said = (
        f"limit    {describe(tested[failed[0]].profile)}: mean loss {bound.mean:+.2f}, bound {bound.upper:.2f} over "
        f"{request.max_drop:g}"
    )
    if choice.index is None:
        return [
            said,
            "no setting holds: the profile computes every window and reads every key; give more videos, or a "
            "larger --max-drop",
        ]
    return [said]


def _row(c: Candidate) -> dict[str, Any]:
    return {
        "name": c.profile.name,
        "said": describe(c.profile),
        "windows": c.windows,
        "keys": c.keys,
        "cost": c.cost,
        "recall": c.recall,
    }


def _coverage(traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """Windows kept and tokens covered by margin."""
    rows = []
    for which in ("best", "all"):
        for margin in MARGINS:
            found = [replay_windows(t, mask_only(margin, which), Guard()) for t in traces]
            rows.append(
                {
                    "candidates": which,
                    "margin_px": margin,
                    "kept": float(np.mean([r.kept.mean() for r in found])),
                    "recall": float(np.mean([r.recall.mean() for r in found])),
                }
            )
    return rows


def _recall(traces: Sequence[Trace]) -> dict[str, Any]:
    """Mass recall by layer at the first and the oldest age, by kept share of tokens."""
    memories = [t.memory for t in traces if t.memory is not None]
    if not memories:
        return {}
    curve = np.mean([m.curve for m in memories], axis=0)  # [layers, ages, tokens]
    tokens = curve.shape[-1]
    picked = np.unique(np.geomspace(1, tokens, 40).astype(int))
    return {
        "share": (picked / tokens).tolist(),
        "ages": [memories[0].ages[0], memories[0].ages[-1]],
        "layers": curve[:, [0, -1]][:, :, picked - 1].tolist(),
        "exposure": np.mean([m.exposure for m in memories], axis=0).tolist(),
    }
