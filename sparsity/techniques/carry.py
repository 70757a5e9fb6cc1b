"""Features carried over to a frame that computes none (``routing.every``): what objects cover moves as their masks moved.

The background stays where it was, and what an object uncovers keeps showing it. This project's own idea; the motion is that
of deep feature flow (Zhu et al., arXiv 1611.07715), with a translation an object in place of a field of flow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsity.techniques.select import LOW_RES_STRIDE


def carried_levels(
    levels: Sequence[Tensor], masks: Sequence[tuple[Tensor, Tensor]], frames: int, margin_px: float
) -> list[Tensor]:
    """Move what objects cover to where constant velocity takes it.

    Parameters
    ----------
    levels
        Features of a frame, ``[1, C, h, w]`` each.
    masks
        By object, the last in front: low-resolution logits ``[H, W]`` on the adjacent frame and on the one before it.
    frames
        How many frames ago the features were computed.
    margin_px
        Distance in pixels of the model's input by which masks are grown.

    Returns
    -------
    list of Tensor
        As `levels`; nothing moves for an object whose mask is empty on one of the frames.
    """
    if not masks:
        return list(levels)
    (height, width), device = masks[0][0].shape, levels[0].device
    reach = 2 * round(margin_px / LOW_RES_STRIDE) + 1
    here = _places(height, width, device)
    shift = torch.zeros_like(here)
    for now, before in masks:
        there = (now > 0).to(device, torch.float32)
        speed = _centre(there) - _centre((before > 0).to(device, torch.float32))
        speed = speed.nan_to_num(0.0)
        # where the object will be: places whose content comes from where it is
        covered = F.grid_sample(there[None, None], here - speed, align_corners=False)
        covered = F.max_pool2d(covered, reach, 1, reach // 2)[:, 0, :, :, None] > 0.5
        shift = torch.where(covered, speed * frames, shift)
    moved = []
    for level in levels:
        h, w = level.shape[-2:]
        by = F.interpolate(
            shift.permute(0, 3, 1, 2), (h, w), mode="bilinear", align_corners=False
        ).permute(0, 2, 3, 1)
        found = F.grid_sample(
            level.float(), _places(h, w, device) - by, padding_mode="border", align_corners=False
        )
        moved.append(found.to(level.dtype))
    return moved


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """Where the centres of a grid's cells lie, from -1 to 1 across and down, ``[1, height, width, 2]``."""
    down, across = (
        (torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n * 2 - 1
        for n in (height, width)
    )
    return torch.stack([across.expand(height, -1), down[:, None].expand(-1, width)], -1)[None]


def _centre(mask: Tensor) -> Tensor:
    """Centre of a mask ``[H, W]`` in the places of `_places`; NaN of an empty one."""
    weight, (height, width) = mask[None, :, :, None], mask.shape
    return (_places(height, width, mask.device) * weight).sum((0, 1, 2)) / weight.sum()
