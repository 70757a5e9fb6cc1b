"""What probing every site costs on Large at 1024 pixels, and how close the default row sample comes.

Run ``python benchmarks/probing.py --out benchmarks/results/probing.json``. Weights are random: time and
memory do not depend on them, attention does, so the sample's accuracy is that of random attention, and of
the demo model at 1024 pixels (which it was not trained for).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from probes.models import build_predictor
from probes.observing import AttentionCall, observe
from probes.recording import begin_video
from probes.streaming import QUERY_ROWS, AttentionStatistics, measure, slot_shares
from probes.video import open_video
from sparsity.evaluation.environment import environment
from sparsity.runs import write_text


def clip(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """A made clip uint8 [T, 480, 854, 3] of an ellipse that drifts, and its first mask."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 20, 3), dtype=np.uint8))
    still = np.array(coarse.resize((854, 480), Image.Resampling.BICUBIC))
    y, x = np.mgrid[:480, :854]
    masks = [((y - 240) / 90) ** 2 + ((x - 300 - 6 * t) / 120) ** 2 < 1 for t in range(frames)]
    video = np.stack([np.where(mask[..., None], (230, 200, 90), still) for mask in masks])
    return video.astype(np.uint8), masks[0]


def begin(predictor: Any, frames: int) -> dict[str, Any]:
    video, mask = clip(frames)
    state = begin_video(predictor, open_video(video))
    predictor.add_new_mask(state, 0, 1, mask)
    return state


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cost(predictor: Any, frames: int, warm: int) -> dict[str, Any]:
    """Time of probed and plain frames, in turn on two states of the same clip; peak memory before and after."""
    runs = {
        name: predictor.propagate_in_video(begin(predictor, frames)) for name in ("plain", "probed")
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, float] = {}
    statistics_ = AttentionStatistics()
    # memory first: both states' frames without a probe, then with one
    for frame in range(frames):
        for name, run in runs.items():
            probing = name == "probed" and frame >= warm
            start = time.perf_counter()
            if probing:
                with observe(predictor, lambda call: (statistics_.add(call), None)[1], "*"):
                    next(run)
            else:
                next(run)
            taken = time.perf_counter() - start
            if frame >= warm:
                seconds[name].append(taken)
            if frame == warm - 1:
                peaks["before"] = peak_mb()
    peaks["after"] = peak_mb()
    ratios = [b / a for a, b in zip(seconds["plain"], seconds["probed"], strict=True)]
    return {
        "ms_plain": round(1000 * statistics.median(seconds["plain"]), 1),
        "ms_probed": round(1000 * statistics.median(seconds["probed"]), 1),
        "ratio": {
            "median": round(statistics.median(ratios), 3),
            "low": round(min(ratios), 3),
            "high": round(max(ratios), 3),
        },
        "extra_memory_mb": round(peaks["after"] - peaks["before"], 1),
        "frames": len(ratios),
    }


def accuracy(predictor: Any, frames: int, sites: list[str]) -> dict[str, Any]:
    """Largest differences of the default sample to all rows, over calls of the last frame."""
    worst = {"entropy_relative": 0.0, "top10_relative": 0.0, "slots_absolute": 0.0, "mass_tv": 0.0}
    where = dict.fromkeys(worst, "")

    def note(name: str, value: float, site: str) -> None:
        if value > worst[name]:
            worst[name], where[name] = round(value, 4), site

    def compare(call: AttentionCall) -> None:
        if call.moment.frame != frames - 1:
            return
        sample, whole = measure(call), measure(call, None)
        for name in ("entropy", "top10"):
            a, b = sample.means[name].mean(), whole.means[name].mean()
            note(f"{name}_relative", float((a - b).abs() / b), call.site)
        a, b = (found.mass / found.mass.sum(-1, keepdim=True) for found in (sample, whole))
        note("mass_tv", float((a - b).abs().sum(-1).mean() / 2), call.site)
        if call.where is not None and call.where.kind == "cross":
            shares = slot_shares(sample, call), slot_shares(whole, replace(call))
            note("slots_absolute", float((shares[0] - shares[1]).abs().max()), call.site)

    with observe(predictor, compare, sites):
        list(predictor.propagate_in_video(begin(predictor, frames)))
    return {"query_rows": QUERY_ROWS, "worst": worst, "at": where}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="sam2.1-large")
    parser.add_argument("--frames", type=int, default=7)
    parser.add_argument("--part", choices=["cost", "accuracy", "both"], default="both")
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    with torch.inference_mode():
        if options.part != "accuracy":
            large = build_predictor(options.model, weights="random", device="cpu")
            found["cost"] = {"model": f"{options.model}, random weights, 1024 px, float32"}
            found["cost"] |= cost(large, options.frames, warm=3)
            found["environment"] = environment(torch.device("cpu"), "float32")
        if options.part != "cost":
            sites = ["encoder.stage3.*", "memory.*", "decoder.*"]
            found["accuracy"] = {}
            tiny = build_predictor("sam2.1-tiny", weights="random", device="cpu")
            found["accuracy"]["sam2.1-tiny, random weights, 1024 px"] = accuracy(tiny, 3, sites)
            demo = build_predictor("demo", image_size=1024, device="cpu")
            found["accuracy"]["demo model at 1024 px"] = accuracy(demo, 3, sites)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
