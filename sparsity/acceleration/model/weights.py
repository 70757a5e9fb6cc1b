"""Packed, fused and composed weights: made when first used, dropped when the model's weights change."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, count
from operator import attrgetter, is_not
from random import SystemRandom
from threading import RLock
from typing import Any, TypeVar

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import nn
from torch.nn.modules import module as torch_module

from sparsity.acceleration.model.changes import DROPS, changed_parts, only_watches

Part = TypeVar("Part")

SWITCHES = ("activation", "approximate", "eps", "num_heads", "window_size", "sigmoid_output")
"""Attributes of modules that the rewrites read, beside weights."""

VERSION = attrgetter("_version")

END = (object(),)
"""Comes after all that is held, so that one more or less is noticed."""

EVERYWHERE = torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks
"""Hooks of all modules of this process."""

Stamp = tuple[int, list[int], list[int], dict[str, str]]
"""Tells one set of weights, and of what was put around them, from another in this process."""

Version = tuple[int, torch.dtype]
"""Tells what was made of one set of weights in one number format, also in a state that another process goes on with."""


_versions = count(SystemRandom().getrandbits(62))
"""From another number in every process: what one made of its weights is never taken for another's own."""


def new_version(dtype: torch.dtype) -> Version:
    """The version of what is made of the weights now."""
    return next(_versions), dtype


class Weights:
    """The weights and modules of a model, found once and looked at on every frame.

    On a GPU the device waits meanwhile, so modules are walked again only where one of them, a weight, a hook, a
    forward or an attribute more is there than before.

    Attributes
    ----------
    changed
        Parts that aren't sam2's own, see `sparsity.acceleration.model.changes.changed_parts`.
    first
        The first weight: where they lie and in which number format.
    """

    first: nn.Parameter

    def __init__(self, model: SAM2Base) -> None:
        self.model, self.changed = model, dict[str, str]()
        self._found: list[nn.Parameter] = []
        self._counted: list[nn.Parameter] = []
        self._held: list[Any] = []
        self._holders: list[Any] = []
        self._slots: tuple[list[Any], ...] = ()
        self._moves = 0
        self._modules: list[nn.Module] = []
        self._seen: tuple[list[Any], ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """The model alone: a copy finds its own weights."""
        return Weights(self.model).__dict__

    def stamp(self) -> Stamp:
        """Where weights lie, how often they were changed in place, and which parts aren't sam2's own.

        Changes through ``p.data`` and those of inference tensors are not counted: `Derived.forget` is for them.
        """
        moved = not self._held or self._moved()
        if moved or self._look() != self._seen:
            self._moves += moved
            self._walk()
        places = list(map(torch.Tensor.data_ptr, self._found))
        return self._moves, places, list(map(VERSION, self._counted)), self.changed

    @property
    def around(self) -> int:
        """How many hooks, and methods of the model's own, may change what it computes, as it was looked at last."""
        methods = filter(callable, self.model.__dict__.values())
        hooks = chain(*(held.values() for held in self._hooks))
        return sum(not only_watches(one) for one in chain(methods, hooks))

    def _moved(self) -> bool:
        """Whether a module, a weight or a switch is another than it was, or there is one more or less."""
        # views of all dicts in a row: half as long as a look-up of each name
        if any(map(is_not, chain(*self._holders, END), self._held)):
            return True
        holders, names, values = self._slots
        return any(map(is_not, map(dict.get, holders, names), values))

    def _look(self) -> tuple[list[Any], ...]:
        """What else can change what modules do: attributes more, another class or forward, hooks."""
        hooks = [len(held) for held in self._hooks] if any(self._hooks) else []
        kinds = [kind.forward for kind in self._kinds]
        kinds.append(type(self.model).forward_image)
        return list(map(len, self._dicts)), list(map(type, self._modules)), kinds, hooks

    def _walk(self) -> None:
        self._modules, slots = [], list[tuple[dict[str, Any], str, Any]]()
        self._holders = []
        waiting: list[nn.Module] = [self.model]
        while waiting:
            part = waiting.pop()
            self._modules.append(part)
            self._holders += [held.values() for held in (part._parameters, part._modules) if held]
            watched = [name for name in SWITCHES if name in part.__dict__]
            watched += ["training"] * isinstance(part, DROPS)
            slots += [(part.__dict__, name, part.__dict__[name]) for name in watched]
            waiting.extend(child for child in part._modules.values() if child is not None)
        self._slots = tuple(list(column) for column in zip(*slots, strict=True))
        self._held = [*chain(*self._holders), *END]
        self._found = [it for it in self._held if isinstance(it, nn.Parameter)]
        self.first = self._found[0]
        self._counted = [p for p in self._found if not p.is_inference()]
        self._dicts = [part.__dict__ for part in self._modules]
        self._hooks: list[Any] = [EVERYWHERE[0], EVERYWHERE[1]]
        for part in self._modules:
            self._hooks += (part._forward_hooks, part._forward_pre_hooks)
        self._kinds = {type(part) for part in self._modules}
        self._seen, self.changed = self._look(), changed_parts(self.model)


class Derived:
    """What an accelerated predictor makes of its model's weights, by part, number format and image size.

    Threads share it: what one of them makes, others take.

    Attributes
    ----------
    generation
        How many sets of weights there were.
    first
        The first of the weights that were last looked at.
    """

    first: nn.Parameter

    def __init__(self) -> None:
        self._made: dict[tuple[str, torch.dtype, int], Any] = {}
        self._weights: Weights | None = None
        self._stamp: Stamp | None = None
        self.generation = 0
        self._lock = RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a copy makes its own, as packed weights can't be copied."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(Derived().__dict__)

    def look(self, model: SAM2Base) -> dict[str, str]:
        """Drop what was made of other weights, casts that autocast holds included; say what isn't sam2's own."""
        with self._lock:
            if self._weights is None or self._weights.model is not model:
                self._weights = Weights(model)
            stamp = self._weights.stamp()
            if self._stamp != stamp:
                self._made.clear()
                self.generation += 1
                torch.clear_autocast_cache()
                self._stamp = stamp
            self.first = self._weights.first
            return self._weights.changed

    def forget(self) -> None:
        """Drop what was made, whatever the weights look like."""
        self._stamp = None

    @property
    def around(self) -> int:
        """See `Weights.around`. `look` comes first."""
        assert self._weights is not None
        return self._weights.around

    @property
    def format(self) -> torch.dtype:
        """The number format of this run. `look` comes first."""
        device = self.first.device.type
        autocast = torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if autocast else self.first.dtype

    def get(self, part: str, model: SAM2Base, make: Callable[[torch.dtype], Part]) -> Part:
        """A part for the number format of this run; `make` makes it. `look` comes first."""
        dtype = self.format
        key = (part, dtype, model.image_size)
        with self._lock:
            if key not in self._made:
                self._made[key] = make(dtype)
            return self._made[key]
