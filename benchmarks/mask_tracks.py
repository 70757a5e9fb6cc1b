"""Time per frame where windows are those of real mask tracks, dense frames included; random weights.

    python benchmarks/mask_tracks.py DAVIS-dev                            Large, float32
    python benchmarks/mask_tracks.py DAVIS-dev --model sam2.1-tiny        something smaller

Fixed windows say what a share of windows costs; this says what the objects of a data set come to. Every frame of
every clip but the first is routed by the masks of the frame before it, all objects united, each row by its own margin.
The frames are ordered by how many windows that takes the paper's rule, and as many as are timed are drawn at even
distances, so that the shares timed are distributed as the data set's are; their order is then shuffled. One frame of
each row in turn, in one process.

Ratios are of total times, because dense frames count: those a profile refreshes are timed as they come, and the
clips' first frames, which nobody can route, are added at stock's time. The result is
``benchmarks/mask_tracks/MODEL-DTYPE.json``. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from probes.files import write_text
from sparsity.acceleration.model.encoder import window_grid
from sparsity.acceleration.session import WindowChooser
from sparsity.clips.sources import ClipSource, made_clip
from sparsity.evaluation.interleaved import (
    FULL_BANK,
    STOCK,
    UNTIMED,
    Route,
    Variant,
    bench,
    cells_of_ids,
    ladder,
)
from sparsity.evaluation.meters import environment
from sparsity.profile import BUILTIN, FURTHER
from sparsity.techniques.routing import Decision, Routing
from sparsity.techniques.select import WindowGrid
from sparsity.work.model import ModelChoice

FOLDER = Path(__file__).with_name("mask_tracks")
ROWS = (STOCK, "paper", "recommended")
TRIMMED = "recommended + trimmed windows"


@dataclass(frozen=True)
class Tracks:
    """Windows that a data set's masks ask for.

    Attributes
    ----------
    counts
        Windows by the paper's rule on every frame but the clips' first ones; all where no object is to be seen, which
        makes a frame dense.
    chosen
        What each rule chooses on these frames.
    first
        Share of the frames that are a clip's first.
    """

    counts: list[int]
    chosen: dict[Routing, list[Decision]]
    first: float

    def drawn(self, count: int) -> list[int]:
        """Draw frames at even distances in the order of their number of windows, and shuffle them."""
        ordered = np.argsort(self.counts, kind="stable")
        at = ((np.arange(count) + 0.5) * len(ordered) / count).astype(int)
        return [int(ordered[i]) for i in np.random.default_rng(0).permutation(at)]


def tracks(root: Path, grid: WindowGrid, image_size: int, rules: set[Routing]) -> Tracks:
    """Find the windows of every frame of every clip of an annotated data set, by some rules."""
    paper = Routing()
    chosen: dict[Routing, list[Decision]] = {rule: [] for rule in {paper, *rules}}
    source = ClipSource(dataset=root)
    names = source.names()
    for name in names:
        clip = source.open(name)
        assert clip.truth is not None, "clips of a data set are annotated"
        for frame in list(clip.truth)[:-1]:
            there = clip.truth[frame]
            united = np.asarray(there.any(axis=0) if clip.layered else there, np.uint8)
            for rule, found in chosen.items():
                found.append(cells_of_ids(united, grid, image_size, rule))
    every = tuple(range(grid.cells.count))
    counts = [len(grid.windows_of(found.cells or every)) for found in chosen[paper]]
    return Tracks(counts, chosen, len(names) / (len(names) + len(counts)))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path, help="folder of annotated clips")
    parser.add_argument("--model", default="sam2.1-large")
    parser.add_argument("--size", type=int, help="side of the model's input in pixels")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--frames", type=int, default=12, help="that count")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    choice = ModelChoice(
        options.model, weights="random", image_size=options.size, device="cpu", dtype=options.dtype
    )
    model = choice.build()
    grid = window_grid(model)
    variants = [variant for variant in ladder() if variant.name in ROWS]
    variants.append(Variant(TRIMMED, FURTHER["trimmed windows"](BUILTIN["recommended"])))
    profiles = [variant.profile for variant in variants if variant.profile is not None]
    rules = {profile.routing for profile in profiles if profile.routing is not None}
    found = tracks(options.root, grid, model.image_size, rules)
    drawn, begin = found.drawn(options.frames), FULL_BANK + UNTIMED

    def chooser(rule: Routing) -> WindowChooser:
        chosen = [found.chosen[rule][i] for i in drawn]
        return lambda frame: chosen[(frame - begin) % len(chosen)]

    share = float(np.mean(found.counts)) / grid.count
    stock, *ours = bench(
        model,
        variants,
        made_clip(begin + options.frames),
        timed=options.frames,
        autocast=partial(choice.autocast, "cpu"),
        route=Route(chooser, "windows of mask tracks"),
        share_bank=True,
        closely=False,
    )
    mean = float(np.mean(stock.seconds))
    rows = {
        one.name: {
            "ms": [round(1000 * s) for s in one.seconds],
            "windows_kept": round(one.windows_kept, 4),
            "keys_kept": round(one.keys_kept, 4),
            "ratio": round(
                mean / (found.first * mean + (1 - found.first) * float(np.mean(one.seconds))), 3
            ),
        }
        for one in ours
    }
    document = {
        "model": options.model,
        "weights": "random",
        "environment": environment(torch.device("cpu"), options.dtype),
        "data": {"root": options.root.name, "frames": len(found.counts), "first": found.first},
        "windows_of_all_frames": round(share, 4),
        "stock_ms": [round(1000 * s) for s in stock.seconds],
        "rows": rows,
    }
    out = options.out or FOLDER / f"{options.model.removeprefix('sam2.1-')}-{options.dtype}.json"
    out.parent.mkdir(exist_ok=True)
    write_text(out, json.dumps(document, indent=1) + "\n")
    print(f"stock {1000 * mean:.0f} ms, windows of all frames {share:.1%}")
    for name, row in rows.items():
        print(f"{name}: {row['ratio']:.2f}x, windows {row['windows_kept']:.1%}")


if __name__ == "__main__":
    main()
