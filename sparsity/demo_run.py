"""``make demo`` and ``efficient-sam2 demo``: a made clip, tracked by stock sam2 and accelerated, in turn, frame by frame.

Prints the table and leaves the clip's overlay and a report behind. Everything in it is made on the spot.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from probes.errors import InputError
from probes.models import DEMO, build_predictor
from sparsity.acceleration.build import accelerate
from sparsity.demo.clips import Clip, make_clip
from sparsity.masks import draw_over, merge_objects
from sparsity.overlay import write_video
from sparsity.runs import write_text

PROFILES = ("exact", "paper")

WARM_UP = 2
"""Frames at the start whose time doesn't count: the prompt, and the first tracked one."""

RANDOM = (
    "The weights are RANDOM: no trained demo weights are installed. The object is kept by place alone, so "
    "these masks say nothing about quality; times and shares are real."
)


@dataclass(frozen=True)
class Row:
    """One run: median time, its ratio to stock, shares computed, agreement with stock, J against truth."""

    name: str
    milliseconds: float
    ratio: float
    windows: float
    keys: float
    agreement: float
    j: float


@dataclass(frozen=True)
class Demo:
    """What the demo found, and where it left its files."""

    rows: list[Row]
    random: bool
    out: Path

    def text(self) -> str:
        """Return it as a table, with plain words where the weights are random."""
        lines = [
            _table(self.rows),
            "",
            f"overlay  {self.out / 'overlay.mp4'}",
            f"report   {self.out / 'report.json'}",
        ]
        return "\n".join([RANDOM, "", *lines] if self.random else lines)

    def json(self) -> str:
        """Return the rows of the table as JSON."""
        rows = [asdict(row) for row in self.rows]
        return json.dumps({"random_weights": self.random, "rows": rows}, indent=1)


def run_demo(out: Path, frames: int = 24) -> Demo:
    """Track the clip with stock sam2 and with each of `PROFILES`; write overlay and report into `out`."""
    try:
        stock, random = build_predictor(DEMO), False
    except InputError:
        stock = build_predictor("sam2.1-tiny", weights="random", image_size=256)
        random = True
    clip = make_clip("smooth", seed=1, frames=frames)
    predictors: dict[str, Any] = {"stock": accelerate(stock, "dense")}
    predictors |= {name: accelerate(stock, name) for name in PROFILES}
    masks, seconds, states = _track_in_turn(predictors, clip)
    rows = [
        Row(
            name,
            1000 * statistics.median(seconds[name]),
            statistics.median(a / b for a, b in zip(seconds["stock"], seconds[name], strict=True)),
            predictors[name].report(states[name]).windows_share,
            predictors[name].report(states[name]).keys_share,
            mean_j(masks[name], masks["stock"]),
            mean_j(masks[name], list(clip.masks)),
        )
        for name in predictors
    ]
    out.mkdir(parents=True, exist_ok=True)
    shown = PROFILES[-1]
    drawn = (draw_over(f, m) for f, m in zip(clip.frames, masks[shown], strict=True))
    write_video(out / "overlay.mp4", drawn, None)
    report = {
        "random_weights": random,
        "threads": torch.get_num_threads(),
        "device": stock.device.type,
        "rows": [asdict(row) for row in rows],
        "report": json.loads(predictors[shown].report(states[shown]).to_json()),
    }
    write_text(out / "report.json", json.dumps(report, indent=1))
    return Demo(rows, random, out)


def _track_in_turn(
    predictors: dict[str, Any], clip: Clip
) -> tuple[dict[str, list[NDArray[np.uint8]]], dict[str, list[float]], dict[str, Any]]:
    """Track the clip with all predictors, each doing one frame in turn, so that they share the weather."""
    states, running = {}, {}
    for name, predictor in predictors.items():
        states[name] = predictor.init_state(clip.frames)
        for object_id in np.unique(clip.masks[0]):
            if object_id:
                predictor.add_new_mask(states[name], 0, int(object_id), clip.masks[0] == object_id)
        running[name] = predictor.propagate_in_video(states[name])
    masks: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in predictors}
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for t in tqdm(range(len(clip.frames)), desc="demo", unit="frame", disable=None):
        for name in predictors:
            start = time.perf_counter()
            _, ids, logits = next(running[name])
            values = logits[:, 0].float().cpu().numpy()
            if t >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
            masks[name].append(merge_objects(values, ids))
    return masks, seconds, states


def mean_j(masks: list[NDArray[np.uint8]], truth: list[NDArray[np.uint8]]) -> float:
    """Return the mean IoU over objects and frames after the first; two empty masks agree fully."""
    found = []
    for one, other in list(zip(masks, truth, strict=True))[1:]:
        for object_id in np.unique(truth[0])[1:]:
            a, b = one == object_id, other == object_id
            union = (a | b).sum()
            found.append((a & b).sum() / union if union else 1.0)
    return float(np.mean(found))


def _table(rows: list[Row]) -> str:
    head = f"{'':8}{'ms/frame':>10}{'ratio':>8}{'windows':>9}{'keys':>7}{'agreement':>11}{'J':>7}"
    return "\n".join(
        [head]
        + [
            f"{r.name:8}{r.milliseconds:10.0f}{r.ratio:8.2f}{r.windows:9.0%}{r.keys:7.0%}"
            f"{r.agreement:11.3f}{r.j:7.3f}"
            for r in rows
        ]
    )
