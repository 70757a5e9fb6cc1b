"""What calibration reads of a clip, and what settings would do on it without the model.

A trace holds what the predictor would know on every frame of a dense run, unreduced: masks, scores, routing cues and
memory statistics. So any threshold can be replayed on it, by the very rules that the predictor applies.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.consistency import window_coverage, window_stability
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import (
    Decision,
    FrameCues,
    Guard,
    ObjectCues,
    Routing,
    computed_parts,
    cue_row,
    cues_on_host,
    decide,
    left_out_windows,
    parts_of,
)
from sparsity.techniques.select import (
    LOW_RES_STRIDE,
    TOKEN_STRIDE,
    WindowGrid,
    refreshed_count,
    scene_change,
    window_mass,
    windows_of_mask,
)

Cues = list[list[ObjectCues | None]]
"""By frame and object, ``[T][O]``; None on prompts, as the predictor has none there."""


@dataclass(frozen=True, eq=False)
class MemoryTrace:
    """Attention to the tokens of memory frames.

    Attributes
    ----------
    curve
        Mass recall of the `k + 1` tokens most salient at first recollection (method 4.2), mean over memory frames,
        float64 ``[layers, ages, tokens]``.
    ages
        Ages of the memory frames when they are read later, in frames, ascending.
    exposure
        Share of all attention that falls on memory frames that may be pruned, mean by layer, ``[layers]``.
    keys, prunable
        For each tracked frame and object: keys that a dense run reads, and how many memory frames may be
        pruned, int ``[calls]``.
    """

    curve: NDArray[np.float64]
    ages: tuple[int, ...]
    exposure: NDArray[np.float32]
    keys: NDArray[np.int64]
    prunable: NDArray[np.int64]


def recall_curve(first: NDArray[np.float32], later: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mass recall by number of tokens, mean over memory frames.

    Parameters
    ----------
    first
        Token saliency at first recollection, ``[cases, layers, tokens]``.
    later
        The same at later ages, ``[cases, layers, ages, tokens]``.

    Examples
    --------
    >>> first = np.float32([[[0.2, 0.7, 0.1]]])
    >>> recall_curve(first, np.float32([[[[0.25, 0.5, 0.25]]]])).round(2).tolist()
    [[[0.5, 0.75, 1.0]]]
    """
    order = np.argsort(-first, axis=-1, kind="stable")[:, :, None]
    share = later / np.maximum(later.sum(-1, keepdims=True), 1e-12)
    ranked = np.take_along_axis(share, np.broadcast_to(order, share.shape), -1)
    curve: NDArray[np.float64] = ranked.astype(np.float64).mean(0).cumsum(-1)
    return curve


@dataclass(frozen=True, eq=False)
class Trace:
    """One clip, tracked forward from its prompts.

    Attributes
    ----------
    name
        Of the clip.
    model
        Fingerprint of the model that was run.
    grid
        Windows of encoder stage 3.
    frames
        Their indices, in the order of tracking, ``[T]``.
    candidates
        Whether low-resolution logits of each candidate mask are above 0, ``[T, O, M, h, w]``.
    best
        The same of the mask that was chosen, ``[T, O, h, w]``.
    saliency
        Decoder attention on the token grid, float32 ``[T, O, n, n]``; NaN where no decoder ran.
    score
        Object-score logits, ``[T, O]``.
    tracked
        False on prompts, ``[T, O]``.
    thumbnails
        In units of full scale, ``[T, 3, s, s]``.
    memory
        Retrieval statistics, or None where they were not recorded.
    """

    name: str
    model: str
    grid: WindowGrid
    frames: tuple[int, ...]
    candidates: Tensor
    best: Tensor
    saliency: Tensor
    score: Tensor
    tracked: Tensor
    thumbnails: Tensor
    memory: MemoryTrace | None

    @property
    def objects(self) -> int:
        """Number of objects."""
        return self.score.shape[1]

    @property
    def digest(self) -> str:
        """SHA-256 of what was recorded."""
        found = hashlib.sha256(self.model.encode())
        for part in (self.candidates, self.best, self.saliency, self.score, self.thumbnails):
            found.update(part.contiguous().numpy().tobytes())
        if self.memory is not None:
            found.update(self.memory.curve.tobytes())
        return found.hexdigest()

    @cached_property
    def change(self) -> list[float]:
        """Thumbnail difference of each frame to the one before, 0 on the first."""
        pairs = zip(self.thumbnails, self.thumbnails[1:], strict=False)
        return [0.0, *(scene_change(before, after) for before, after in pairs)]

    @cached_property
    def tokens(self) -> NDArray[np.float32]:
        """Object tokens in each cell, over all objects, ``[T, cells]``: what routing must not miss."""
        step = TOKEN_STRIDE // LOW_RES_STRIDE
        there = torch.nn.functional.max_pool2d(self.best.any(1).float(), step, ceil_mode=True)
        found: NDArray[np.float32] = window_mass(there, self.grid.cells).round().numpy()
        return found

    def cues(self, routing: Routing) -> Cues:
        """Each object's cues on each frame, found once for the same thresholds."""
        key = (routing.margin_px, routing.candidates, routing.unit)
        if key not in self._found:
            there = self.best if routing.candidates == "best" else self.candidates.any(2)
            touched = windows_of_mask(there, parts_of(routing.unit, self.grid), routing.margin_px)
            self._found[key] = [
                [cue and replace(cue, touched=touched[t, i]) for i, cue in enumerate(of_frame)]
                for t, of_frame in enumerate(self._plain)
            ]
        return self._found[key]

    @cached_property
    def replays(self) -> dict[tuple[Routing, Guard], RoutingReplay]:
        """What `replay_routing` has found."""
        return {}

    @cached_property
    def _found(self) -> dict[tuple[float, str, str], Cues]:
        return {}

    @cached_property
    def _plain(self) -> Cues:
        """What no threshold decides of the cues: saliency, score and jump."""
        return [
            [self._cue(t, i) if self.tracked[t, i] else None for i in range(self.objects)]
            for t in range(len(self.frames))
        ]

    def _cue(self, t: int, i: int) -> ObjectCues:
        saliency = self.saliency[t, i]
        before = self.best[t - 1, i] if t and bool(self.tracked[t - 1, i]) else None
        row = cue_row(
            self.candidates[t, i].float(), self.best[t, i].float(),
            None if before is None else before.float(), None if bool(saliency.isnan().any()) else saliency,
            float(self.score[t, i]), self.grid, Routing(),
        )  # fmt: skip
        return cues_on_host(row[None], self.grid)[0]


def replay_decisions(trace: Trace, routing: Routing, guard: Guard) -> list[Decision]:
    """Decide every frame of a trace but the first as the predictor would.

    The cues are those of the run that was recorded, so after a dense run the replay says what the first
    routed frames would do; what routing itself changes in later masks only a real run can tell.
    """
    cues, decisions, last_dense, computed = trace.cues(routing), [], 0, 0
    for t in range(1, len(trace.frames)):
        if not bool(trace.tracked[t].all()):
            decision = Decision(None, "prompt")
        elif not bool(trace.tracked[t - 1].all()):
            decision = Decision(None, "first tracked")
        else:
            since = t - last_dense, t - computed
            known = FrameCues(dict(enumerate(cues[t - 1])), trace.change[t], *since)
            decision = decide(known, routing, guard, trace.grid)
        if not decision.carried:
            computed = t
            if decision.cells is None:
                last_dense = t
        decisions.append(decision)
    return decisions


@dataclass(frozen=True, eq=False)
class RoutingReplay:
    """Routing of one clip under some thresholds, one entry a frame after the first.

    Attributes
    ----------
    kept
        Share of windows computed, trimmed ones by what is left of them, as the predictor's report counts them; those
        of a rolling refresh are counted whole. 1 on dense frames, 0 where features are carried over.
    recall
        Share of the frame's object tokens inside the cells that the rule chose; 1 where it has none, 0 where features
        are carried over.
    """

    kept: NDArray[np.float64]
    recall: NDArray[np.float64]


def replay_routing(trace: Trace, routing: Routing, guard: Guard) -> RoutingReplay:
    """Say what routing would keep and cover, found once for the same thresholds."""
    known = trace.replays.get((routing, guard))
    if known is not None:
        return known
    decisions = replay_decisions(trace, routing, guard)
    kept, recall = np.ones(len(decisions)), np.ones(len(decisions))
    for i, (decision, tokens) in enumerate(zip(decisions, trace.tokens[1:], strict=True)):
        if decision.carried:
            kept[i] = recall[i] = 0.0
        elif decision.cells is not None:
            kept[i] = _share_kept(decision.cells, routing, trace.grid)
            if tokens.any():
                recall[i] = float(tokens[list(decision.cells)].sum()) / float(tokens.sum())
    found = trace.replays[routing, guard] = RoutingReplay(kept, recall)
    return found


@lru_cache(maxsize=4096)
def _share_kept(cells: tuple[int, ...], routing: Routing, grid: WindowGrid) -> float:
    """Share of the windows that is computed; a refresh adds what it may, which depends on pictures."""
    windows = grid.windows_of(cells)
    kept = len(windows) * len(cells) / grid.cells_within(windows)
    if routing.refresh is not None:
        computed = computed_parts(cells, routing.unit, grid)
        left_out = left_out_windows(computed, routing, grid)
        kept += refreshed_count(left_out, routing.refresh.one_in)
    return min(1.0, kept / grid.count)


@dataclass(frozen=True, eq=False)
class RetrievalReplay:
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


def replay_retrieval(trace: Trace, retrieval: Retrieval) -> RetrievalReplay:
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
    counts = retrieval.counts(layers, tokens)
    recall = np.stack([curve[layer, :, count - 1] for layer, count in enumerate(counts)])
    saved = trace.memory.prunable * (tokens - np.mean(counts))
    keys = float(np.mean(1 - saved / trace.memory.keys))
    dropped = trace.memory.exposure * (1 - recall.mean(-1))
    prunable = float(np.mean(counts)) / tokens
    return RetrievalReplay(keys, prunable, recall, float(1 - dropped.mean()))


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
    trace: Trace, routing: Routing, guard: Guard, seed: int = 0
) -> WindowConsistency:
    """Replay routing on a trace and follow the windows it keeps.

    Parameters
    ----------
    trace
        Of a dense run, see `sparsity.calibration.capture`.
    routing, guard
        Thresholds.
    seed
        Of the shuffled baseline.
    """
    grid, generator = trace.grid, torch.Generator().manual_seed(seed)
    kept = [
        None if decision.cells is None else computed_parts(decision.cells, "window", grid)
        for decision in replay_decisions(trace, routing, guard)
    ]
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


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
