"""Measure how time and operations of a frame grow with windows, keys, objects and image size, on B+.

    python benchmarks/scaling.py            measure what has no file yet
    python benchmarks/scaling.py POINT …    measure these, anew: base, objects-2 (4, 8), size-512 (768)

Random weights, fixed windows, the exact techniques on, one frame of each setting and of stock sam2 in turn.
The base point holds one object at 1024 pixels, with several numbers of windows and keys. Every point is
written when it is done, into ``benchmarks/scaling``; the same command goes on with the next one. Run it on an
idle machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probes.files import write_text
from sparsity.acceleration.model.encoder import window_grid
from sparsity.clips.sources import made_clip
from sparsity.evaluation.interleaved import (
    FULL_BANK,
    STOCK,
    UNTIMED,
    Measured,
    Variant,
    bench,
    fixed_windows,
)
from sparsity.evaluation.meters import environment
from sparsity.profile import BUILTIN, Profile
from sparsity.techniques.retrieval import Retrieval
from sparsity.work.model import ModelChoice

MODEL = "sam2.1-base-plus"
FOLDER = Path(__file__).with_name("scaling")
TIMED = 2

WINDOWS = (1, 6, 12, 25)
KEYS = (0.05, 0.25, 1.0)
ROUTED, KEEP = 6, 0.05
"""Windows of 25 and share of tokens where they are not what varies."""

QUARTER = {512: 2, 768: 4, 1024: ROUTED}
"""By image size: about a quarter of 9, 16 and 25 windows."""

MINUTES = {
    "base": 5,
    "objects-2": 2.5,
    "objects-4": 4,
    "objects-8": 7,
    "size-512": 0.5,
    "size-768": 1,
}
"""By point: estimated for float32 on two idle cores without matrix units, 10 s a stock frame."""

FILES = {"base": ("windows", "keys", "objects-1", "size-1024")} | {p: (p,) for p in [*MINUTES][1:]}


def profile(keep: float) -> Profile:
    """Return the profile `paper` with another share of tokens to keep."""
    update = {"name": f"keep {keep}", "retrieval": Retrieval(keep=keep)}
    return BUILTIN["paper"].model_copy(update=update)


def rows(
    choice: ModelChoice, settings: Sequence[tuple[int, float]], objects: int
) -> list[dict[str, Any]]:
    """Measure pairs of windows kept and share of tokens kept, and stock, one frame of each in turn."""
    model = choice.build()
    grid = window_grid(model)
    variants = [Variant(STOCK, None)]
    for windows, keep in settings:
        route = fixed_windows(f"{windows}/{grid.count}", grid)
        variants.append(Variant(f"{windows} {keep}", profile(keep), route=route))
    stock, *found = bench(
        model,
        variants,
        made_clip(FULL_BANK + UNTIMED + TIMED, objects),
        timed=TIMED,
        autocast=partial(choice.autocast, "cpu"),
        share_bank=True,
        closely=False,
    )
    assert stock.flops is not None
    return [
        {
            "windows": windows / grid.count,
            "keys": round(one.keys_kept, 4),
            "keep": keep,
            "objects": objects,
            "size": model.image_size,
            "ms": milliseconds(one),
            "gflop": round((one.flops or 0) / 1e9, 2),
            "stock_ms": milliseconds(stock),
            "stock_gflop": round(stock.flops / 1e9, 2),
        }
        for (windows, keep), one in zip(settings, found, strict=True)
    ]


def milliseconds(measured: Measured) -> float:
    """Return the median time of a frame."""
    return round(1000 * float(np.median(measured.seconds)), 1)


def measure(point: str, dtype: str, model: str = MODEL) -> dict[str, list[dict[str, Any]]]:
    """Measure a point; return rows by file."""
    kind, _, number = point.partition("-")
    size = int(number) if kind == "size" else 1024
    objects = int(number) if kind == "objects" else 1
    choice = ModelChoice(model, weights="random", image_size=size, device="cpu", dtype=dtype)
    if point != "base":
        return {point: rows(choice, [(QUARTER[size], KEEP)], objects)}
    settings = [(w, KEEP) for w in WINDOWS] + [(ROUTED, keep) for keep in KEYS if keep != KEEP]
    found = dict(zip(settings, rows(choice, settings, 1), strict=True))
    common = [found[ROUTED, KEEP]]
    return {
        "windows": [found[w, KEEP] for w in WINDOWS],
        "keys": [found[ROUTED, keep] for keep in KEYS],
        "objects-1": common,
        "size-1024": common,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("points", nargs="*", choices=[[], *MINUTES], metavar="POINT")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    left = [
        point
        for point in MINUTES
        if not all((FOLDER / f"{name}.json").exists() for name in FILES[point])
    ]
    points = options.points or left
    total = sum(MINUTES[point] for point in points)
    say = partial(print, file=sys.stderr, flush=True)
    say(f"{len(points)} points, about {total:g} min in float32 on two cores without matrix units")
    for point in points:
        say(f"{point}: about {MINUTES[point]:g} min")
        stamp = environment(torch.device("cpu"), options.dtype)
        for name, series in measure(point, options.dtype).items():
            document = {"model": MODEL, "environment": stamp, "rows": series}
            write_text(FOLDER / f"{name}.json", json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
