"""Cheap cues of every window, from which a router tells whether the next frame needs it. Pure, no model.

All of them are known when a frame is done: its masks, its decoder saliency, its score.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsity.profile import Router
from sparsity.select import WindowGrid, window_mass, windows_of_mask

REACHES = (0.0, 8.0, 16.0, 32.0, 64.0)
"""Distances to the mask, in pixels of the model's input, inside which a window is told apart."""

CUES = (
    "mask_share",
    *(f"within_{reach:g}px" for reach in REACHES),
    "candidate_within_0px",
    "candidate_within_16px",
    "ahead_share",
    "ahead_within_8px",
    "log_saliency",
    "saliency_rank",
    "score",
    "mask_jump",
    "jump_near",
)
"""Names of the columns of `window_cues`."""


def window_cues(
    candidates: Tensor,
    best: Tensor,
    before: Tensor | None,
    saliency: Tensor | None,
    score: float,
    jump: float,
    grid: WindowGrid,
) -> Tensor:
    """Describe every window by what one object's result says about it.

    Parameters
    ----------
    candidates
        Bool, ``[M, h, w]`` at low resolution: the decoder's candidate masks.
    best
        Bool, ``[h, w]``: the mask that was chosen.
    before
        Bool, ``[h, w]``: the mask on the frame before, or None; gives the object's motion.
    saliency
        Decoder attention on the token grid, ``[tokens, tokens]``, or None where no decoder ran.
    score
        Object-score logit.
    jump
        1 - IoU with the mask before.

    Returns
    -------
    Tensor
        float32 ``[windows, len(CUES)]``.
    """
    one = torch.ones(grid.count, device=best.device)
    ahead = best if before is None else _moved_on(before, best)
    maps = torch.stack([best, ahead])
    shares = _share(maps, grid)
    near = [windows_of_mask(best, grid, reach).float() for reach in REACHES]
    union = candidates.any(0)
    mass = one / grid.count if saliency is None else window_mass(saliency, grid)
    rank = mass.argsort(descending=True, stable=True).argsort().float() / grid.count
    columns = [
        shares[0],
        *near,
        windows_of_mask(union, grid, 0.0).float(),
        windows_of_mask(union, grid, 16.0).float(),
        shares[1],
        windows_of_mask(ahead, grid, 8.0).float(),
        (mass * grid.count).clamp(min=1e-3).log(),
        rank,
        one * score,
        one * jump,
        near[2] * jump,
    ]
    return torch.stack(columns, 1)


def needed(cues: Tensor, router: Router) -> Tensor:
    """Tell which windows a router asks for.

    Parameters
    ----------
    cues
        From `window_cues`, ``[windows, len(CUES)]``.

    Returns
    -------
    Tensor
        Bool, ``[windows]``.
    """
    picked = cues[:, [CUES.index(name) for name in router.cues]].double()
    scaled = (picked - picked.new_tensor(router.mean)) / picked.new_tensor(router.scale)
    logit = scaled @ picked.new_tensor(router.coefficients) + router.intercept
    return logit.sigmoid() >= router.threshold


def _share(maps: Tensor, grid: WindowGrid) -> Tensor:
    """Share of each window that masks ``[n, h, w]`` cover, ``[n, windows]``."""
    span = maps.shape[-1] * grid.window // grid.tokens
    return window_mass(maps.float(), WindowGrid(maps.shape[-1], span)) / span**2


def _moved_on(before: Tensor, best: Tensor) -> Tensor:
    """The mask, shifted once more by the motion of its centre since the frame before."""
    if not bool(before.any()) or not bool(best.any()):
        return best
    height, width = best.shape
    step = best.nonzero().float().mean(0) - before.nonzero().float().mean(0)
    down, right = (int(v) for v in step.round().tolist())
    moved = torch.zeros_like(best)
    rows = slice(max(0, down), min(height, height + down))
    columns = slice(max(0, right), min(width, width + right))
    from_rows = slice(max(0, -down), min(height, height - down))
    from_columns = slice(max(0, -right), min(width, width - right))
    moved[rows, columns] = best[from_rows, from_columns]
    return moved
