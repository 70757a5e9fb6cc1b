"""Try thresholds on a trace, without the model, with the very functions that the predictor decides by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsity.calibration.traces import Trace
from sparsity.profile import Guard, Memory, Router, Windows
from sparsity.routing import Decision, FrameCues, decide
from sparsity.select import keep_count, refreshed_count


@dataclass(frozen=True, eq=False)
class WindowReplay:
    """Routing of one clip under some thresholds, one entry a frame after the first.

    Attributes
    ----------
    decisions
        Windows, or None for a dense frame, and why.
    kept
        Share of windows computed, those of a rolling refresh included; 1 on dense frames.
    recall
        Share of the frame's object tokens inside the computed windows; 1 where it has none.
    """

    decisions: list[Decision]
    kept: NDArray[np.float64]
    recall: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MemoryReplay:
    """Pruning of one clip's memory under some shares.

    Attributes
    ----------
    keys
        Share of all keys read, mean over tracked frames, objects and layers.
    prunable
        Share of the prunable keys read, over calls that have any.
    recall
        Mass recall of the kept tokens by layer and age, ``[layers, ages]``.
    mass
        Share of all attention that still finds its keys, mean over layers and ages: what falls on whole
        frames and pointers does (method 7, row 10).
    """

    keys: float
    prunable: float
    recall: NDArray[np.float64]
    mass: float


def replay_windows(
    trace: Trace, windows: Windows, guard: Guard, router: Router | None = None
) -> WindowReplay:
    """Decide every frame of a trace as the predictor would.

    The cues are those of the run that was recorded, so after a dense run the replay says what the first
    routed frames would do; what routing itself changes in later masks only a real run can tell.
    """
    cues = trace.cues(windows.margin_px, windows.candidates, router)
    decisions = []
    last_dense = 0
    for t in range(1, len(trace.frames)):
        if not bool(trace.tracked[t].all()):
            decision = Decision(None, "prompt")
        elif not bool(trace.tracked[t - 1].all()):
            decision = Decision(None, "first tracked")
        else:
            known = dict(enumerate(cues[t - 1]))
            decision = decide(FrameCues(known, trace.change[t], t - last_dense), windows, guard)
        if decision.windows is None:
            last_dense = t
        decisions.append(decision)
    total = trace.tokens[1:].sum(-1).numpy()
    tokens = trace.tokens[1:].numpy()
    kept = np.ones(len(decisions))
    recall = np.ones(len(decisions))
    for t, decision in enumerate(decisions):
        if decision.windows is not None:
            kept[t] = _count(decision.windows, windows, trace.grid.count) / trace.grid.count
            if total[t]:
                recall[t] = tokens[t, list(decision.windows)].sum() / total[t]
    return WindowReplay(decisions, kept, recall)


def _count(routed: tuple[int, ...], windows: Windows, total: int) -> int:
    """Windows of a routed frame; which of them a rolling refresh adds depends on pictures, how many does not."""
    every = windows.rolling_refresh
    return len(routed) + (0 if every is None else refreshed_count(total - len(routed), every))


def replay_memory(trace: Trace, memory: Memory) -> MemoryReplay:
    """Prune the memory of a trace as the predictor would.

    Raises
    ------
    ValueError
        The trace has no memory statistics.
    """
    if trace.memory is None:
        raise ValueError(f"{trace.name} was recorded without memory attention")
    curve = trace.memory.curve
    layers, _, tokens = curve.shape
    counts = [keep_count(share, tokens) for share in keep_per_layer(memory, layers)]
    recall = np.stack([curve[layer, :, count - 1] for layer, count in enumerate(counts)])
    saved = trace.memory.prunable * (tokens - np.mean(counts))
    keys = float(np.mean(1 - saved / trace.memory.keys))
    dropped = trace.memory.exposure * (1 - recall.mean(-1))
    return MemoryReplay(keys, float(np.mean(counts)) / tokens, recall, float(1 - dropped.mean()))


def keep_per_layer(memory: Memory, layers: int) -> Sequence[float]:
    """Return the kept share of each memory-attention layer."""
    return memory.keep if isinstance(memory.keep, tuple) else (memory.keep,) * layers
