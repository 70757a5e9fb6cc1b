"""Operations that a frame hands to the device: on a GPU each is a kernel that the host has to launch.

    python benchmarks/launches.py                  Tiny and Large, bfloat16

Counted on a CPU that goes the GPU's way: early stages in one strip, fused attention, public products. Views are no
operations. The size is small because the count does not depend on it; one window is routed, as many as are needed for
the count. The result is ``benchmarks/launches.json``.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from probes.files import write_text
from sparsity.acceleration.build import accelerate
from sparsity.acceleration.model import attention, linear
from sparsity.acceleration.model import stages as early
from sparsity.clips.sources import made_clip
from sparsity.evaluation.interleaved import FULL_BANK, STOCK
from sparsity.work.model import ModelChoice

OUT = Path(__file__).with_suffix(".json")
ROWS = (STOCK, "exact", "paper", "recommended")
MODELS = ("sam2.1-tiny", "sam2.1-large")


class Operations(TorchDispatchMode):
    """Counts operations whose results are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        name = func._schema.name.split("::")[1]
        in_place = func._schema.is_mutable
        made = isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given
        if (made or in_place) and not name.startswith(("empty", "new_empty")):
            self.counts[name] += 1
        return out


def count(choice: ModelChoice) -> dict[str, dict[str, int]]:
    """Count the operations of one frame with a full memory bank, row by row."""
    stock, found = choice.build(), {}
    clip = made_clip(FULL_BANK + 4)
    for row in ROWS:
        fast = accelerate(stock, "dense" if row == STOCK else row)
        predictor = stock if row == STOCK else fast
        with torch.inference_mode(), choice.autocast("cpu"):
            state = fast.init_state(clip.video)
            state["images"] = torch.stack([state["images"][t] for t in range(clip.num_frames)])
            fast.choose_windows(state, lambda frame: (0,) if frame > 1 else None)
            clip.give_to(predictor, state)
            frames = predictor.propagate_in_video(state)
            for _ in range(FULL_BANK + 2):
                next(frames)
            with Operations() as operations:
                next(frames)
        casts = sum(operations.counts[name] for name in ("to", "_to_copy"))
        found[row] = {"operations": operations.counts.total(), "casts": casts}
        print(f"{choice.model:14}{row:14}{found[row]}", flush=True)
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, default=256, help="side of the model's input in pixels")
    options = parser.parse_args()
    with (
        patch.object(attention, "WORTH_TIMING", 2**62),
        patch.object(early, "STRIP_TOKENS", 2**62),
        patch.object(linear, "onednn_linear", lambda dtype: False),
    ):
        found = {
            model: count(
                ModelChoice(
                    model, weights="random", image_size=options.size, device="cpu", dtype="bfloat16"
                )
            )
            for model in options.models
        }
    write_text(OUT, json.dumps({"torch": torch.__version__, "models": found}, indent=1))


if __name__ == "__main__":
    main()
