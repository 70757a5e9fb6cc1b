"""What the demo model is taught: masks, presence, and to find a target by its look."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from training.unroll import Step


@dataclass(frozen=True)
class Balance:
    """Weights of the mask losses; ``alpha`` is the focal loss's weight of the target's pixels.

    0.25, as SAM 2 has it, keeps masks empty while the decoder is still blank.
    """

    focal: float
    dice: float
    alpha: float


TRACKED = Balance(20.0, 1.0, 0.5)
PROMPTED = Balance(10.0, 3.0, 0.8)  # a click alone says so little that empty masks tempt more
POINTER_SHARES = (0.03, 0.12)  # of the attention mass, between which pointers are left alone
ABSENT_WEIGHT = 1.2  # absent frames are few


def mask_loss(
    step: Step, truth: torch.Tensor, usable: torch.Tensor, balance: Balance = TRACKED
) -> torch.Tensor:
    """Return SAM 2's loss for one frame: focal + dice of the best candidate, IoU, presence.

    Parameters
    ----------
    truth : Tensor, float [N, S, S]
    usable : Tensor, bool [N]
        Targets that the prompt showed.
    """
    logits = F.interpolate(
        step.multi.float(), scale_factor=2, mode="bilinear", align_corners=False
    ).clamp(-30, 30)
    target = F.avg_pool2d(truth, 2)[:, None].expand_as(logits)
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    right = probability * target + (1 - probability) * (1 - target)
    alpha = balance.alpha * target + (1 - balance.alpha) * (1 - target)
    focal = (alpha * (1 - right) ** 2 * entropy).flatten(2).mean(-1)
    shared = (probability * target).flatten(2).sum(-1)
    areas = probability.flatten(2).sum(-1) + target.flatten(2).sum(-1)
    dice = 1 - (2 * shared + 1) / (areas + 1)
    both = balance.focal * focal + balance.dice * dice
    with torch.no_grad():
        on, true = logits > 0, target >= 0.5
        union = (on | true).flatten(2).sum(-1).clamp(min=1)
        iou = (on & true).flatten(2).sum(-1) / union
    present = truth.flatten(1).any(1)
    weight = (present & usable).float()
    total = weight.sum().clamp(min=1)
    masks = (both.amin(1) * weight).sum() / total
    ious = ((step.ious.float() - iou).abs().mean(1) * weight).sum() / total
    score = F.binary_cross_entropy_with_logits(
        step.score[:, 0].float(),
        present.float(),
        weight=usable.float() * torch.where(present, 1.0, ABSENT_WEIGHT),
    )
    return masks + ious + score


def occupancy(truth: torch.Tensor, stride: int = 16) -> torch.Tensor:
    """Return the target's share of each stride-16 cell: [N, T, S, S] -> [N, T, cells]."""
    return F.avg_pool2d(truth, stride).flatten(2)


def attention_loss(step: Step, occupied: torch.Tensor) -> torch.Tensor | None:
    """Ask queries on the target to look at the target's memory tokens, in every memory frame.

    Half of the loss is about the mass on the target over all frames, half about every single
    frame that shows it, so that attention does not settle on one frame alone.

    Parameters
    ----------
    occupied : Tensor, float [N, T, cells]
    """
    cells = occupied.shape[-1]
    queries = (occupied[:, step.frame] > 0.5).float()
    keys = occupied[:, step.memory]
    shown = (keys.sum(-1) > 0.5).float()
    asked = (queries.sum(1) > 0) & (shown.sum(1) > 0)
    if not asked.any():
        return None
    total = occupied.new_zeros(())
    for weights in step.weights:
        spatial = weights[:, :, : len(step.memory) * cells]
        frames = (spatial.unflatten(-1, (-1, cells)) * keys[:, None]).sum(-1)  # [N, q, frames]
        overall = -frames.sum(-1).clamp(1e-4, 1).log()
        each = -(frames.clamp(1e-4, 1).log() * shown[:, None]).sum(-1)
        count = shown.sum(1)[:, None].clamp(min=1)
        each = each / count - count.log()  # 0 where the frames share evenly
        loss = ((0.5 * overall + 0.5 * each) * queries).sum(1) / queries.sum(1).clamp(min=1)
        total = total + loss[asked].mean()
    return total / len(step.weights)


def pointer_loss(step: Step, cells: int) -> torch.Tensor:
    """Keep the attention mass of object pointers within ``POINTER_SHARES`` in every layer."""
    start = len(step.memory) * cells
    shares = torch.stack([w[:, :, start:].sum(-1).mean(-1) for w in step.weights])
    logs, (low, high) = shares.clamp(min=1e-5).log(), POINTER_SHARES
    return (F.relu(math.log(low) - logs) + F.relu(logs - math.log(high))).mean()


def token_contrast(
    tokens: torch.Tensor, masks: torch.Tensor, temperature: float = 0.1, cap: int = 1200
) -> torch.Tensor:
    """Ask a target's tokens to resemble the same target's tokens in the clip's other frames.

    Supervised InfoNCE against every other token of the batch.

    Parameters
    ----------
    tokens : Tensor [cells, B * T, C]
        Stride-16 features of the backbone.
    masks : Tensor, bool [B, T, O, S, S]
    """
    clips, length, objects = masks.shape[:3]
    cells = tokens.shape[0]
    cover = F.avg_pool2d(masks.flatten(0, 2)[:, None].float(), 16).view(
        clips, length, objects, cells
    )
    best, which = cover.max(2)
    device = tokens.device
    names = torch.arange(clips, device=device)[:, None, None] * objects + which
    names = torch.where(best > 0.6, names, -1)
    frames = torch.arange(clips * length, device=device).view(clips, length, 1).expand_as(best)
    clear = (best > 0.6) | (best < 0.1)
    clear &= (names >= 0) | (torch.rand_like(best) < 4000 / best.numel())  # enough background
    flat = tokens.permute(1, 0, 2).reshape(clips, length, cells, -1)
    flat = F.normalize(flat[clear].float(), dim=-1)
    names, frames = names[clear], frames[clear]
    asked = (names >= 0).nonzero()[:, 0]
    asked = asked[torch.randperm(len(asked), device=device)[:cap]]
    similar = flat[asked] @ flat.T / temperature
    same = names[asked][:, None] == names[None]
    elsewhere = frames[asked][:, None] != frames[None]
    found = (same & elsewhere).any(1)
    if not found.any():
        return tokens.sum() * 0
    similar = similar.masked_fill(same & ~elsewhere, -1e4)
    right = similar.masked_fill(~(same & elsewhere), -1e4)
    return (similar.logsumexp(1) - right.logsumexp(1))[found].mean()
