"""How stable the kept windows are and how much of the object they cover, replayed on a recorded trace."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from probes.consistency import window_coverage, window_stability
from sparsity.calibration.replay import replay_windows
from sparsity.calibration.traces import Trace
from sparsity.profile import Guard, Windows


@dataclass(frozen=True)
class WindowConsistency:
    """One clip's kept windows over time, means over routed frames; NaN where there are none.

    Attributes
    ----------
    kept
        Share of the windows kept, in (0, 1].
    stability
        Jaccard of the kept windows of two routed frames in a row, in [0, 1].
    chance
        The same with the windows of one frame shuffled.
    coverage
        Share of the frame's mask area inside kept windows, in [0, 1].
    routed
        Share of the frames after the first that are routed; the others are dense.
    """

    kept: float
    stability: float
    chance: float
    coverage: float
    routed: float


def window_consistency(
    trace: Trace, windows: Windows, guard: Guard, seed: int = 0
) -> WindowConsistency:
    """Replay routing on a trace and follow the windows it keeps.

    Parameters
    ----------
    trace
        Of a dense run, see `sparsity.calibration.recordings`.
    windows, guard
        Thresholds.
    seed
        Of the shuffled baseline.
    """
    grid = trace.grid
    kept: list[torch.Tensor | None] = []
    for decision in replay_windows(trace, windows, guard).decisions:
        chosen = None
        if decision.windows is not None:
            chosen = torch.zeros(grid.count, dtype=torch.bool)
            chosen[list(decision.windows)] = True
        kept.append(chosen)
    generator = torch.Generator().manual_seed(seed)
    stability, chance = [], []
    for before, after in zip(kept, kept[1:], strict=False):
        if before is not None and after is not None:
            stability.append(window_stability(before, after))
            mixed = before[torch.randperm(grid.count, generator=generator)]
            chance.append(window_stability(mixed, after))
    routed = [(t, chosen) for t, chosen in enumerate(kept, 1) if chosen is not None]
    coverage = [
        window_coverage(chosen, trace.best[t].any(0), grid.tokens, grid.window)
        for t, chosen in routed
    ]
    return WindowConsistency(
        _mean([float(chosen.float().mean()) for _, chosen in routed]),
        _mean(stability),
        _mean(chance),
        _mean(coverage),
        len(routed) / max(1, len(kept)),
    )


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
