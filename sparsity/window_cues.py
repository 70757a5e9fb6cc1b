"""Cheap cues of every window, from which a router tells whether the next frame needs it. Pure, no model.

All of them are known when a frame is done: its masks and how sure they are, its motion, its score.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsity.profile import Router
from sparsity.select import LOW_RES_STRIDE, TOKEN_STRIDE, WindowGrid, window_mass, windows_of_mask

REACHES = (0.0, 8.0, 16.0, 32.0, 64.0)
"""Distances to a mask, in pixels of the model's input, inside which a window is told apart."""

LOGITS = (-8.0, -4.0, -2.0, -1.0)
"""Mask logits over which a window's best token is told apart; 0 is the mask itself."""

LARGEST_LOGIT, LARGEST_STEP = 15.0, 4.0
"""Where logits, and motion in tokens a frame, are clipped."""

MASK_CUES = (
    "mask_share",
    *(f"within_{reach:g}px" for reach in REACHES),
    "ahead_share",
    *(f"ahead_within_{reach:g}px" for reach in REACHES),
    "candidate_share",
    "candidate_within_0px",
    "candidate_within_16px",
    "score",
    "mask_jump",
    "step",
    "area",
)
"""Columns of `window_cues` that masks and score give."""

LOGIT_CUES = tuple(
    f"{which}_{name}"
    for which in ("mask", "candidate")
    for name in (
        "logit",
        *(f"logit_over_{k:g}" for k in LOGITS),
        *(f"tokens_over_{k:g}" for k in LOGITS),
    )
)
"""Columns that need logits; recordings don't hold them."""

CUES = MASK_CUES + LOGIT_CUES
"""Names of the columns of `window_cues`."""


def token_logits(candidates: Tensor, best: Tensor) -> Tensor:
    """The largest logit at each token: of the chosen mask, and of all candidates.

    Parameters
    ----------
    candidates, best
        Low-resolution logits, ``[..., M, h, w]`` and ``[..., h, w]``.

    Returns
    -------
    Tensor
        float32 ``[..., 2, tokens, tokens]``.
    """
    pair = torch.stack([best, candidates.amax(-3)], -3).float()
    step = TOKEN_STRIDE // LOW_RES_STRIDE
    flat = F.max_pool2d(pair.flatten(0, -3)[:, None], step, ceil_mode=True)
    return flat.reshape(*pair.shape[:-2], *flat.shape[-2:])


def window_cues(
    candidates: Tensor,
    best: Tensor,
    before: Tensor | None,
    logits: Tensor | None,
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
    logits
        From `token_logits`, ``[2, tokens, tokens]``, or None where they were not kept.
    score
        Object-score logit.
    jump
        1 - IoU with the mask before.

    Returns
    -------
    Tensor
        float32 ``[windows, len(CUES)]``; NaN in `LOGIT_CUES` without logits.
    """
    one = torch.ones(grid.count, device=best.device)
    down, right = (0, 0) if before is None else _motion(before, best)
    ahead = _moved(best, down, right)
    union = candidates.any(0)
    shares = _share(torch.stack([best, ahead, union]), grid)
    near = torch.stack([windows_of_mask(torch.stack([best, ahead]), grid, r) for r in REACHES], 1)
    step = min((down**2 + right**2) ** 0.5 * LOW_RES_STRIDE / TOKEN_STRIDE, LARGEST_STEP)
    columns = [
        shares[0],
        *near[0].float(),
        shares[1],
        *near[1].float(),
        shares[2],
        windows_of_mask(union, grid, 0.0).float(),
        windows_of_mask(union, grid, 16.0).float(),
        one * score,
        one * jump,
        one * step,
        one * best.float().mean(),
        *(_sureness(logits, grid) if logits is not None else [one * torch.nan] * len(LOGIT_CUES)),
    ]
    return torch.stack(columns, 1)


def _sureness(logits: Tensor, grid: WindowGrid) -> list[Tensor]:
    """Columns of `LOGIT_CUES`."""
    columns = []
    extra = grid.side * grid.window - grid.tokens
    for one in logits:
        padded = F.pad(one, (0, extra, 0, extra), value=-LARGEST_LOGIT)
        top = F.max_pool2d(padded[None], grid.window).flatten().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        over = window_mass(torch.stack([one > k for k in LOGITS]), grid) / grid.window**2
        columns += [top, *((top > k).float() for k in LOGITS), *over]
    return columns


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

    Raises
    ------
    ValueError
        A cue that the router reads is not known.
    """
    picked = cues[:, [CUES.index(name) for name in router.cues]].double()
    if bool(picked.isnan().any()):
        raise ValueError("the router reads logits, and none were given")
    scaled = (picked - picked.new_tensor(router.mean)) / picked.new_tensor(router.scale)
    logit = scaled @ picked.new_tensor(router.coefficients) + router.intercept
    return logit.sigmoid() >= router.threshold


def _share(maps: Tensor, grid: WindowGrid) -> Tensor:
    """Share of each window that masks ``[n, h, w]`` cover, ``[n, windows]``."""
    span = maps.shape[-1] * grid.window // grid.tokens
    return window_mass(maps.float(), WindowGrid(maps.shape[-1], span)) / span**2


def _motion(before: Tensor, best: Tensor) -> tuple[int, int]:
    """Rows and columns by which the centre of the mask moved; none where a mask is empty."""
    if not bool(before.any()) or not bool(best.any()):
        return 0, 0
    step = best.nonzero().float().mean(0) - before.nonzero().float().mean(0)
    down, right = step.round().int().tolist()
    return down, right


def _moved(mask: Tensor, down: int, right: int) -> Tensor:
    """A mask ``[h, w]`` shifted; what leaves the frame is gone."""
    height, width = mask.shape
    moved = torch.zeros_like(mask)
    rows = slice(max(0, down), min(height, height + down))
    columns = slice(max(0, right), min(width, width + right))
    from_rows = slice(max(0, -down), min(height, height - down))
    from_columns = slice(max(0, -right), min(width, width - right))
    moved[rows, columns] = mask[from_rows, from_columns]
    return moved
