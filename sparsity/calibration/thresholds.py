"""Each threshold from the statistic that controls it (method section 7), or searched over: none is guessed.

| threshold | statistic |
|---|---|
| margin, candidates, by unit (searched) | share of the next frame's object tokens inside what the mask touches |
| saliency mass | the same inside the windows that decoder saliency alone would choose |
| score under which saliency is added | scores of frames whose next frame was not covered |
| kept share of memory tokens of each layer, of a given mean | mass recall at the oldest age |
| mask jump of the guard | that change on frames that were not covered, against the others, in the median clip |
| scene cut of the guard | how much pictures differ within a shot |
| refresh of the guard | agreement with the dense run over frames since the last dense one (`sparsity.calibration.cost`) |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from sparsity.calibration.traces import Trace, replay_routing
from sparsity.techniques.routing import Guard, Routing
from sparsity.techniques.select import smallest_set

Unit = Literal["window", "cell"]
Which = Literal["all", "best"]
"""Units, and masks that choose them, as in `sparsity.techniques.routing.Routing`."""

WHICH: tuple[Which, ...] = ("best", "all")

MARGINS = (0.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
"""Tried, in pixels of the model's input."""

MASSES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Shares of decoder saliency that are tried."""

NEVER = -100.0
"""Score logit that no frame falls below."""

TRIGGER = 0.9
"""Share of the frames that were not covered on which a rule should have acted."""

CALM = 0.95
"""Share of the covered frames on which a rule of the guard must not act."""

UNGUARDED = Guard()
"""No rule but that frames are dense where routing keeps most windows."""


def mask_only(margin_px: float, candidates: Which, unit: Unit = "window") -> Routing:
    """What the mask touches alone: saliency is added only where there is no mask."""
    return Routing(unit=unit, margin_px=margin_px, candidates=candidates, score_below=NEVER)


def covered(
    traces: Sequence[Trace], routing: Routing, guard: Guard = UNGUARDED
) -> tuple[float, float]:
    """Shares of windows kept and of the next frame's object tokens inside what is computed: by clip, then over clips."""
    found = [replay_routing(trace, routing, guard) for trace in traces]
    kept, recall = ([getattr(one, of).mean() for one in found] for of in ("kept", "recall"))
    return float(np.mean(kept)), float(np.mean(recall))


def margin_for(
    traces: Sequence[Trace], candidates: Which, recall: float, unit: Unit = "window"
) -> float:
    """Return the smallest margin that covers `recall` of the next frame's object tokens, or the largest."""
    for margin in MARGINS:
        if covered(traces, mask_only(margin, candidates, unit))[1] >= recall:
            return margin
    return MARGINS[-1]


def saliency_mass_for(traces: Sequence[Trace], recall: float) -> float:
    """Return the smallest share of saliency whose windows alone cover `recall` of the object tokens, or the largest."""
    for mass in MASSES:
        shares = [s for t in traces for s in _salient_recall(t, mass)]
        if shares and float(np.mean(shares)) >= recall:
            return mass
    return MASSES[-1]


def _salient_recall(trace: Trace, mass: float) -> list[float]:
    found = []
    cues = trace.cues(Routing(margin_px=0.0, candidates="best"))
    for t in range(1, len(trace.frames)):
        chosen = torch.zeros(trace.grid.count, dtype=torch.bool)
        for cue in cues[t - 1]:
            if cue is not None and cue.mass is not None:
                chosen |= smallest_set(cue.mass, mass)
        total = float(trace.tokens[t].sum())
        if total and bool(chosen.any()):
            cells = list(trace.grid.cells_of(chosen))
            found.append(float(trace.tokens[t, cells].sum()) / total)
    return found


def score_below_for(traces: Sequence[Trace], routing: Routing, recall: float) -> float:
    """Return the score under which `TRIGGER` of the frames lie whose next frame is covered less than `recall`.

    A logit of that model: it means nothing for another one. `NEVER` where every frame is covered.
    """
    missed = [
        float(trace.score[t].min())
        for trace in traces
        for t in _missed(trace, routing, recall)
        if bool(trace.tracked[t].all())
    ]
    return round(float(np.quantile(missed, TRIGGER)), 3) if missed else NEVER


def _missed(trace: Trace, routing: Routing, recall: float) -> list[int]:
    """Frames whose next frame is not covered."""
    found = replay_routing(trace, routing, UNGUARDED).recall
    return [int(t) for t in np.nonzero(found < recall)[0]]


def keep_for(traces: Sequence[Trace], share: float) -> tuple[float, ...]:
    """Divide a mean kept share among layers so that the mass recall at the oldest age is largest.

    Tokens go one by one to the layer that gains the most mass by its next token: layers whose attention is
    flat give theirs to layers where few tokens hold much. At least one token a layer.
    """
    curve = np.mean([t.memory.curve[:, -1] for t in traces if t.memory is not None], axis=0)
    layers, tokens = curve.shape
    gain = np.diff(curve, axis=-1, prepend=0.0)[:, 1:].ravel()
    spare = max(0, int(share * tokens * layers) - layers)
    layer = np.argsort(-gain, kind="stable")[:spare] // (tokens - 1)
    counts = 1 + np.bincount(layer, minlength=layers)
    return tuple(float(count) / tokens for count in counts)


def scene_cut_for(traces: Sequence[Trace]) -> float | None:
    """Return a thumbnail difference far above what frames of one shot differ by; None where that is nothing.

    Three times the largest difference that three in four frames of a clip stay under, in the clip where it is
    largest: clips that are cut do not raise it. At most half of full scale.
    """
    usual = max(float(np.quantile(t.change[1:], 0.75)) for t in traces)
    return round(min(0.5, 3 * usual), 4) if usual > 0 else None


def mask_jump_for(traces: Sequence[Trace], routing: Routing, recall: float) -> float | None:
    """Return the mask change above which the guard acts: the larger of what catches misses and what spares the rest.

    Both are quantiles of a clip's frames, and the median over clips: masks of a clip that moves by more than the object
    change wholly from frame to frame, covered or not, and pooled they would set a threshold that nothing exceeds. In such
    a clip the rule acts often. None where every frame is covered.
    """
    missed: list[float] = []
    calm: list[float] = []
    for trace in traces:
        cues = trace.cues(routing)
        not_covered = set(_missed(trace, routing, recall))
        on_missed: list[float] = []
        on_covered: list[float] = []
        for t in range(len(trace.frames) - 1):
            jumps = [cue.jump for cue in cues[t] if cue is not None]
            if jumps:
                (on_missed if t in not_covered else on_covered).append(max(jumps))
        if on_missed:
            missed.append(float(np.quantile(on_missed, 1 - TRIGGER)))
        if on_covered:
            calm.append(float(np.quantile(on_covered, CALM)))
    if not missed or not calm:
        return None
    jump = max(float(np.median(missed)), float(np.median(calm)))
    return round(min(max(jump, 0.01), 1.0), 3)
