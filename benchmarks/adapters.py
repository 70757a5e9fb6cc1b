"""The kinds of adapter on clips that they were not fitted on: errors of features, J&F, cost.

    python benchmarks/adapters.py DAVIS-train --out benchmarks/adapters.json [--davis DAVIS-dev]

`DAVIS-train` holds JPEGImages/480p, Annotations/480p, train.txt (fitted on, with made clips) and calibrate.txt
(judged on). All clips of `--davis` are judged on too, by J&F alone. What is done stays in `--work`; killed and started
again, it goes on there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

os.environ.setdefault("TQDM_DISABLE", "1")

from probes.estimates import interval
from probes.files import write_text
from probes.models import fingerprint
from sparsity.calibration.adapter import FITTED, KINDS, Training, fit_adapter, judge_adapters
from sparsity.calibration.routed_frames import FIT_FRAMES, RoutedFrames, routed_frames
from sparsity.clips.sources import ClipSource
from sparsity.evaluation.evaluate import ClipWork
from sparsity.evaluation.meters import counted_flops
from sparsity.profile import Profile
from sparsity.techniques.adapter import Adapter, AdapterFunction, load_adapter
from sparsity.techniques.routing import Routing
from sparsity.work.model import ModelChoice, shared_predictor
from sparsity.work.spread import Spread, map_clips

ROUTING = Routing()
"""The paper's routing, without a guard: what is not computed goes through the adapter on every routed frame."""

NOTE = (
    "demo model: illustrates the method; evidence about SAM 2 itself needs an official checkpoint"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("--davis", type=Path)
    parser.add_argument("--made", type=int, default=10)
    parser.add_argument("--fit-clips", type=int, help="take the first so many of train.txt")
    parser.add_argument("--clips", type=int, help="take the first so many of calibrate.txt")
    parser.add_argument("--updates", type=int, default=Training.updates)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--work", type=Path, default=Path("adapters.work"))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    choice = ModelChoice(given.model, checkpoint=given.checkpoint, dtype="float32")
    predictor = shared_predictor(choice)
    model = fingerprint(predictor)
    source = clips_of(given.train)
    fitted, judged = (
        (given.train / name).read_text(encoding="utf-8").split()[:count]
        for name, count in (("train.txt", given.fit_clips), ("calibrate.txt", given.clips))
    )
    work = given.work / model.removeprefix("sha256:")[:12]

    def frames_of(names: Sequence[str], most: int | None) -> RoutedFrames:
        return routed_frames(predictor, source, names, ROUTING, work, most)

    fit_on = frames_of(source.names(given.made, fitted), FIT_FRAMES)
    training = Training(updates=given.updates)
    fits = {
        kind: fit_adapter(kind, predictor, fit_on, work / "fitted", training) for kind in FITTED
    }
    adapters = {kind: fits[kind].adapter if kind in fits else Adapter(kind=kind) for kind in KINDS}
    channels = fit_on[0].entry.shape[1]
    functions = {k: load_adapter(s, channels, predictor.device) for k, s in adapters.items()}
    errors = {
        name: judge_adapters(predictor, frames_of([name], None), functions) for name in judged
    }
    errors = {name: found for name, found in errors.items() if found}
    quality = run_all(source, judged, adapters, choice, work / "runs")
    rows = {
        kind: {
            **about(kind, errors, quality),
            **cost(functions[kind], fit_on),
            "seconds_to_fit": fits[kind].seconds if kind in fits else 0.0,
        }
        for kind in KINDS
    }
    if given.davis is not None:
        dev = clips_of(given.davis)
        found = run_all(dev, dev.names(), adapters, choice, work / "davis")
        for kind in KINDS:
            rows[kind]["davis"] = about_runs(kind, found)
    report = {
        "model": model,
        "note": NOTE if given.model == "demo" else "",
        "threads": torch.get_num_threads(),
        "windows": ROUTING.model_dump(),
        "fitted_on": {"clips": [*fitted, f"{given.made} made clips"], "frames": len(fit_on)},
        "judged_on": judged,
        "training": {**asdict(training), "loss": fits["bottleneck"].loss},
        "clips": errors,
        "rows": rows,
    }
    write_text(given.out, json.dumps(report, indent=1))
    for kind, row in rows.items():
        print(kind, row)


def clips_of(folder: Path) -> ClipSource:
    """Clips of a folder in DAVIS' layout."""
    return ClipSource(folder / "JPEGImages" / "480p", folder / "Annotations" / "480p")


def run_all(
    source: ClipSource,
    names: Sequence[str],
    adapters: Mapping[str, Adapter],
    choice: ModelChoice,
    folder: Path,
) -> dict[str, Any]:
    """Track clips with every adapter; compared with the same mathematics where all windows are computed."""
    profiles = tuple(
        Profile(name=kind, exact=True, routing=ROUTING, adapter=adapter)
        for kind, adapter in adapters.items()
    )
    settings = {"profiles": [profile.to_json() for profile in profiles]}
    work = ClipWork(source, choice, profiles, dense="exact")
    summary = map_clips(work, list(names), folder, settings, Spread())
    summary.check()
    return summary.results


def about(kind: str, errors: Mapping[str, Any], quality: Mapping[str, Any]) -> dict[str, Any]:
    """Feature errors of an adapter, what they are less identity's, and what its runs lost."""
    row: dict[str, Any] = {}
    for name in ("stage3", "remembered"):
        own, plain = (np.array([e[k][name] for e in errors.values()]) for k in (kind, "identity"))
        row[f"{name}_error"] = mean_and_interval(own)
        row[f"{name}_less_identity"] = mean_and_interval(own - plain)
    return {**row, **about_runs(kind, quality)}


def about_runs(kind: str, quality: Mapping[str, Any]) -> dict[str, Any]:
    """J&F, loss against the dense run and share of windows, over clips."""
    runs = [clip[kind] for clip in quality.values()]
    found = {
        "j_and_f": [run["quality"]["j_and_f"] for run in runs],
        "loss": [run["loss"] for run in runs],
        "windows": [run["quality"]["windows_kept"] for run in runs],
    }
    return {name: mean_and_interval(np.array(values)) for name, values in found.items()}


def mean_and_interval(values: np.ndarray) -> list[float]:
    """Mean over clips, and the ends of its interval."""
    return [round(float(v), 4) for v in (values.mean(), *interval(values))]


def cost(function: AdapterFunction | None, frames: RoutedFrames) -> dict[str, float]:
    """Multiplications and milliseconds of one frame."""
    frame = frames[0]
    through = function or (lambda x: x + frame.cached)
    with torch.inference_mode():
        with counted_flops() as counter:
            through(frame.entry)
        times = []
        for _ in range(50):
            start = time.perf_counter()
            through(frame.entry)
            times.append(time.perf_counter() - start)
    return {"macs": counter.get_total_flops() // 2, "ms": round(1000 * statistics.median(times), 4)}


if __name__ == "__main__":
    main()
