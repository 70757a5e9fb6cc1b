"""One clip, tracked by several predictors in turn, frame by frame, so that they share the machine's weather."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.acceleration.report import Report
from sparsity.calibration.clips import CalibrationClip
from sparsity.calibration.runs import j_and_f
from sparsity.evaluation.quality import agreement
from sparsity.masks import Ids, merge_objects

STOCK = "stock"

WARM_UP = 2
"""Frames at the start whose time doesn't count: the prompt, and the first tracked one."""


@dataclass
class Run:
    """What one predictor did with the clip: masks, seconds from `WARM_UP` on, and its report."""

    report: Report
    masks: list[Ids] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """A run against the one named `STOCK`.

    Attributes
    ----------
    milliseconds, ratio
        Median of a frame, and median of the stock run's times over this one's, frame by frame.
    j_and_f, agreement
        Against the true masks, and mean J with the stock run's masks, in per cent.
    windows, keys, prunable
        Shares computed and read; dense frames count as 1.
    rescued
        Frames that the guard made dense.
    """

    name: str
    milliseconds: float
    ratio: float
    j_and_f: float
    agreement: float
    windows: float
    keys: float
    prunable: float
    rescued: int


def track_in_turn(
    predictors: Mapping[str, EfficientSAM2VideoPredictor], clip: CalibrationClip
) -> dict[str, Run]:
    """Track the clip with all predictors, each doing one frame in turn."""
    runs, tracked = {}, {}
    for name, predictor in predictors.items():
        state: dict[str, Any] = predictor.init_state(clip.video)
        for object_id, mask in clip.prompts().items():
            predictor.add_new_mask(state, 0, object_id, mask)
        runs[name] = Run(predictor.report(state))
        tracked[name] = predictor.propagate_in_video(state)
    for t in tqdm(range(clip.video.num_frames or 0), desc="tracking", unit="frame", disable=None):
        for name, run in runs.items():
            start = time.perf_counter()
            _, ids, logits = next(tracked[name])
            values = logits[:, 0].float().cpu().numpy()
            if t >= WARM_UP:
                run.seconds.append(time.perf_counter() - start)
            run.masks.append(merge_objects(values, ids))
    return runs


def compare(runs: Mapping[str, Run], clip: CalibrationClip) -> list[Row]:
    """Hold each run against the stock one and the true masks; first and last frame are left out."""
    stock = runs[STOCK]
    return [
        Row(
            name,
            1000 * statistics.median(run.seconds),
            statistics.median(a / b for a, b in zip(stock.seconds, run.seconds, strict=True)),
            j_and_f(run.masks, list(clip.truth or stock.masks), clip.objects),
            float(np.mean([*agreement(run.masks[1:-1], stock.masks[1:-1], clip.objects).values()])),
            run.report.windows_share,
            run.report.keys_share,
            run.report.prunable_keys_share,
            len(run.report.rescued),
        )
        for name, run in runs.items()
    ]
