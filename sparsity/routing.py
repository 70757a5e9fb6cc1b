"""The routing decision of one frame: which windows of encoder stage 3 to compute, or all, and why.

Pure: what it reads (`FrameCues`) is what the adjacent frame's results and a thumbnail say, so calibration
replays the same decision from a recording.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity.profile import Guard, Router, Windows
from sparsity.select import WindowGrid, mask_jump, smallest_set, window_mass, windows_of_mask
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
    """

    touched: Tensor
    mass: Tensor | None
    score: float
    jump: float = 0.0


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
    """Windows to compute; None means a dense frame. `reason` says why, in one or two words."""

    windows: tuple[int, ...] | None
    reason: str

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
        float32 ``[2 * windows + 2]``: `touched`, `mass` (NaN for None), `score` and `jump` of `ObjectCues`.
    """
    source = candidates if windows.candidates == "all" else best[None]
    touched = windows_of_mask((source > 0).any(0), grid, windows.margin_px)
    mass = None if saliency is None else window_mass(saliency, grid)
    jump = best.new_zeros(()) if before is None else mask_jump(before > 0, best > 0)
    if router is not None and bool(touched.any()):
        last = None if before is None else before > 0
        cues = window_cues(candidates > 0, best > 0, last, logits, float(score), float(jump), grid)
        touched = needed(cues, router)
    if mass is None:
        mass = torch.full(touched.shape, torch.nan, device=best.device)
    numbers = torch.stack([torch.as_tensor(score, device=best.device).float(), jump.float()])
    return torch.cat([touched.to(best.device).float(), mass, numbers])


def cues_on_host(rows: Tensor) -> list[ObjectCues]:
    """Fetch the `cue_row` of each object, ``[O, 2 * windows + 2]``, in one transfer."""
    count = (rows.shape[1] - 2) // 2
    return [
        ObjectCues(
            row[:count] > 0,
            None if bool(row[count : 2 * count].isnan().any()) else row[count : 2 * count],
            float(row[-2]),
            float(row[-1]),
        )
        for row in rows.cpu()
    ]


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
