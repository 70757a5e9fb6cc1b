"""Packed, fused and composed weights: made when first used, dropped when the model's weights change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from sam2.modeling.sam2_base import SAM2Base

Part = TypeVar("Part")


class Derived:
    """What an accelerated predictor makes of its model's weights, by part, number format and image size."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, torch.dtype, int], Any] = {}
        self._stamp: tuple[tuple[int, int], ...] = ()

    def get(self, part: str, model: SAM2Base, make: Callable[[torch.dtype], Part]) -> Part:
        """A part for the number format of this run; `make` makes it."""
        stamp = tuple((p.data_ptr(), p._version) for p in model.parameters())
        if self._stamp != stamp:
            self._made.clear()
            self._stamp = stamp
        device = model.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else next(model.parameters()).dtype
        key = (part, dtype, model.image_size)
        if key not in self._made:
            self._made[key] = make(dtype)
        return self._made[key]
