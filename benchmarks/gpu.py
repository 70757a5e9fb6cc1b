"""Measure on a CUDA device: {stock, ours} x {eager, compiled}, bfloat16, real architectures with random weights.

    python benchmarks/gpu.py                            Large and Base+, one object and four
    python benchmarks/gpu.py sam2.1-large --objects 4   this case alone
    python benchmarks/gpu.py sam2.1-large --compiled    the compiled rows, after minutes of compilation
    python benchmarks/gpu.py demo --cpu                 try the script without a device

Every case is a process of its own and a file, ``benchmarks/gpu/CASE.json``. Times are CUDA events around whole
frames, interleaved; memory is the peak of torch's allocator. Besides, a few routed frames are watched for what makes the
host wait for the device: torch's own warnings say where, a profiler trace (``CASE-trace.json`` with --trace) when.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from sparsity.acceleration.build import accelerate
from sparsity.acceleration.compiled_predictor import without_autotuned_products
from sparsity.acceleration.encoder import window_grid
from sparsity.demo.clips import make_clip
from sparsity.evaluation.bench import (
    FULL_BANK,
    STOCK,
    UNTIMED_ON_GPU,
    Material,
    Variant,
    bench,
    compiled_cells,
)
from sparsity.evaluation.environment import environment
from sparsity.evaluation.routes import fixed_windows
from sparsity.evaluation.rows import rows
from sparsity.options import ModelChoice
from sparsity.profile import Profile
from sparsity.profiles import BUILTIN
from sparsity.runs import write_text

FOLDER = Path(__file__).with_name("gpu")
WINDOWS = {"sam2.1-large": "4/16", "sam2.1-base-plus": "6/25"}
LAUNCHING = "cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cudaGraphLaunch"
SYNCHRONISING = "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"


def without_graphs(name: str) -> Profile:
    """A built-in profile that launches kernel by kernel."""
    profile = BUILTIN[name]
    techniques = {**profile.techniques, "cuda_graphs": False}
    update = {"name": f"{name} without graphs", "techniques": techniques}
    return profile.model_copy(update=update)


def profiles() -> list[Profile]:
    """Ours: the rewrites alone, the paper's methods with them, and the recommended techniques."""
    return [
        without_graphs("exact"), without_graphs("paper"),
        *(BUILTIN[name] for name in ("exact", "paper", "recommended")),
    ]  # fmt: skip


def material(frames: int, objects: int) -> Material:
    """A made clip; the weights are random, so what it shows doesn't matter."""
    clip = make_clip("smooth", 1, frames, (270, 480), objects)
    ids = range(1, objects + 1)
    return Material(clip.frames, {i: clip.masks[0] == i for i in ids}, "made clip smooth/1")


def cells(choice: ModelChoice, objects: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the rows of one model and one number of objects."""
    stock = choice.build()
    route = fixed_windows(WINDOWS.get(choice.model), window_grid(accelerate(stock, "dense")))
    shown = material(FULL_BANK + UNTIMED_ON_GPU + options.frames, objects)
    variants = [Variant(STOCK, None), *(Variant(p.name, p) for p in profiles())]
    variants += compiled_cells(stock) if options.compiled else []
    if options.rows:
        variants = [variant for variant in variants if variant.name in options.rows]
    found = bench(
        stock, variants, shown, timed=options.frames, route=route, share_bank=True,
        autocast=lambda: choice.autocast(stock.device.type),
    )  # fmt: skip
    measured = rows(variants, found, objects, lambda variant: "random weights: no quality")
    return [
        {"model": choice.model, "objects": objects, "windows": route.said}
        | run.model_dump(mode="json", exclude={"profile"})
        for run in measured
    ]


def waits(choice: ModelChoice, objects: int, trace: Path | None) -> dict[str, Any]:
    """Watch a few routed frames: how often a frame makes the host wait, and where in the code."""
    watched = 4
    stock = choice.build()
    before = FULL_BANK + UNTIMED_ON_GPU
    fast, shown = accelerate(stock, "paper"), material(before + watched, objects)
    device = stock.device
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
    with torch.inference_mode(), choice.autocast(device.type):
        state = fast.init_state(shown.frames)
        state["images"] = torch.stack([state["images"][t] for t in range(len(shown.frames))])
        route, rule = (
            fixed_windows(WINDOWS.get(choice.model), window_grid(fast)),
            fast.profile.windows,
        )
        assert rule is not None, "the paper's profile routes"
        fast.choose_windows(state, route.chooser(rule))
        for object_id, mask in shown.objects.items():
            fast.add_new_mask(state, 0, object_id, mask)
        frames = fast.propagate_in_video(state)
        for _ in range(before):
            next(frames)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with torch.profiler.profile(activities=activities) as profiler:
                if cuda:  # not while the profiler starts or ends, which waits too
                    torch.cuda.set_sync_debug_mode("warn")
                for _ in range(watched):
                    next(frames)
                if cuda:
                    torch.cuda.set_sync_debug_mode("default")
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    events = {event.key: event.count for event in profiler.key_averages()}
    waited = events.get("cudaEventSynchronize", 0)  # for cues, which torch does not warn of
    places = Counter(
        f"{Path(w.filename).name}:{w.lineno}" for w in said if "called a sync" in str(w.message)
    )
    return {
        "model": choice.model,
        "objects": objects,
        "frames": watched,
        "waits_per_frame": (sum(places.values()) + waited) / watched if cuda else None,
        "places": dict(places),
        "runtime_calls_per_frame": {n: events.get(n, 0) / watched for n in SYNCHRONISING},
        "scalars_read_per_frame": events.get("aten::_local_scalar_dense", 0) / watched,
        "launches_per_frame": {name: events.get(name, 0) / watched for name in LAUNCHING},
    }


def same_bits(choice: ModelChoice, objects: int) -> dict[str, bool]:
    """Whether masks are bit for bit the same with graphs as without, and not with fewer windows."""
    stock, shown = choice.build(), material(FULL_BANK + UNTIMED_ON_GPU + 4, objects)
    grid = window_grid(accelerate(stock, "dense"))
    share = WINDOWS.get(choice.model)

    def last_masks(profile: Profile, windows: str | None) -> torch.Tensor:
        fast = accelerate(stock, profile)
        assert fast.profile.windows is not None, "these profiles route"
        with torch.inference_mode(), choice.autocast(stock.device.type):
            state = fast.init_state(shown.frames)
            route = fixed_windows(windows, grid)
            fast.choose_windows(state, route.chooser(fast.profile.windows))
            for object_id, mask in shown.objects.items():
                fast.add_new_mask(state, 0, object_id, mask)
            return [masks.clone() for _, _, masks in fast.propagate_in_video(state)][-1]

    found = {}
    for name in ("paper", "recommended"):
        expected = last_masks(without_graphs(name), share)
        found[name] = torch.equal(last_masks(BUILTIN[name], share), expected)
        fewer = last_masks(BUILTIN[name], f"1/{grid.count}")
        found[f"{name}, fewer windows"] = torch.equal(fewer, expected)
    return found


def measure(model: str, objects: int, options: argparse.Namespace) -> None:
    """Measure a case and write its file."""
    device = "cpu" if options.cpu else "cuda"
    weights = None if model == "demo" else "random"
    choice = ModelChoice(
        model, weights=weights, image_size=options.size, device=device, dtype="bfloat16"
    )
    name = f"{model.removeprefix('sam2.1-')}-{objects}-object{'s' * (objects > 1)}"
    name += "-compiled" * options.compiled
    options.out.mkdir(parents=True, exist_ok=True)
    trace = options.out / f"{name}-trace.json" if options.trace else None
    made: dict[str, Any] = {"environment": environment(torch.device(device), "bfloat16")}
    if not options.compiled:
        made["waits"] = waits(choice, objects, trace)
        made["same bits"] = same_bits(choice, objects)
        print(json.dumps([made["waits"], made["same bits"]], indent=1), flush=True)
    with without_autotuned_products():
        made["rows"] = cells(choice, objects, options)
    write_text(options.out / f"{name}.json", json.dumps(made, indent=1) + "\n")
    for row in made["rows"]:
        median, ratio = row["ms_per_frame"]["median"], row["ratio"]["median"]
        print(f"{name} {row['name']}: {median:.1f} ms, {ratio}x", flush=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="*", default=list(WINDOWS))
    parser.add_argument("--size", type=int, help="side of the model's input in pixels")
    parser.add_argument("--objects", type=int, action="append", help="repeat; default: 1 and 4")
    parser.add_argument("--frames", type=int, default=20, help="that count")
    parser.add_argument("--compiled", action="store_true", help="add compiled rows; check nothing")
    parser.add_argument("--rows", nargs="+", help="these alone; the first is compared with")
    parser.add_argument("--cpu", action="store_true", help="try the script without a device")
    parser.add_argument("--trace", action="store_true", help="write the profiler's trace too")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        print("no CUDA device is here; run this on a machine that has one, or try it with --cpu")
        return 2
    fresh = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with fresh as process:
        for model in options.model:
            for objects in options.objects or (1, 4):
                process.submit(measure, model, objects, options).result()
    return 0


if __name__ == "__main__":
    sys.exit(main())
