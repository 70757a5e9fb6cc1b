"""Packed, fused and composed weights: made when first used, dropped when the model's weights change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import nn

Part = TypeVar("Part")

Stamp = tuple[list[int], list[int]]
"""Tells one set of weights from another in this process."""

Version = tuple[int, torch.dtype]
"""Tells what was made of one set of weights in one number format, also in a state that another process goes on with."""


class Weights:
    """The weights of a module, found once and looked at on every frame.

    On a GPU the device waits meanwhile, so modules are walked again only where one of them, or a weight, is another.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._slots: list[tuple[dict[str, Any], str, Any]] = []
        self._found: list[nn.Parameter] = []
        self._counted: list[nn.Parameter] = []

    def __getstate__(self) -> dict[str, Any]:
        """The module alone: a copy finds its own weights."""
        return Weights(self.module).__dict__

    def stamp(self) -> Stamp:
        """Where weights lie and how often they were changed in place.

        Changes through ``p.data`` and those of inference tensors are not counted: `Derived.forget` is for them.
        """
        if not self._slots or any(held.get(name) is not it for held, name, it in self._slots):
            self._walk()
        return [p.data_ptr() for p in self._found], [p._version for p in self._counted]

    def _walk(self) -> None:
        self._slots, waiting = [], [self.module]
        while waiting:
            part = waiting.pop()
            for held in (part._parameters, part._modules):
                self._slots += [(held, name, it) for name, it in held.items()]
            waiting.extend(child for child in part._modules.values() if child is not None)
        self._found = [it for _, _, it in self._slots if isinstance(it, nn.Parameter)]
        self._counted = [p for p in self._found if not p.is_inference()]


class Derived:
    """What an accelerated predictor makes of its model's weights, by part, number format and image size."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, torch.dtype, int], Any] = {}
        self._weights: Weights | None = None
        self._stamp: Stamp | None = None
        self._looked: bool | None = None  # None where weights are looked at on every use

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a copy makes its own, as packed weights can't be copied."""
        return Derived().__dict__

    @contextmanager
    def looking_once(self) -> Iterator[None]:
        """Look whether weights changed when they are first used, and not again as long as the context lasts."""
        self._looked = False
        try:
            yield
        finally:
            self._looked = None

    def look(self, model: SAM2Base) -> None:
        """Drop what was made of other weights, casts that autocast holds included."""
        if self._looked:
            return
        if self._weights is None or self._weights.module is not model:
            self._weights = Weights(model)
        stamp = self._weights.stamp()
        if self._stamp != stamp:
            self._made.clear()
            torch.clear_autocast_cache()
            self._stamp = stamp
        self._looked = None if self._looked is None else True

    def forget(self) -> None:
        """Drop what was made, whatever the weights look like."""
        self._stamp = None

    @contextmanager
    def casting_once(self, model: SAM2Base) -> Iterator[None]:
        """Let autocast hold the casts of weights that sam2's own modules use; under inference mode it never does."""
        self.look(model)
        with torch.inference_mode(False), torch.no_grad():
            yield

    def get(self, part: str, model: SAM2Base, make: Callable[[torch.dtype], Part]) -> Part:
        """A part for the number format of this run; `make` makes it."""
        self.look(model)
        device = model.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else next(model.parameters()).dtype
        key = (part, dtype, model.image_size)
        if key not in self._made:
            self._made[key] = make(dtype)
        return self._made[key]
