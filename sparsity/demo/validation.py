"""How well the model tracks the clips that it is not trained on."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from sparsity.demo.network import autocast, set_size
from sparsity.demo.photos import Pool
from sparsity.demo.unroll import unroll

VALIDATION_SIZE = 384


def jaccard(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Return the intersection over union of boolean masks [N, ...] as [N]; both empty: 1."""
    found, true = found.flatten(1), true.flatten(1)
    union = (found | true).sum(1)
    return torch.where(union > 0, (found & true).sum(1) / union.clamp(min=1), 1.0)


@torch.no_grad()
def validate(model: Any, pool: Pool, device: str, length: int = 16) -> dict[str, Any]:
    """Track the held-out clips at the demo model's size from frame 0's mask; mean J over frames 1.. in %."""
    set_size(model, VALIDATION_SIZE)
    clips = torch.stack([clip[:length] for clip in pool.held_out]).to(device)
    side = (VALIDATION_SIZE, VALIDATION_SIZE)
    scaled = F.interpolate(clips.flatten(0, 1).float() / 255, side, mode="bilinear")
    scaled = scaled.unflatten(0, clips.shape[:2])
    masks = scaled[:, :, 3:] > 0.5
    model.eval()
    with autocast(device):
        out = unroll(model, scaled[:, :, :3], masks)
    true = out.targets > 0.5
    each = torch.stack([jaccard(s.best[:, 0] > 0, true[:, s.frame]) for s in out.steps]).mean(0)
    frozen = torch.stack([jaccard(true[:, 0], true[:, s.frame]) for s in out.steps]).mean()
    model.train()
    return {
        "calibrate_j": round(100 * each.mean().item(), 1),
        "calibrate_each": [round(100 * x) for x in each.tolist()],
        "frozen_mask_j": round(100 * frozen.item(), 1),
    }
