"""Memory attention alone: stock against all keys and against 5 % of the tokens, choosing them included.

    python benchmarks/memory_attention.py                        Tiny at 1024 pixels, bfloat16 and float32
    python benchmarks/memory_attention.py --size 512 --frames 2  something smaller

Retrieval attention is the same in all four sizes of SAM 2.1, so the smallest encoder is run around it. Frames of
all runs are interleaved in one process; times are of sam2's ``_prepare_memory_conditioned_features``, after a
full memory bank; the result is ``benchmarks/memory_attention.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from probes.files import write_text
from sparsity.acceleration.build import accelerate
from sparsity.clips.sources import made_clip
from sparsity.evaluation.benchmark import ratio, times
from sparsity.evaluation.interleaved import FULL_BANK, UNTIMED
from sparsity.evaluation.meters import environment, stage_seconds
from sparsity.profile import BUILTIN, Profile
from sparsity.techniques.retrieval import Retrieval
from sparsity.work.model import ModelChoice

HERE = Path(__file__).parent
PROFILES = {
    "stock": BUILTIN["dense"],
    "all keys, exact rewrites": Profile(name="all keys", exact=True),
    "5 %, stock's formulation": Profile(name="5 %", retrieval=Retrieval(keep=0.05)),
    "5 %, exact rewrites": Profile(name="5 %, exact", exact=True, retrieval=Retrieval(keep=0.05)),
}
"""``dense`` runs stock's own code."""


def measure(choice: ModelChoice, frames: int) -> dict[str, list[float]]:
    """Seconds of memory attention by run, frame by frame."""
    stock = choice.build()
    predictors = {name: accelerate(stock, profile) for name, profile in PROFILES.items()}
    clip = made_clip(FULL_BANK + UNTIMED + frames)
    found: dict[str, list[float]] = {name: [] for name in PROFILES}
    with torch.inference_mode(), choice.autocast("cpu"):
        running = {
            name: predictor.propagate_in_video(clip.begin(predictor))
            for name, predictor in predictors.items()
        }
        for frame in range(clip.num_frames):
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
            ms, gain = times(seconds), ratio(found["stock"], seconds)
            row = {
                "dtype": dtype,
                "name": name,
                "ms": ms.model_dump(),
                "ratio": gain.model_dump(),
                "ratio of minima": round(float(np.min(found["stock"]) / np.min(seconds)), 3),
            }
            made.append(row)
            print(f"{dtype} {name}: {ms.median:.0f} ms, {gain.median:.2f}x")
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
