"""What frames take over that do not compute all windows anew: what each window gave when it was last computed, or all
features of an earlier frame, moved as the objects moved."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsity.techniques.select import LOW_RES_STRIDE

ReusedPart = Literal["early", "last_block", "stage4"]
"""Parts of the encoder that windows left out on a frame take over from their last computation: patch embedding, stages 1
and 2 and the block that opens stage 3; stage 3's last global block; stage 4."""

REUSED_PARTS: tuple[ReusedPart, ...] = get_args(ReusedPart)

CHANGE = "change"
"""Kept for the cached adapter: what stage 3's blocks changed, ``[tokens, C]`` float32."""


def picture_of(unit: str) -> str:
    """Name of what a rolling refresh keeps: `sparsity.techniques.select.pictures` of what windows or cells were computed
    from."""
    return f"pictures of {unit}s"


@dataclass
class LastComputed:
    """Results of parts of the encoder, window by window as old as the window's last computation.

    Attributes
    ----------
    version
        Of the encoder that computed them: its weights and number format.
    frame
        Index of the frame that was encoded last.
    parts
        By what keeps them: `REUSED_PARTS`, `CHANGE` and `picture_of`; rows of the tensors belong to windows.
    """

    version: Hashable
    frame: int
    parts: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def serve(self, parts: frozenset[str], frame: int, version: Hashable, every: int = 1) -> bool:
        """Whether a frame can be encoded with these in place of what is left out, where every so many frames are encoded."""
        near = abs(frame - self.frame) <= every
        return near and version == self.version and parts <= set(self.parts)

    def carry(self, parts: frozenset[str]) -> None:
        """Drop all other parts: nobody computes them on this frame, and they would look as young as it."""
        self.parts = {part: found for part, found in self.parts.items() if part in parts}

    def share(self, nth: int, pictures: int) -> LastComputed:
        """What belongs to one of several pictures that were computed together, whole."""
        own = {
            part: tuple(rows.chunk(pictures)[nth].clone() for rows in found)
            for part, found in self.parts.items()
        }
        return LastComputed(self.version, self.frame, own)

    def complete(self, part: str, places: Tensor | None, *fresh: Tensor) -> tuple[Tensor, ...]:
        """Put fresh rows among those that were computed before.

        Parameters
        ----------
        part
            The technique.
        places
            Rows that are fresh, int64; None when all are.
        fresh
            ``[len(places), ...]`` each.

        Returns
        -------
        tuple
            The whole tensors, which later frames overwrite.
        """
        if places is None:
            self.parts[part] = fresh
        else:
            for kept, rows in zip(self.parts[part], fresh, strict=True):
                kept.index_copy_(0, places, rows)
        return self.parts[part]


def carried_levels(
    levels: Sequence[Tensor], masks: Sequence[tuple[Tensor, Tensor]], frames: int, margin_px: float
) -> list[Tensor]:
    """Move what objects cover to where constant velocity takes it, for a frame that computes nothing (``routing.every``).

    The background stays where it was, and what an object uncovers keeps showing it. This project's own idea; the motion is
    that of deep feature flow (Zhu et al., arXiv 1611.07715), with a translation an object in place of a field of flow.

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
