"""Measure on a CUDA device: stock sam2 (also compiled) and ours, bfloat16, real architectures with random weights.

    python benchmarks/gpu.py --minutes 12               all parts, the ones that matter most first
    python benchmarks/gpu.py --parts rows --objects 4   these alone
    python benchmarks/gpu.py sam2.1-large --parts compiled end-to-end
    python benchmarks/gpu.py demo --size 128 --frames 2 --device cpu --out /tmp/gpu    try the script without a GPU

=============  ============================================================================================
part           measures, each model in turn
=============  ============================================================================================
``rows``       stock and ours, kernel by kernel and as graphs: CUDA events around whole frames, interleaved
``waits``      of some routed frames: launches, what makes the host wait for the device, the host's own time
``same bits``  whether graphs change masks
``end-to-end`` file in, masks out at 1080p, beside the model alone, with one object
``compiled``   sam2 as it compiles itself, beside the best of ours, with one object
=============  ============================================================================================

A part is a process of its own, which is ended when its time or that of all is up (a compilation that takes too long, say), and a
file in ``OUT/parts``: the same command again goes on with the parts that are missing. What there is of a case is put together
in ``OUT/CASE.json``. Memory is the peak of torch's allocator.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from probes.files import write_text
from probes.tracking import without_bar
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
    Variant,
    bench,
    compiled_row,
    fixed_windows,
    untimed,
)
from sparsity.evaluation.meters import environment
from sparsity.profile import BUILTIN, Profile
from sparsity.work.model import ModelChoice
from sparsity.work.store import held, keep

FOLDER = Path(__file__).with_name("gpu")
WINDOWS = {"sam2.1-large": "4/16", "sam2.1-base-plus": "6/25"}
KINDS = "rows", "waits", "same bits", "end-to-end", "compiled"
OURS = "exact", "paper", "recommended"
BEST = "paper", "recommended"
MANY = 4
LONGEST = 250.0
"""Seconds of a part; what takes longer is ended."""

LAUNCHING = "cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cudaGraphLaunch"
SYNCHRONISING = "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"


def without_graphs(name: str) -> Profile:
    """A built-in profile that launches kernel by kernel."""
    return BUILTIN[name].model_copy(update={"name": f"{name} without graphs", "graphs": False})


def profiles() -> list[Profile]:
    """Ours: the rewrites alone, the paper's methods with them, and the recommended techniques."""
    return [
        without_graphs("exact"), without_graphs("paper"),
        *(BUILTIN[name] for name in OURS),
    ]  # fmt: skip


def routed(fast: EfficientSAM2VideoPredictor, clip: Clip, windows: str | None) -> Iterator[Any]:
    """Track a clip with fixed windows; its frames are decoded before."""
    assert fast.profile.routing is not None, "these profiles route"
    route = fixed_windows(windows, window_grid(fast))
    state = fast.init_state(clip.video)
    state["images"] = torch.stack([state["images"][t] for t in range(clip.num_frames)])
    fast.choose_windows(state, route.chooser(fast.profile.routing))
    clip.give_to(fast, state)
    return without_bar(fast.propagate_in_video(state))


@dataclass(frozen=True)
class Part:
    """What one process measures.

    Attributes
    ----------
    size
        Side of the model's input in pixels; None: the model's own.
    frames
        That count.
    """

    kind: str
    model: str
    objects: int
    size: int | None
    frames: int
    device: str

    @property
    def choice(self) -> ModelChoice:
        """The model."""
        weights = None if self.model == "demo" else "random"
        return ModelChoice(
            self.model, weights=weights, image_size=self.size, device=self.device, dtype="bfloat16"
        )

    @property
    def case(self) -> str:
        """Name of the file that it goes into."""
        model = self.model.removeprefix("sam2.1-")
        if self.kind == "end-to-end":
            return f"{model}-end-to-end"
        many = f"{model}-{self.objects}-object{'s' * (self.objects > 1)}"
        return f"{many}-compiled" if self.kind == "compiled" else many

    @property
    def name(self) -> str:
        """Its own."""
        model = self.model.removeprefix("sam2.1-")
        return f"{model}-{self.objects}-{self.kind.replace(' ', '-')}"

    @property
    def key(self) -> dict[str, Any]:
        """What decides its result."""
        return {**asdict(self), "torch": torch.__version__, "made_by": version("efficient-sam2")}

    def measure(self) -> Any:
        """Measure it in this process."""
        if self.kind == "waits":
            return waits(self.choice, self.objects)
        if self.kind == "same bits":
            return same_bits(self.choice, self.objects)
        if self.kind == "end-to-end":
            return json.loads(end_to_end(self.choice, self.frames))
        with without_autotuned_products():
            return timed(self.choice, self.objects, self.frames, self.kind == "compiled")


def timed(choice: ModelChoice, objects: int, frames: int, compiled: bool) -> list[dict[str, Any]]:
    """Measure the rows of one model and one number of objects."""
    stock = choice.build()
    route = fixed_windows(WINDOWS.get(choice.model), window_grid(stock))
    clip = made_clip(FULL_BANK + untimed(stock.device) + frames, objects)
    variants = [Variant(STOCK, None)]
    if compiled:
        variants += [compiled_row(stock), *(Variant(n, BUILTIN[n]) for n in BEST)]
    else:
        variants += [Variant(p.name, p) for p in profiles()]
    found = bench(
        stock, variants, clip, timed=frames, route=route, share_bank=True,
        autocast=lambda: choice.autocast(stock.device.type),
    )  # fmt: skip
    measured = rows(variants, found, objects, lambda variant: "random weights: no quality")
    return [
        {"model": choice.model, "objects": objects, "windows": route.said}
        | run.model_dump(mode="json", exclude={"profile"})
        for run in measured
    ]


def waits(choice: ModelChoice, objects: int) -> dict[str, Any]:
    """Watch a few routed frames: how often a frame makes the host wait, where in the code, and what the host does itself."""
    watched = 4
    stock = choice.build()
    before = FULL_BANK + untimed(stock.device)
    fast, clip = accelerate(stock, "paper"), made_clip(before + 2 * watched, objects)
    device = stock.device
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
    with torch.inference_mode(), choice.autocast(device.type):
        frames = routed(fast, clip, WINDOWS.get(choice.model))
        for _ in range(before):
            next(frames)
        host = time.thread_time()  # before anything watches
        for _ in range(watched):
            next(frames)
        host = time.thread_time() - host
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with torch.profiler.profile(activities=activities) as profiler:
                if cuda:  # not while the profiler starts or ends, which waits too
                    torch.cuda.set_sync_debug_mode("warn")
                for _ in range(watched):
                    next(frames)
                if cuda:
                    torch.cuda.set_sync_debug_mode("default")
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
        "host_ms_per_frame": round(1000 * host / watched, 2),
        "runtime_calls_per_frame": {n: events.get(n, 0) / watched for n in SYNCHRONISING},
        "scalars_read_per_frame": events.get("aten::_local_scalar_dense", 0) / watched,
        "launches_per_frame": {name: events.get(name, 0) / watched for name in LAUNCHING},
    }


def same_bits(choice: ModelChoice, objects: int) -> dict[str, bool]:
    """Whether masks are bit for bit the same with graphs as without, and not with fewer windows."""
    stock = choice.build()
    clip = made_clip(FULL_BANK + untimed(stock.device) + 4, objects)
    share, fewest = WINDOWS.get(choice.model), f"1/{window_grid(stock).count}"

    def last_masks(profile: Profile, windows: str | None) -> torch.Tensor:
        fast = accelerate(stock, profile)
        with torch.inference_mode(), choice.autocast(stock.device.type):
            return [masks.clone() for _, _, masks in routed(fast, clip, windows)][-1]

    found = {}
    for name in BEST:
        expected = last_masks(without_graphs(name), share)
        found[name] = torch.equal(last_masks(BUILTIN[name], share), expected)
        fewer = last_masks(BUILTIN[name], fewest)
        found[f"{name}, fewer windows"] = torch.equal(fewer, expected)
    return found


def end_to_end(choice: ModelChoice, frames: int) -> str:
    """Measure file in, masks out."""
    result = run_end_to_end(OURS, choice, frames=frames, sizes=("1080p",), rounds=1)
    print(end_to_end_table(result), flush=True)
    return result.to_json()


def measure(part: Part, out: Path) -> None:
    """Measure a part and keep it."""
    document = {
        "environment": environment(torch.device(part.device), "bfloat16"),
        "found": part.measure(),
    }
    keep(out / "parts" / f"{part.name}.json", part.key, document)


def done(part: Part, out: Path) -> Any:
    """What was measured of a part before; None where nothing was."""
    return held(out / "parts" / f"{part.name}.json", part.key)


def put_together(parts: list[Part], out: Path) -> None:
    """Write the files of the cases, with what there is of each."""
    for case in dict.fromkeys(part.case for part in parts):
        document: dict[str, Any] = {}
        for part in parts:
            known = done(part, out) if part.case == case else None
            if known is None:
                continue
            if part.kind == "end-to-end":
                document = known["found"]
                continue
            document["environment"] = known["environment"]
            document["rows" if part.kind == "compiled" else part.kind] = known["found"]
        if document:
            write_text(out / f"{case}.json", json.dumps(document, indent=1) + "\n")


def planned(options: argparse.Namespace) -> list[Part]:
    """List the parts that are wanted, those first that matter most."""
    parts = []
    for kind in KINDS:
        if options.parts and kind not in options.parts:
            continue
        alone = kind in ("compiled", "end-to-end")
        for objects in options.objects if not alone else (1,):
            for model in options.model:
                parts.append(
                    Part(kind, model, objects, options.size, options.frames, options.device)
                )
    # what takes the longest goes last: many objects, and then compiling
    return sorted(parts, key=lambda part: (part.kind == "compiled", part.objects > MANY))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="*", default=list(WINDOWS))
    parser.add_argument("--parts", nargs="+", choices=KINDS, help="these alone")
    parser.add_argument("--objects", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--size", type=int, help="side of the model's input in pixels")
    parser.add_argument("--frames", type=int, default=20, help="that count")
    parser.add_argument("--minutes", type=float, default=12.0, help="for all; the rest is left out")
    parser.add_argument("--device", default="cuda", help="cpu: to try the script")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device is here; run this where one is, or try it with --device cpu")
        return 2
    end = time.monotonic() + 60 * options.minutes
    parts, spawn = planned(options), multiprocessing.get_context("spawn")
    left = []
    for part in parts:
        if done(part, options.out) is not None:
            print(f"{part.name}: done before", flush=True)
            continue
        begun = time.monotonic()
        process = spawn.Process(target=measure, args=(part, options.out))
        if end - begun > 0:
            process.start()
            process.join(min(LONGEST, end - begun))
            if process.is_alive():
                process.kill()
                process.join()
        found = done(part, options.out)
        took = f"{time.monotonic() - begun:.0f} s"
        print(f"{part.name}: {took if found is not None else f'not done, {took}'}", flush=True)
        if found is None:
            left.append(part.name)
            continue
        for row in found["found"] if part.kind in ("rows", "compiled") else ():
            median, ratio = row["ms_per_frame"]["median"], row["ratio"]["median"]
            print(f"  {row['name']}: {median:.1f} ms, {ratio}x", flush=True)
        put_together(parts, options.out)
    if left:
        print(f"left: {', '.join(left)}; the same command goes on with them")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
