"""Packed, fused and composed weights: made when first used, dropped when the model's weights change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

Part = TypeVar("Part")

Stamp = tuple[tuple[int, int], ...]
"""Tells one set of weights from another in this process."""


def weights_stamp(parameters: Iterable[Tensor]) -> Stamp:
    """Where weights lie and how often they were changed in place; the latter is not counted for inference tensors."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters)


class Derived:
    """What an accelerated predictor makes of its model's weights, by part, number format and image size."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, torch.dtype, int], Any] = {}
        self._stamp: Stamp = ()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a copy makes its own, as packed weights can't be copied."""
        return Derived().__dict__

    def get(self, part: str, model: SAM2Base, make: Callable[[torch.dtype], Part]) -> Part:
        """A part for the number format of this run; `make` makes it."""
        stamp = weights_stamp(model.parameters())
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
