"""Measure how time and operations of a frame grow with windows, keys, objects and image size, on B+.

    python benchmarks/scaling.py           measure the series that have no file yet
    python benchmarks/scaling.py SERIES …  measure these, anew: windows, keys, objects-1 (2, 4, 8), size-512 (768, 1024)

Random weights, fixed windows, the exact techniques on, one frame of each setting and of stock sam2
in turn. Results are ``benchmarks/scaling/SERIES.json``. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsity.acceleration.encoder import window_grid
from sparsity.demo.clips import make_clip
from sparsity.evaluation.bench import FULL_BANK, STOCK, UNTIMED, Material, Measured, Variant, bench
from sparsity.evaluation.environment import environment
from sparsity.evaluation.routes import fixed_windows
from sparsity.options import ModelChoice
from sparsity.profile import BUILTIN, Memory, Profile
from sparsity.runs import write_text

MODEL, DTYPE = "sam2.1-base-plus", "bfloat16"
FOLDER = Path(__file__).with_name("scaling")
TIMED = 3

WINDOWS = (1, 6, 12, 25)
KEYS = (0.05, 0.25, 0.5, 1.0)
OBJECTS = (1, 2, 4, 8)
SIZES = (512, 768, 1024)


def profile(keep: float) -> Profile:
    """Return the exact techniques with routing and a share of tokens to keep."""
    paper = BUILTIN["paper"]
    return Profile(
        name=f"keep {keep}",
        windows=paper.windows,
        memory=Memory(keep=keep),
        techniques=paper.techniques,
    )


def rows(
    model: Any, kept: tuple[int, ...], keeps: tuple[float, ...], objects: int
) -> list[dict[str, Any]]:
    """Measure every pair of windows kept and tokens kept, and stock, one frame of each in turn."""
    grid = window_grid(model)
    pairs = [(windows, keep) for windows in kept for keep in keeps]
    variants = [Variant(STOCK, None)]
    for windows, keep in pairs:
        route = fixed_windows(f"{windows}/{grid.count}", grid)
        variants.append(Variant(f"{windows} {keep}", profile(keep), route=route))
    clip = make_clip("smooth", 1, FULL_BANK + UNTIMED + TIMED, (270, 480), objects)
    masks = {i: clip.masks[0] == i for i in range(1, objects + 1)}
    stock, *found = bench(
        model,
        variants,
        Material(clip.frames, masks, "made clip smooth/1"),
        timed=TIMED,
        autocast=partial(torch.autocast, "cpu", torch.bfloat16),
        share_bank=True,
    )
    return [
        {
            "windows": windows / grid.count,
            "keys": round(one.keys_kept, 4),
            "keep": keep,
            "objects": objects,
            "size": model.image_size,
            "ms": milliseconds(one),
            "gflop": round(one.flops / 1e9, 2),
            "stock_ms": milliseconds(stock),
            "stock_gflop": round(stock.flops / 1e9, 2),
        }
        for (windows, keep), one in zip(pairs, found, strict=True)
    ]


def milliseconds(measured: Measured) -> float:
    """Return the median time of a frame."""
    return round(1000 * float(np.median(measured.seconds)), 1)


def measure(series: str) -> list[dict[str, Any]]:
    """Measure a series."""

    def model(size: int = 1024) -> Any:
        return ModelChoice(MODEL, weights="random", image_size=size, device="cpu").build()

    if series == "windows":
        return rows(model(), WINDOWS, (0.05,), 1)
    if series == "keys":
        return rows(model(), (6,), KEYS, 1)
    if series.startswith("objects"):
        return rows(model(), (6,), (0.05,), int(series.removeprefix("objects-")))
    size = int(series.removeprefix("size-"))
    kept = {512: 2, 768: 4, 1024: 6}[size]  # a quarter of 9, 16 and 25
    return rows(model(size), (kept,), (0.05,), 1)


def main() -> None:
    """Run the command line."""
    names = [
        "windows",
        "keys",
        *(f"objects-{count}" for count in OBJECTS),
        *(f"size-{size}" for size in SIZES),
    ]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("series", nargs="*", choices=[[], *names], metavar="SERIES")
    chosen = parser.parse_args().series
    FOLDER.mkdir(exist_ok=True)
    for series in chosen or [n for n in names if not (FOLDER / f"{n}.json").exists()]:
        stamp = environment(torch.device("cpu"), DTYPE)
        document = {"model": MODEL, "environment": stamp, "rows": measure(series)}
        write_text(FOLDER / f"{series}.json", json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
