"""Measure on a CUDA device: {stock, ours} x {eager, compiled}, Large and Base+, bfloat16, one and four objects.

    python benchmarks/gpu.py                     write benchmarks/gpu.json
    python benchmarks/gpu.py --cpu --model demo  try the script on a CPU, at a small size

Times are CUDA events around whole frames, interleaved; memory is the peak of torch's allocator. Besides, a
routed frame is watched for what makes the host wait for the device: torch's own warnings say where, a profiler
trace (``benchmarks/gpu-trace.json`` with --trace) shows when. Without a device the file says so.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from probes import build_predictor
from sparsity.acceleration.build import accelerate
from sparsity.acceleration.encoder import window_grid
from sparsity.demo.clips import make_clip
from sparsity.evaluation.bench import FULL_BANK, STOCK, UNTIMED, Material, Variant, bench
from sparsity.evaluation.environment import environment
from sparsity.evaluation.routes import fixed_windows
from sparsity.evaluation.rows import rows
from sparsity.options import ModelChoice
from sparsity.profile import Profile
from sparsity.profiles import BUILTIN
from sparsity.runs import write_text

HERE = Path(__file__).parent
WINDOWS = {"sam2.1-large": "4/16", "sam2.1-base-plus": "6/25"}
SYNCHRONISING = "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"


def profiles() -> list[Profile]:
    """Ours: the rewrites alone, the paper's methods with them, and the recommended techniques."""
    return [BUILTIN[name] for name in ("exact", "paper", "recommended")]


def material(frames: int, objects: int) -> Material:
    """A made clip; the weights are random, so what it shows doesn't matter."""
    clip = make_clip("smooth", 1, frames, (270, 480), objects)
    ids = range(1, objects + 1)
    return Material(clip.frames, {i: clip.masks[0] == i for i in ids}, "made clip smooth/1")


def cells(choice: ModelChoice, objects: int, frames: int) -> list[dict[str, Any]]:
    """Measure all rows of one model; a cell that cannot be had says why."""
    stock = choice.build()
    route = fixed_windows(WINDOWS.get(choice.model), window_grid(accelerate(stock, "dense")))
    shown = material(FULL_BANK + UNTIMED + frames, objects)
    variants = [Variant(STOCK, None), *(Variant(p.name, p) for p in profiles())]
    missing = {"paper, compiled": "the accelerated predictor runs eagerly here"}
    if stock.device.type == "cuda":
        compiled = build_predictor(
            choice.model, weights=choice.weights, device=stock.device, vos_optimized=True
        )
        variants.append(Variant("stock, compiled", None, predictor=compiled))
    else:
        missing["stock, compiled"] = "no CUDA device: only tried on a CPU"
    found = bench(
        stock, variants, shown, timed=frames, route=route, share_bank=True,
        autocast=lambda: choice.autocast(stock.device.type),
    )  # fmt: skip
    measured = rows(variants, found, objects, lambda variant: "random weights: no quality")
    made = [
        {"model": choice.model, "objects": objects, "windows": route.said}
        | run.model_dump(mode="json", exclude={"profile"})
        for run in measured
    ]
    return made + [
        {"model": choice.model, "objects": objects, "name": name, "why": why}
        for name, why in missing.items()
    ]


def waits(choice: ModelChoice, objects: int, trace: Path | None) -> dict[str, Any]:
    """Watch a few routed frames: how often a frame makes the host wait, and where in the code."""
    watched = 4
    stock = choice.build()
    fast, shown = accelerate(stock, "paper"), material(FULL_BANK + UNTIMED + watched, objects)
    device = stock.device
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
    with torch.inference_mode(), choice.autocast(device.type):
        state = fast.init_state(shown.frames)
        state["images"] = torch.stack([state["images"][t] for t in range(len(shown.frames))])
        windows = fixed_windows(WINDOWS.get(choice.model), window_grid(fast)).choose
        fast.choose_windows(state, windows)
        for object_id, mask in shown.objects.items():
            fast.add_new_mask(state, 0, object_id, mask)
        frames = fast.propagate_in_video(state)
        for _ in range(FULL_BANK + UNTIMED):
            next(frames)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if cuda:
                torch.cuda.set_sync_debug_mode("warn")
            with torch.profiler.profile(activities=activities) as profiler:
                for _ in range(watched):
                    next(frames)
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    events = {event.key: event.count for event in profiler.key_averages()}
    places = Counter(
        f"{Path(w.filename).name}:{w.lineno}" for w in said if "synchronizing" in str(w.message)
    )
    return {
        "model": choice.model,
        "objects": objects,
        "frames": watched,
        "waits_per_frame": sum(places.values()) / watched if cuda else None,
        "places": dict(places),
        "runtime_calls_per_frame": {n: events.get(n, 0) / watched for n in SYNCHRONISING},
        "scalars_read_per_frame": events.get("aten::_local_scalar_dense", 0) / watched,
        "launches_per_frame": events.get("cudaLaunchKernel", 0) / watched if cuda else None,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", action="append", help="repeat; default: Large and Base+")
    parser.add_argument("--size", type=int, help="side of the model's input in pixels")
    parser.add_argument("--objects", type=int, action="append", help="repeat; default: 1 and 4")
    parser.add_argument("--frames", type=int, default=20, help="that count")
    parser.add_argument("--cpu", action="store_true", help="try the script without a device")
    parser.add_argument("--trace", action="store_true", help="write the profiler's trace too")
    parser.add_argument("--out", type=Path, default=HERE / "gpu.json")
    options = parser.parse_args()
    device = "cpu" if options.cpu else "cuda"
    if not options.cpu and not torch.cuda.is_available():
        why = "no CUDA device was there: nothing measured"
        write_text(options.out, json.dumps({"rows": [], "waits": [], "why": why}, indent=1) + "\n")
        print(why)
        return
    made: dict[str, Any] = {"environment": environment(torch.device(device), "bfloat16")}
    made |= {"rows": [], "waits": []}
    for model in options.model or list(WINDOWS):
        weights = None if model == "demo" else "random"
        choice = ModelChoice(
            model, weights=weights, image_size=options.size, device=device, dtype="bfloat16"
        )
        for objects in options.objects or (1, 4):
            made["rows"] += cells(choice, objects, options.frames)
            trace = options.out.with_name(f"{options.out.stem}-trace-{model}-{objects}.json")
            made["waits"].append(waits(choice, objects, trace if options.trace else None))
    write_text(options.out, json.dumps(made, indent=1) + "\n")
    for row in made["rows"]:
        time = row.get("ms_per_frame")
        told = row["why"] if time is None else f"{time['median']:.1f} ms {row['ratio']['median']}x"
        print(f"{row['model']} {row.get('objects', '')} {row['name']}: {told}")
    print(json.dumps(made["waits"], indent=1))


if __name__ == "__main__":
    main()
