"""Operations that a frame hands to the device: on a GPU each is a kernel that the host has to launch.

    python benchmarks/launches.py                      Tiny and Large, bfloat16
    python benchmarks/launches.py --objects 1 2 4      with so many objects, memory attention apart
    python benchmarks/launches.py --host --objects 1 4     what is left on the host: milliseconds of CPU time a frame

Counted on a CPU that goes the GPU's way: early stages in one strip, fused attention, public products. Views are no
operations. The size is small because the count does not depend on it; one window is routed, as many as are needed for
the count. The result is ``benchmarks/launches.json``.

With --host graphs are on, and their replays do nothing; nothing is written then. What is left of a frame on this CPU is the
host's own work, and operations outside the graphs, most of which a GPU does itself while the host goes on: both are named. A
frame is measured as it is, the next one with every operation timed, in turn; what isn't in operations is Python, views,
and handing operations over.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from probes.files import write_text
from sparsity.acceleration import predictor
from sparsity.acceleration.build import accelerate
from sparsity.acceleration.model import attention, graphs, linear
from sparsity.acceleration.model import stages as early
from sparsity.acceleration.recall import recall
from sparsity.clips.sources import made_clip
from sparsity.evaluation.interleaved import FULL_BANK, STOCK
from sparsity.work.model import ModelChoice

OUT = Path(__file__).with_suffix(".json")
ROWS = (STOCK, "exact", "paper", "recommended")
MODELS = ("sam2.1-tiny", "sam2.1-large")
RECORDED, TIMED = 22, 120
"""Frames until all that comes is recorded, object pointers up to the sixteenth included; and frames that are timed, as they are
and operation by operation each."""


class Operations(TorchDispatchMode):
    """Counts operations whose results are no views, and the CPU seconds in them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begun = time.thread_time()
        out = func(*args, **(kwargs or {}))
        spent = time.thread_time() - begun
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        name = func._schema.name.split("::")[1]
        in_place = func._schema.is_mutable
        made = isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given
        if (made or in_place) and not name.startswith(("empty", "new_empty")):
            self.counts[name] += 1
            self.seconds += spent
        return out


def begun(stock: Any, row: str, objects: int, frames: int) -> Iterator[Any]:
    """Begin to track a clip of so many frames, with one window of each."""
    clip = made_clip(frames, objects)
    fast = accelerate(stock, "dense" if row == STOCK else row)
    tracker = stock if row == STOCK else fast
    state = fast.init_state(clip.video)
    state["images"] = torch.stack([state["images"][t] for t in range(clip.num_frames)])
    fast.choose_windows(state, lambda frame: (0,) if frame > 1 else None)
    clip.give_to(tracker, state)
    tracked: Iterator[Any] = tracker.propagate_in_video(state)
    return tracked


def count(choice: ModelChoice, objects: int) -> dict[str, dict[str, int]]:
    """Count the operations of one frame with a full memory bank, row by row."""
    stock, found = choice.build(), {}
    for row in ROWS:
        reading = Operations()

        def counting(*given: Any, reading: Operations = reading) -> Any:
            reading.counts.clear()
            with reading:
                return recall(*given)

        with (
            torch.inference_mode(),
            choice.autocast("cpu"),
            patch.object(predictor, "recall", counting),
        ):
            frames = begun(stock, row, objects, FULL_BANK + 4)
            for _ in range(FULL_BANK + 2):
                next(frames)
            with Operations() as operations:
                next(frames)
        casts = sum(operations.counts[name] for name in ("to", "_to_copy"))
        found[row] = {"operations": operations.counts.total(), "casts": casts}
        if row != STOCK:
            found[row]["memory attention"] = reading.counts.total()
        print(f"{choice.model:14}{objects} objects  {row:14}{found[row]}", flush=True)
    return found


def host(choice: ModelChoice, objects: int) -> str:
    """CPU time of this thread for a frame of ``recommended`` whose graphs do nothing, medians, and what of it is whose."""

    def idle(function: Any, given: Any, device: Any, pool: Any) -> Any:
        return function(given), lambda: None, pool

    whole, inside, counts = [], [], []
    with (
        patch.object(graphs, "DEVICES", ("cpu",)),
        patch.object(graphs, "can_record", torch.is_inference_mode_enabled),
        patch.object(graphs, "record", idle),
        torch.inference_mode(),
        choice.autocast("cpu"),
    ):
        frames = begun(choice.build(), "recommended", objects, RECORDED + 2 * TIMED + 1)
        for _ in range(RECORDED):
            next(frames)
        for n in range(2 * TIMED):
            operations = Operations()
            start = time.thread_time()
            with operations if n % 2 else nullcontext():
                next(frames)
            if n % 2:
                inside.append(1000 * operations.seconds)
                counts.append(operations.counts.total())
            else:
                whole.append(1000 * (time.thread_time() - start))
    total, spent = median(whole), median(inside)
    return (
        f"{total:.1f} ms: in {median(counts):.0f} operations, most of them a GPU's, {spent:.1f} ms, in Python and "
        f"between {total - spent:.1f} ms"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, default=256, help="side of the model's input in pixels")
    parser.add_argument("--objects", type=int, nargs="+", default=[1])
    parser.add_argument("--host", action="store_true", help="time what is left on the host instead")
    options = parser.parse_args()
    choices = [
        ModelChoice(
            model, weights="random", image_size=options.size, device="cpu", dtype="bfloat16"
        )
        for model in options.models
    ]
    if options.host:
        for choice in choices:
            for objects in options.objects:
                print(f"{choice.model:14}{objects} objects  {host(choice, objects)}", flush=True)
        return
    with (
        patch.object(attention, "WORTH_TIMING", 2**62),
        patch.object(early, "STRIP_TOKENS", 2**62),
        patch.object(linear, "onednn_linear", lambda dtype: False),
    ):
        found = {
            choice.model: {str(objects): count(choice, objects) for objects in options.objects}
            for choice in choices
        }
    write_text(OUT, json.dumps({"torch": torch.__version__, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
