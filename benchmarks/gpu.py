"""Measure on a CUDA device: stock sam2 (also compiled) and ours, bfloat16, real architectures with random weights.

    python benchmarks/gpu.py                            Large and Base+, one object and four
    python benchmarks/gpu.py sam2.1-large --objects 4   this case alone
    python benchmarks/gpu.py sam2.1-large --compiled    compiled sam2 too, after minutes of compilation
    python benchmarks/gpu.py sam2.1-large --end-to-end  file in, masks out at 1080p instead, beside the model alone
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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from probes.files import write_text
from sparsity.acceleration.build import accelerate
from sparsity.acceleration.model.encoder import window_grid
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.clips.sources import Clip, made_clip
from sparsity.evaluation.benchmark import rows
from sparsity.evaluation.compiled import without_autotuned_products
from sparsity.evaluation.end_to_end import run_end_to_end
from sparsity.evaluation.end_to_end import table as end_to_end_table
from sparsity.evaluation.interleaved import (
    FULL_BANK,
    STOCK,
    UNTIMED_ON_GPU,
    Variant,
    bench,
    compiled_row,
    fixed_windows,
)
from sparsity.evaluation.meters import environment
from sparsity.profile import BUILTIN, Profile
from sparsity.work.model import ModelChoice

FOLDER = Path(__file__).with_name("gpu")
WINDOWS = {"sam2.1-large": "4/16", "sam2.1-base-plus": "6/25"}
LAUNCHING = "cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cudaGraphLaunch"
SYNCHRONISING = "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"


def without_graphs(name: str) -> Profile:
    """A built-in profile that launches kernel by kernel."""
    return BUILTIN[name].model_copy(update={"name": f"{name} without graphs", "graphs": False})


def profiles() -> list[Profile]:
    """Ours: the rewrites alone, the paper's methods with them, and the recommended techniques."""
    return [
        without_graphs("exact"), without_graphs("paper"),
        *(BUILTIN[name] for name in ("exact", "paper", "recommended")),
    ]  # fmt: skip


def routed(fast: EfficientSAM2VideoPredictor, clip: Clip, windows: str | None) -> Iterator[Any]:
    """Track a clip with fixed windows; its frames are decoded before."""
    assert fast.profile.routing is not None, "these profiles route"
    route = fixed_windows(windows, window_grid(fast))
    state = fast.init_state(clip.video)
    state["images"] = torch.stack([state["images"][t] for t in range(clip.num_frames)])
    fast.choose_windows(state, route.chooser(fast.profile.routing))
    clip.give_to(fast, state)
    return fast.propagate_in_video(state)


def timed(choice: ModelChoice, objects: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the rows of one model and one number of objects."""
    stock = choice.build()
    route = fixed_windows(WINDOWS.get(choice.model), window_grid(stock))
    clip = made_clip(FULL_BANK + UNTIMED_ON_GPU + options.frames, objects)
    variants = [Variant(STOCK, None), *(Variant(p.name, p) for p in profiles())]
    variants += [compiled_row(stock)] if options.compiled else []
    if options.rows:
        variants = [variant for variant in variants if variant.name in options.rows]
    found = bench(
        stock, variants, clip, timed=options.frames, route=route, share_bank=True,
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
    fast, clip = accelerate(stock, "paper"), made_clip(before + watched, objects)
    device = stock.device
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
    with torch.inference_mode(), choice.autocast(device.type):
        frames = routed(fast, clip, WINDOWS.get(choice.model))
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
    stock, clip = choice.build(), made_clip(FULL_BANK + UNTIMED_ON_GPU + 4, objects)
    share, fewest = WINDOWS.get(choice.model), f"1/{window_grid(stock).count}"

    def last_masks(profile: Profile, windows: str | None) -> torch.Tensor:
        fast = accelerate(stock, profile)
        with torch.inference_mode(), choice.autocast(stock.device.type):
            return [masks.clone() for _, _, masks in routed(fast, clip, windows)][-1]

    found = {}
    for name in ("paper", "recommended"):
        expected = last_masks(without_graphs(name), share)
        found[name] = torch.equal(last_masks(BUILTIN[name], share), expected)
        fewer = last_masks(BUILTIN[name], fewest)
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
    document: dict[str, Any] = {"environment": environment(torch.device(device), "bfloat16")}
    if not options.compiled:
        document["waits"] = waits(choice, objects, trace)
        document["same bits"] = same_bits(choice, objects)
        print(json.dumps([document["waits"], document["same bits"]], indent=1), flush=True)
    with without_autotuned_products():
        document["rows"] = timed(choice, objects, options)
    write_text(options.out / f"{name}.json", json.dumps(document, indent=1) + "\n")
    for row in document["rows"]:
        median, ratio = row["ms_per_frame"]["median"], row["ratio"]["median"]
        print(f"{name} {row['name']}: {median:.1f} ms, {ratio}x", flush=True)


def measure_end_to_end(model: str, options: argparse.Namespace) -> None:
    """Measure file in, masks out, and write the file."""
    weights = None if model == "demo" else "random"
    device = "cpu" if options.cpu else "cuda"
    choice = ModelChoice(
        model, weights=weights, image_size=options.size, device=device, dtype="bfloat16"
    )
    rows = ("exact", "paper", "recommended")
    result = run_end_to_end(rows, choice, frames=options.frames, sizes=("1080p",), rounds=1)
    write_text(
        options.out / f"{model.removeprefix('sam2.1-')}-end-to-end.json", result.to_json() + "\n"
    )
    print(end_to_end_table(result), flush=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="*", default=list(WINDOWS))
    parser.add_argument("--size", type=int, help="side of the model's input in pixels")
    parser.add_argument("--objects", type=int, action="append", help="repeat; default: 1 and 4")
    parser.add_argument("--frames", type=int, default=20, help="that count")
    parser.add_argument(
        "--compiled", action="store_true", help="add a row of compiled sam2; check nothing"
    )
    parser.add_argument("--end-to-end", action="store_true", help="file in, masks out, instead")
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
            if options.end_to_end:
                process.submit(measure_end_to_end, model, options).result()
                continue
            for objects in options.objects or (1, 4):
                process.submit(measure, model, objects, options).result()
    return 0


if __name__ == "__main__":
    sys.exit(main())
