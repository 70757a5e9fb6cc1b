"""The routing decision of one frame: which windows of encoder stage 3 to compute, or all, and why.

Pure: what it reads (`FrameCues`) is what the adjacent frame's results and a thumbnail say, so calibration
replays the same decision from a recording.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsity.profile import Guard, Router, Windows
from sparsity.select import (
    WindowGrid,
    mask_jump,
    most_changed,
    refreshed_count,
    smallest_set,
    window_mass,
    windows_of_mask,
)
from sparsity.window_cues import needed, window_cues

RESCUES = ("scene cut", "empty mask", "low score", "mask jump")
"""Reasons of a dense frame that say a rule of the guard saw trouble."""


@dataclass(frozen=True)
class ObjectCues:
    """What one object's result on the adjacent frame says about the next frame.

    Attributes
    ----------
    touched
        Bool, ``[windows]``: windows that a candidate mask touches, margin included.
    mass
        float32, ``[windows]``: decoder saliency per window, sums to 1; None where no decoder ran.
    score
        Object-score logit.
    jump
        1 - IoU with the mask before it, in [0, 1]; 0 when there is none.
    cells
        Bool, ``[cells]``: the same as `touched` for cells of 2 x 2 tokens; none where windows stay whole.
    """

    touched: Tensor
    mass: Tensor | None
    score: float
    jump: float = 0.0
    cells: Tensor | None = None


@dataclass(frozen=True)
class FrameCues:
    """All that is known before a frame is encoded.

    Attributes
    ----------
    objects
        One entry per object, by object id; None for an object without a result on the adjacent frame.
    scene_change
        Mean absolute thumbnail difference to the adjacent frame, share of full scale.
    since_dense
        Frames since the last dense one; 1 directly after it.
    """

    objects: dict[int, ObjectCues | None]
    scene_change: float = 0.0
    since_dense: int = 1


@dataclass(frozen=True)
class Decision:
    """Windows to compute; None means a dense frame.

    Attributes
    ----------
    reason
        Why, in one or two words.
    cells
        Cells of 2 x 2 tokens that the windows are trimmed to, some of each; None leaves them whole.
    """

    windows: tuple[int, ...] | None
    reason: str
    cells: tuple[int, ...] | None = None

    @property
    def rescued(self) -> bool:
        """Whether a rule of the guard saw trouble: the frame is encoded densely and reads all of its memory."""
        return self.reason in RESCUES


def cue_row(
    candidates: Tensor,
    best: Tensor,
    before: Tensor | None,
    saliency: Tensor | None,
    score: float | Tensor,
    grid: WindowGrid,
    windows: Windows,
    router: Router | None = None,
    logits: Tensor | None = None,
) -> Tensor:
    """Reduce one object's result to its cues, on the device where it is.

    Parameters
    ----------
    candidates
        Low-resolution logits of all candidate masks, ``[M, h, w]``.
    best
        Low-resolution logits of the mask that was chosen, ``[h, w]``.
    before
        Chosen logits on the frame before, or None.
    saliency
        Decoder attention on the token grid, ``[tokens, tokens]``, or None where no decoder ran.
    score
        Object-score logit.
    router
        Says which windows an object with a mask needs, instead of the mask grown by a margin.
    logits
        What the router may read of them, from `sparsity.window_cues.token_logits`.

    Returns
    -------
    Tensor
        float32 ``[2 * windows + 2 + cells]``: `touched`, `mass` (NaN for None), `score`, `jump` and `cells` of
        `ObjectCues`.
    """
    there = ((candidates if windows.candidates == "all" else best[None]) > 0).any(0)
    touched = windows_of_mask(there, grid, windows.margin_px)
    mass = None if saliency is None else window_mass(saliency, grid)
    jump = best.new_zeros(()) if before is None else mask_jump(before > 0, best > 0)
    if router is not None and bool(touched.any()):
        last = None if before is None else before > 0
        cues = window_cues(candidates > 0, best > 0, last, logits, float(score), float(jump), grid)
        touched = needed(cues, router)
    if mass is None:
        mass = torch.full(touched.shape, torch.nan, device=best.device)
    numbers = torch.stack([torch.as_tensor(score, device=best.device).float(), jump.float()])
    parts = [touched.to(best.device).float(), mass, numbers]
    if windows.trimmed:
        parts.append(windows_of_mask(there, grid.cells, windows.margin_px).float())
    return torch.cat(parts)


def cues_on_host(rows: Tensor, grid: WindowGrid) -> list[ObjectCues]:
    """Fetch the `cue_row` of each object, ``[O, 2 * windows + 2 + cells]``, in one transfer."""
    sizes = (grid.count, grid.count, 2, rows.shape[1] - 2 * grid.count - 2)
    found = []
    for touched, mass, numbers, cells in (row.split(sizes) for row in rows.cpu()):
        score, jump = numbers.tolist()
        known = None if bool(mass.isnan().any()) else mass
        found.append(ObjectCues(touched > 0, known, score, jump, cells > 0 if len(cells) else None))
    return found


def decide(cues: FrameCues, windows: Windows, guard: Guard) -> Decision:
    """Choose the windows of a frame (method 2.3), unless a rule of the guard asks for a dense one.

    The masks of all objects choose windows together. If no mask touches any, or an object's score is
    below `windows.score_below`, the smallest set of windows that holds `windows.saliency_mass` of each
    object's decoder saliency on the adjacent frame is added.
    """
    reason = _dense_reason(cues, guard)
    if reason is not None:
        return Decision(None, reason)
    known = [cue for cue in cues.objects.values() if cue is not None]
    kept = torch.stack([cue.touched for cue in known]).any(0)
    unsure = not bool(kept.any()) or min(cue.score for cue in known) < windows.score_below
    if unsure:
        for cue in known:
            if cue.mass is not None:
                kept = kept | smallest_set(cue.mass, windows.saliency_mass)
    if not bool(kept.any()):
        return Decision(None, "nothing to route by")
    chosen = tuple(torch.nonzero(kept)[:, 0].tolist())
    if len(chosen) > guard.kept_share * kept.numel():
        return Decision(None, "most windows kept")
    return Decision(chosen, "saliency added" if unsure else "routed")


def parts_computed(decision: Decision, of: Tensor) -> Tensor:
    """Say which parts of windows a routed frame computes, bool ``[parts]``.

    `of` is each part's window, int64: parts are whole windows, or cells of 2 x 2 tokens.
    """
    assert decision.windows is not None, "dense frames compute all"
    if decision.cells is None:
        return torch.isin(of, torch.tensor(decision.windows))
    computed = torch.zeros(len(of), dtype=torch.bool)
    computed[list(decision.cells)] = True
    return computed


def refreshed(
    decision: Decision, change: Tensor, of: Tensor, parts_of_window: int, every: int
) -> Decision:
    """Add some of the windows left out or trimmed, whole: those whose parts left out changed most.

    Parameters
    ----------
    change
        How much the picture of each part changed since it was computed last, ``[parts]``.
    of
        Each part's window, int64 ``[parts]``.
    parts_of_window
        Parts that windows have, but for those over the grid's edge.
    every
        Of so many windows' worth of parts left out one window is added.
    """
    assert decision.windows is not None, "dense frames need no refresh"
    left_out = ~parts_computed(decision, of)
    windows = int(of.max()) + 1
    counts = of[left_out].bincount(minlength=windows)
    total = change.new_zeros(windows).index_add_(0, of[left_out], change[left_out])
    among = tuple(torch.nonzero(counts)[:, 0].tolist())
    count = refreshed_count(int(left_out.sum()) / parts_of_window, every)
    added = most_changed(total / counts.clamp(min=1), among, count)
    cells = decision.cells
    if cells is not None:
        whole = torch.nonzero(torch.isin(of, torch.tensor(added)))[:, 0]
        cells = tuple(sorted({*cells, *whole.tolist()}))
    return Decision(tuple(sorted({*decision.windows, *added})), decision.reason, cells)


def trimmed(decision: Decision, cues: FrameCues, grid: WindowGrid) -> Decision:
    """Trim the windows of a decision to the cells that masks touch; those that no mask touches stay whole."""
    if decision.windows is None:
        return decision
    known = [
        cue.cells for cue in cues.objects.values() if cue is not None and cue.cells is not None
    ]
    near, of = torch.stack(known).any(0), grid.window_of_cell
    chosen = torch.zeros(grid.count, dtype=torch.bool)
    chosen[list(decision.windows)] = True
    untouched = chosen.clone()
    untouched[of[near]] = False
    cells = torch.nonzero(near & chosen[of] | untouched[of])[:, 0]
    return replace(decision, cells=tuple(cells.tolist()))


def _dense_reason(cues: FrameCues, guard: Guard) -> str | None:
    """The first rule that asks for a dense frame, or None."""
    known = [cue for cue in cues.objects.values() if cue is not None]
    if not known or len(known) < len(cues.objects):
        return "no adjacent result"
    if guard.refresh_every is not None and cues.since_dense >= guard.refresh_every:
        return "refresh"
    if guard.scene_cut is not None and cues.scene_change > guard.scene_cut:
        return "scene cut"
    if guard.score_below is not None:
        if any(not bool(cue.touched.any()) for cue in known):
            return "empty mask"
        if min((cue.score for cue in known), default=math.inf) < guard.score_below:
            return "low score"
    if guard.mask_jump is not None and max(cue.jump for cue in known) > guard.mask_jump:
        return "mask jump"
    return None
