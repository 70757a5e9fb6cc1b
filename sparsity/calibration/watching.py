"""What is learnt of the model before settings are tried: dense runs of clips, a shortcut, its cost, a run's time."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from probes.errors import InputError
from probes.models import fingerprint
from sparsity.acceleration.encoder import window_grid
from sparsity.calibration.adapter import Training
from sparsity.calibration.capture import capture, load_trace, save_trace
from sparsity.calibration.cost import Cost, measure_cost
from sparsity.calibration.fitting import FIT_FRAMES, fit_shortcut, routed_frames
from sparsity.calibration.recordings import matching_traces
from sparsity.calibration.request import Request
from sparsity.calibration.runs import shared_predictor
from sparsity.calibration.search import TESTED, TRIED, fewest_windows
from sparsity.calibration.shortcuts import FITTED
from sparsity.calibration.traces import Trace
from sparsity.profile import Shortcut
from sparsity.profiles import BUILTIN
from sparsity.runs import write_text
from sparsity.select import TOKEN_STRIDE, WindowGrid


def say(text: str) -> None:
    """Tell the user how far it is, on stderr."""
    print(text, file=sys.stderr)


def watch(request: Request, names: Sequence[str], folder: Path) -> list[Trace]:
    """Watch the model on clips, those apart that were watched before."""
    folder.mkdir(parents=True, exist_ok=True)
    predictor = shared_predictor(request.choice)
    traces = []
    recorded = matching_traces(request.recordings, request.source, names)
    one_model([*recorded.values()], fingerprint(predictor))
    one_size([*recorded.values()], window_grid(predictor))
    for name in tqdm(names, desc="watching", unit="clip", disable=None):
        if name in recorded:
            traces.append(checked(recorded[name]))
            continue
        path = folder / f"{name}.{request.source.listing(name)[:12]}.safetensors"
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


def one_size(traces: Sequence[Trace], grid: WindowGrid) -> None:
    """Hold that all traces are of the image size whose windows `grid` is.

    Raises
    ------
    InputError
        One is of another size.
    """
    for trace in traces:
        if trace.grid != grid:
            sides = [g.tokens * TOKEN_STRIDE for g in (trace.grid, grid)]
            raise InputError(
                f"clip {trace.name} was recorded at {sides[0]} pixels; the model to calibrate takes {sides[1]}; "
                "record it so, or give that --image-size"
            )


def shortcut_of(request: Request, traces: Sequence[Trace], folder: Path) -> Shortcut:
    """The shortcut that was asked for, fitted on the clips of the traces where it has weights."""
    kind = request.shortcut
    if kind not in FITTED:
        return Shortcut.model_validate({"kind": kind})
    predictor, windows = shared_predictor(request.choice), fewest_windows(traces)
    names = [trace.name for trace in traces]
    decides = [windows.model_dump_json(), *(request.source.listing(name) for name in names)]
    folder = folder / hashlib.sha256("".join(decides).encode()).hexdigest()[:12]
    frames = routed_frames(predictor, request.source, names, windows, folder / "frames", FIT_FRAMES)
    return fit_shortcut(kind, predictor, frames, folder, Training()).shortcut


def cost_of(request: Request, name: str, shortcut: Shortcut, folder: Path) -> tuple[Cost, Cost]:
    """Operations and time by windows and keys, measured once on a clip."""
    path = folder / f"cost-{request.base}-{shortcut.kind}.{_clip_id(request, name)}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Cost(**found["operations"]), Cost(**found["time"])
    except (OSError, ValueError, KeyError, TypeError):
        predictor = shared_predictor(request.choice)
        with request.choice.autocast(predictor.device.type):
            clip = request.source.open(name)
            operations, seconds = measure_cost(predictor, clip, BUILTIN[request.base], shortcut)
        both = {"operations": asdict(operations), "time": asdict(seconds)}
        write_text(path, json.dumps(both, indent=1))
        return operations, seconds


def afford(
    request: Request,
    search: Sequence[str],
    promised: Sequence[str],
    lengths: Mapping[str, int],
    folder: Path,
) -> tuple[int, int]:
    """How many settings are tried and tested; measured once on the first clip where there is a budget.

    One is tested where a speedup is asked for: it is taken whatever it loses.

    Parameters
    ----------
    lengths
        Frames of each clip: a frame takes as long as one of the clip that is measured.
    """
    one_alone = request.target_speedup is not None
    if request.budget is None:
        return TRIED, 1 if one_alone else TESTED
    path = folder / f"seconds.{_clip_id(request, search[0])}.json"
    try:
        one = float(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        predictor = shared_predictor(request.choice)
        start = time.perf_counter()
        with request.choice.autocast(predictor.device.type):
            capture(predictor, request.source.open(search[0]))
        one = time.perf_counter() - start
        write_text(path, json.dumps(one))
    counts = [(m, 1 if one_alone else -(-m // 2)) for m in range(2, 3 * TRIED)]
    searched, held = (
        one / lengths[search[0]] * sum(lengths[name] for name in names)
        for names in (search, promised)
    )
    affordable = [
        (tried, tested)
        for tried, tested in counts
        if searched * (2 + 1 + tried) + held * (1 + tested) <= request.budget  # 2: of the drift
    ]
    tried, tested = affordable[-1] if affordable else (1, 1)
    say(f"The budget allows {tried} settings to be tried and {tested} to be tested.")
    return tried, tested


def _clip_id(request: Request, name: str) -> str:
    """Name of a clip's file: another one where the clip was changed."""
    return f"{name}.{request.source.listing(name)[:12]}"
