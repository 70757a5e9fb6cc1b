"""Calibrate: from videos to a profile that keeps a promise.

Clips are split in two. On the first part the model is watched once densely, thresholds follow from what it
attended to, hundreds of settings are replayed without the model, and some are run for real, in rounds: each time those that
the runs before them promise most of. On the second part, which none of that has seen, a few are tested in an order that is
fixed by then, and the cheapest that holds is taken. Every clip's figures lie in a file of its own, so an interrupted
calibration goes on.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sparsity.acceleration.model.encoder import window_grid
from sparsity.acceleration.model.quantized import why_not_int8
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.calibration.adapter import FITTED, Training, fit_adapter
from sparsity.calibration.bounds import choose, kind_for
from sparsity.calibration.capture import (
    capture,
    checked,
    matching_traces,
    one_model,
    one_size,
    read_trace,
    write_trace,
)
from sparsity.calibration.cost import WHOLE, Cost, drift_of, measure_cost, share_in_int8
from sparsity.calibration.ledger import ask, level_of
from sparsity.calibration.report import (
    apart,
    asked_by,
    certifiable,
    check_reach,
    coverage,
    kept_shares,
    limits,
    look,
    recall,
    row,
    stated,
)
from sparsity.calibration.request import Request
from sparsity.calibration.rounds import Wanted, order_of_testing, rounds_of, search_in_rounds
from sparsity.calibration.routed_frames import FIT_FRAMES, routed_frames
from sparsity.calibration.sample import losses_of, sample_of
from sparsity.calibration.search import (
    TESTED,
    TRIED,
    WORTH,
    Base,
    Candidate,
    describe,
    drifting,
    fast_enough,
    fewest_cells,
    frontier,
)
from sparsity.calibration.seen import seen_of, told, worst_clips
from sparsity.calibration.traces import Trace
from sparsity.clips.sources import Clip
from sparsity.evaluation.evaluate import ClipWork
from sparsity.profile import BUILTIN, Profile
from sparsity.techniques.adapter import Adapter
from sparsity.work.model import SameModel, shared_predictor, stamp_of
from sparsity.work.spread import Spread, map_clips
from sparsity.work.store import kept

SEARCH_SHARE = 1 / 3
"""Of the clips, those that thresholds and the order of testing come from."""

Found = TypeVar("Found")


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
                f"{promise.expected_speedup:.2f}x fewer operations than with all of them, "
                f"{self.report['expected_speedup_in_time']:.2f}x less time on this machine",
                *said,
            ]
        )


@dataclass(frozen=True)
class Workplace:
    """Where a calibration is worked on.

    Attributes
    ----------
    folder
        For what is done clip by clip; a second start goes on there.
    spread
        Where real runs happen.
    stamp
        What decides figures beside the clip and the setting, see `stamp_of`.
    """

    request: Request
    folder: Path
    spread: Spread
    stamp: dict[str, Any]

    def done_with(
        self, name: str, what: Callable[[EfficientSAM2VideoPredictor, Clip], Found]
    ) -> Found:
        """Do something with the model and a clip, in the number format asked for."""
        predictor = shared_predictor(self.request.choice)
        with self.request.choice.autocast(predictor.device.type):
            return what(predictor, self.request.source.open(name))

    def key_of(self, name: str, **settings: Any) -> dict[str, Any]:
        """What decides figures of a clip: another key where the clip was changed."""
        return {**self.stamp, **settings, "clip": self.request.source.listing(name)}

    def runs(self, part: str, names: Sequence[str], profiles: Sequence[Profile]) -> dict[str, Any]:
        """Run settings on clips for real: `sparsity.evaluation.evaluate.Outcome` by clip and setting, as JSON has it.

        What an adapter's weights are decides whether earlier runs count, not where they lie.
        """
        source, choice = self.request.source, self.request.choice
        work = ClipWork(source, choice, tuple(profiles), dense="exact", force=True)
        placeless = [
            p.model_dump_json(by_alias=True, exclude={"adapter": {"file"}}) for p in profiles
        ]
        summary = map_clips(
            SameModel(work, choice, self.stamp["model"]),
            list(names),
            self.folder / part,
            {**self.stamp, "profiles": placeless},
            self.spread,
            {name: source.listing(name) for name in names},
        )
        summary.check()
        return summary.results


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
    looks = look(request.source, request.clips)
    sample = sample_of(request, looks)
    request = sample.request
    search, promised = sample.split(SEARCH_SHARE)
    counted = sample.counted(promised)
    check_reach(request, len(counted))
    lengths = {name: one.frames for name, one in looks.items()}
    predictor = shared_predictor(request.choice)
    place = Workplace(request, work, spread, stamp_of(predictor, request.choice))
    say(f"{len(request.clips)} clips: {len(search)} to search, {len(promised)} for the promise.")
    if len(counted) < len(promised):
        say(f"Those for the promise are of {len(counted)} sources, and count as so many.")
    question = asked_of(place, promised, asked_by(request))
    confidence = level_of(question, request.confidence)
    say(certifiable(request, len(counted), question))

    tried, tested_at_most = afford(place, search, promised, lengths)
    traces = watch(place, search)
    adapter = adapter_of(place, traces)

    def losses(outcomes: Mapping[str, Any], settings: Sequence[Candidate]) -> NDArray[np.float64]:
        """Loss by source and setting."""
        lost = losses_of(outcomes, [c.profile.name for c in settings], request.risk)
        return sample.pooled(lost, list(outcomes))

    def run(settings: Sequence[Candidate]) -> NDArray[np.float64]:
        """Losses of a round on the clips of the search."""
        say(f"{len(settings)} settings on {len(search)} clips.")
        return losses(place.runs("search", search, [c.profile for c in settings]), settings)

    longest = max(search, key=lambda name: lengths[name])
    bases, drifted = measured(place, search, longest, traces, adapter)
    start = time.perf_counter()
    replayed = [c for base in bases for c in base.candidates(traces, adapter)]
    say(f"{len(replayed)} settings replayed in {time.perf_counter() - start:.1f} s.")
    kind = request.bound or kind_for(len(counted), confidence, request.level)
    wanted = Wanted(request.level, len(counted), confidence, kind)
    riskiest = [base.riskiest for base in bases]
    best, searched = search_in_rounds(
        fast_enough(replayed, request.target_speedup),
        run,
        (riskiest, losses(drifted, riskiest)),
        wanted,
        tried,
    )
    order = order_of_testing(searched, [c.cost for c in best], wanted, tested_at_most)
    tested = [best[i] for i in order]
    outcomes = place.runs("promise", promised, [c.profile for c in tested])
    held, costs = losses(outcomes, tested), [c.cost for c in tested]
    choice = choose(held, range(len(tested)), costs, confidence, request.level, request.bound)

    chosen = None if choice.index is None else tested[choice.index].profile
    seen = [looks[name] for name in promised]
    base = next((base for base in bases if chosen is not None and base.made(chosen)), None)
    cost = None if base is None else base.cost
    profile = stated(request, chosen, choice, outcomes, traces, cost, seen, question, tested)
    promise = profile.promise
    assert promise is not None
    faster, share = 1.0, 1.0
    if base is not None:
        shares = promise.expected_windows or 1.0, promise.expected_keys or 1.0
        share = base.share_of(profile)
        faster = 1 / (share * base.in_time(*shares))
    runs = {name: of_clip[chosen.name] for name, of_clip in outcomes.items()} if chosen else {}
    lost = losses_of(outcomes, [chosen.name], request.risk)[:, 0].tolist() if chosen else []
    if runs:
        promise = promise.model_copy(update={"seen": seen_of(looks, runs, lost)})
        profile = profile.model_copy(update={"promise": promise})
    beside: list[float] = []
    if chosen is not None and sample.apart:
        others = place.runs("apart", sample.apart, [chosen])
        beside = losses_of(others, [chosen.name], "drift")[:, 0].tolist()
    bound_to = {"model": place.stamp["model"], "image_size": predictor.image_size}
    profile = profile.model_copy(update=bound_to)
    report = {
        "profile": profile.model_dump(mode="json", by_alias=True),
        "said": [
            *limits(request, choice, tested, (promise.expected_speedup or math.inf) / share),
            *apart(request, beside),
            *(told(promise.seen) if promise.seen else ()),
        ],
        "certifiable": certifiable(request, len(counted), question),
        "promise": promise.text(),
        "level": None if math.isinf(request.level) else request.level,
        "option": request.option,
        "adapter": request.adapter,
        "base": " or ".join(request.bases),
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
        "clips": {"search": search, "promise": promised, "apart": list(sample.apart)},
        "counted": counted,
        "by_frame": {name: run["by_frame"] for name, run in runs.items()},
        "worst": worst_clips(runs, lost),
        "outcomes": outcomes,
        "bases": {base.name: base.as_json() for base in bases},
        "expected_speedup_in_time": round(faster, 3),
        "coverage": coverage(traces),
        "recall": recall(traces),
    }
    return Calibration(profile, report)


def asked_of(place: Workplace, promised: Sequence[str], question: Mapping[str, Any]) -> int:
    """Number of a question among those that were asked of any of these clips."""
    request = place.request
    asked = {**question, "seed": request.seed, "confidence": request.confidence, **place.stamp}
    return ask(request.source, promised, asked, place.folder.parent)


def say(text: str) -> None:
    """Tell the user how far it is, on stderr."""
    print(text, file=sys.stderr)


def watch(place: Workplace, names: Sequence[str]) -> list[Trace]:
    """Watch the model on clips, those apart that were watched before."""
    request = place.request
    recorded = matching_traces(request.recordings, request.source, names)
    one_model([*recorded.values()], place.stamp["model"])
    one_size([*recorded.values()], window_grid(shared_predictor(request.choice)))
    traces = []
    for name in tqdm(names, desc="watching", unit="clip", disable=None):
        trace = recorded.get(name) or kept(
            place.folder / "traces" / f"{name}.safetensors",
            place.key_of(name),
            partial(place.done_with, name, capture),
            read_trace,
            write_trace,
        )
        traces.append(checked(trace))
    return traces


def adapter_of(place: Workplace, traces: Sequence[Trace]) -> Adapter:
    """The adapter that was asked for, fitted on the clips of the traces where it has weights."""
    request, folder = place.request, place.folder
    if request.adapter not in FITTED:
        return Adapter.model_validate({"kind": request.adapter})
    predictor, names = shared_predictor(request.choice), [trace.name for trace in traces]
    frames = routed_frames(
        predictor, request.source, names, fewest_cells(traces), folder / "frames", FIT_FRAMES
    )
    return fit_adapter(request.adapter, predictor, frames, folder / "adapters", Training()).adapter


def cost_of(place: Workplace, name: str, adapter: Adapter, base: str) -> tuple[Cost, Cost]:
    """Operations and time by windows and keys of settings on a base, measured once on a clip."""

    def measure(predictor: EfficientSAM2VideoPredictor, clip: Clip) -> dict[str, Any]:
        operations, seconds = measure_cost(predictor, clip, BUILTIN[base], adapter)
        return {"operations": asdict(operations), "time": asdict(seconds)}

    found: dict[str, Any] = kept(
        place.folder / f"cost-{base}-{adapter.kind}.{name}.json",
        place.key_of(name, base=base, adapter=adapter.model_dump(exclude={"file"})),
        lambda: place.done_with(name, measure),
    )
    return Cost(**found["operations"]), Cost(**found["time"])


def int8_of(place: Workplace, name: str) -> float | None:
    """Share of the cost in int8, measured once on a clip; None where it is not there, saves nothing or is not wanted.

    It is a share of time, so it is not wanted where so many times fewer operations are asked for.
    """
    unwanted = place.request.target_speedup is not None
    if unwanted or why_not_int8(shared_predictor(place.request.choice).device):
        return None
    share: float = kept(
        place.folder / f"int8.{name}.json",
        place.key_of(name),
        lambda: place.done_with(name, share_in_int8),
    )
    return share if share <= WORTH else None


def measured(
    place: Workplace, names: Sequence[str], longest: str, traces: Sequence[Trace], adapter: Adapter
) -> tuple[list[Base], dict[str, Any]]:
    """Measure the bases that settings may build on; with the runs of the riskiest setting of each.

    Parameters
    ----------
    longest
        The clip that costs are measured on.
    """
    settings = {
        base: drifting(traces, adapter, BUILTIN[base]).model_copy(
            update={"name": f"{base}-riskiest"}
        )
        for base in (WHOLE, *place.request.bases)
    }
    outcomes = place.runs("drift", names, [*settings.values()])
    bases, int8 = [], int8_of(place, longest)
    for base, profile in settings.items():
        runs = [of_clip[profile.name] for of_clip in outcomes.values()]
        windows, keys = kept_shares(runs)
        cost, in_time = cost_of(place, longest, adapter, base)
        drift = drift_of([run["since_dense"] for run in runs])
        riskiest = Candidate(profile, windows, keys, cost(windows, keys), 0.0)
        bases.append(Base(base, cost, in_time, drift, riskiest, int8))
    return bases, outcomes


def afford(
    place: Workplace, search: Sequence[str], promised: Sequence[str], lengths: Mapping[str, int]
) -> tuple[int, int]:
    """How many settings are tried and tested; measured once on the first clip where there is a budget.

    One is tested where a speedup is asked for: it is taken whatever it loses.

    Parameters
    ----------
    lengths
        Frames of each clip: a frame takes as long as one of the clip that is measured.
    """
    budget, one_alone = place.request.budget, place.request.target_speedup is not None
    if budget is None:
        return TRIED, 1 if one_alone else TESTED
    first = search[0]

    def seconds() -> float:
        start = time.perf_counter()
        place.done_with(first, capture)
        return time.perf_counter() - start

    one: float = kept(place.folder / f"seconds.{first}.json", place.key_of(first), seconds)
    counts = [(m, 1 if one_alone else -(-m // 2)) for m in range(1, 3 * TRIED)]
    searched, held = (
        one / lengths[first] * sum(lengths[name] for name in names) for names in (search, promised)
    )
    # once whole, once more and riskily on each base, the whole one included, for the drift
    watched = 3 + len(place.request.bases)

    def needed(tried: int, tested: int) -> float:
        return searched * (watched + rounds_of(tried) + tried) + held * (1 + tested)

    affordable = [both for both in counts if needed(*both) <= budget]
    if not affordable:
        say(
            f"The budget of {budget:.3g} s is too short: one setting alone takes some {needed(1, 1):.0f} s here. It is tried all "
            "the same: the surest that saves something."
        )
        return 1, 1
    tried, tested = affordable[-1]
    say(f"The budget allows {tried} settings to be tried and {tested} to be tested.")
    return tried, tested
