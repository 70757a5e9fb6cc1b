"""A stand-in for CUDA's graphs on a CPU: records the operations of a function and repeats them on the same tensors.

Like a graph it knows nothing but addresses: whatever the function read from elsewhere than its tensors is as it was
when it was recorded. What can't be recorded on a GPU, because the host would wait or would send numbers, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Given = TypeVar("Given")
Made = TypeVar("Made")

REFUSED = frozenset(
    ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "is_nonzero", "item")
)
"""Operations that wait for the device, or send it numbers of the host."""


class Tapes:
    """Takes the place of `sparsity.acceleration.model.graphs.record`, and counts.

    Attributes
    ----------
    recorded, replayed
        How many functions were recorded, and how often one of them was repeated.
    """

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(
        self, function: Callable[[Given], Made], given: Given, device: torch.device, pool: Any
    ) -> tuple[Made, Callable[[], None], Any]:
        """Record a function, which runs meanwhile, unlike on a GPU."""
        with _Tape() as tape:
            made = function(given)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return made, replay, None


class _Tape(TorchDispatchMode):
    """Notes operations that make or change tensors, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, mutates, may_view = _known(func)
        if name in REFUSED:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        out = func(*args, **kwargs)
        if mutates:
            self.steps.append((func, args, kwargs, []))
        elif not name.startswith("empty"):
            made = list(_tensors(out))
            if not (may_view and _are_views(made, (args, kwargs))):
                self.steps.append((func, args, kwargs, made))
        return out

    def replay(self) -> None:
        """Repeat all, into the tensors that were made then."""
        for func, args, kwargs, made in self.steps:
            again = func(*args, **kwargs)
            if made:
                for kept, fresh in zip(made, _tensors(again), strict=True):
                    kept.copy_(fresh)


@cache
def _known(func: Any) -> tuple[str, bool, bool]:
    """Name of an operation, whether it changes what it is given, and whether it may give a view of that."""
    schema = func._schema
    may_view = any(made.alias_info is not None for made in schema.returns)
    return schema.name.split("::")[1], schema.is_mutable, may_view


def _are_views(made: list[Tensor], given: Any) -> bool:
    """Whether tensors lie in the memory of those that were given, and follow by themselves."""
    memory = {tensor.untyped_storage().data_ptr() for tensor in _tensors(given)}
    return all(tensor.untyped_storage().data_ptr() in memory for tensor in made)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))
