"""Memory attention alone: stock against all keys and against 5 % of the tokens, choosing them included.

    python benchmarks/memory_attention.py                        Tiny at 1024 pixels, bfloat16 and float32
    python benchmarks/memory_attention.py --size 512 --frames 2  something smaller

Memory attention is the same in all four sizes of SAM 2.1, so the smallest encoder is run around it. Frames of
all runs are interleaved in one process; times are of sam2's ``_prepare_memory_conditioned_features``, after a
full memory bank; the result is ``benchmarks/memory_attention.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from sparsity.acceleration.build import accelerate
from sparsity.demo.clips import make_clip
from sparsity.evaluation.bench import FULL_BANK, UNTIMED
from sparsity.evaluation.environment import environment
from sparsity.evaluation.rows import ratio, times
from sparsity.evaluation.timing import stage_seconds
from sparsity.options import ModelChoice
from sparsity.profile import Memory, Profile
from sparsity.profiles import BUILTIN
from sparsity.runs import write_text

HERE = Path(__file__).parent
EXACT = {"memory_attention": True}
PROFILES = {
    "stock": BUILTIN["dense"],
    "all keys, exact rewrites": Profile(name="all keys", techniques=EXACT),
    "5 %, stock's formulation": Profile(name="5 %", memory=Memory(keep=0.05)),
    "5 %, exact rewrites": Profile(name="5 %, exact", memory=Memory(keep=0.05), techniques=EXACT),
}
"""``dense`` runs stock's own code."""


def measure(choice: ModelChoice, frames: int) -> dict[str, list[float]]:
    """Seconds of memory attention by run, frame by frame."""
    predictors = {name: accelerate(choice.build(), p) for name, p in PROFILES.items()}
    clip = make_clip("smooth", 1, FULL_BANK + UNTIMED + frames, (270, 480), 1)
    found: dict[str, list[float]] = {name: [] for name in PROFILES}
    with torch.inference_mode(), choice.autocast("cpu"):
        running = {}
        for name, predictor in predictors.items():
            state = predictor.init_state(clip.frames)
            predictor.add_new_mask(state, 0, 1, clip.masks[0] == 1)
            running[name] = predictor.propagate_in_video(state)
        for frame in range(len(clip.frames)):
            order = list(running)
            turn = frame % len(order)  # who follows whom must not always be the same
            for name in order[turn:] + order[:turn]:
                with stage_seconds(predictors[name]) as spent:
                    next(running[name])
                if frame >= FULL_BANK + UNTIMED:
                    found[name].append(spent["memory attention"])
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="sam2.1-tiny")
    parser.add_argument("--size", type=int, help="side of the model's input in pixels")
    parser.add_argument("--dtype", action="append", help="repeat; default: bfloat16 and float32")
    parser.add_argument("--frames", type=int, default=7, help="that count")
    parser.add_argument("--out", type=Path, default=HERE / "memory_attention.json")
    options = parser.parse_args()
    made = []
    for dtype in options.dtype or ("bfloat16", "float32"):
        choice = ModelChoice(
            options.model, weights="random", image_size=options.size, device="cpu", dtype=dtype
        )
        found = measure(choice, options.frames)
        for name, seconds in found.items():
            row = {
                "dtype": dtype,
                "name": name,
                "ms": times(seconds).model_dump(),
                "ratio": ratio(found["stock"], seconds).model_dump(),
                "ratio of minima": round(float(np.min(found["stock"]) / np.min(seconds)), 3),
            }
            made.append(row)
            print(f"{dtype} {name}: {row['ms']['median']:.0f} ms, {row['ratio']['median']:.2f}x")
    document = {
        "environment": environment(torch.device("cpu"), "as on the rows"),
        "model": options.model,
        "image_size": options.size or 1024,
        "weights": "random: speed alone",
        "rows": made,
    }
    write_text(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
