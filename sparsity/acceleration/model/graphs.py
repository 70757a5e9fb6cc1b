"""CUDA graphs: what a frame launches kernel by kernel, recorded once for every kind of call and launched as one.

A frame of SAM 2 is a thousand small kernels, and a GPU waits while the host launches each. The first call of a kind
runs as it is, which fills caches and lets libraries choose their kernels; the second is recorded; later ones are
launched together, with the same results bit for bit. A kind of call is what is called and the sizes of what it is
given, so sparsity is kept: another number of windows is another kind.

See the section "CUDA Graphs" of torch's notes on CUDA semantics.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from threading import RLock
from typing import Any, TypeVar

import torch
from torch import Tensor

MOST_KINDS, MOST_GRAPHS = 256, 64
"""Kinds of calls that are remembered, and those of them that are recorded, which takes memory for what they are given
and make (some 80 MB for Large's encoder); what was not called for the longest time is dropped."""

SETTINGS = bool, int, float, str
"""Types of attributes that modules' code may ask for."""

DEVICES = ("cuda",)
"""Kinds of devices that launch graphs."""

Given = TypeVar("Given")
Made = TypeVar("Made")

Run = Callable[[tuple[Any, ...], Callable[[Any], Any], Any], Any]
"""From a kind of call, a function of tensors and its tensors to what the function makes of them."""


def plainly(kind: tuple[Any, ...], function: Callable[[Given], Made], given: Given) -> Made:
    """Call the function, operation by operation."""
    return function(given)


def can_record() -> bool:
    """Whether calls are recorded now: in inference, while nobody watches single operations."""
    watched = torch.utils._python_dispatch._get_current_dispatch_mode() is not None
    return torch.is_inference_mode_enabled() and not watched


def record(
    function: Callable[[Given], Made], given: Given, device: torch.device, pool: Any
) -> tuple[Made, Callable[[], None], Any]:
    """Record a function's kernels without running them.

    Returns
    -------
    tuple
        What the function returned, whose tensors a replay fills; the replay; the memory pool.
    """
    graph = torch.cuda.CUDAGraph()
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
    ):
        made = function(given)
    return made, graph.replay, graph.pool()


@dataclass(frozen=True)
class Recorded:
    """A recorded call: tensors that it reads, what it makes, with its tensors, each once, and how it is launched."""

    given: list[Tensor]
    made: Any
    tensors: list[Tensor]
    replay: Callable[[], None]

    def __call__(self, tensors: list[Tensor]) -> Any:
        """Launch it for other tensors of the same sizes; what it makes is the caller's own."""
        self._copy(self.given, tensors)
        self.replay()
        own = list(map(torch.empty_like, self.tensors))
        self._copy(own, self.tensors)
        by_static = dict(zip(map(id, self.tensors), own, strict=True))
        return mapped(self.made, lambda static: by_static[id(static)])

    @staticmethod
    def _copy(into: list[Tensor], tensors: list[Tensor]) -> None:
        """Copy tensors, by one operation all of a number format."""
        groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for its, fresh in zip(into, tensors, strict=True):
            group = groups.setdefault(fresh.dtype, ([], []))
            group[0].append(its)
            group[1].append(fresh)
        for of_format in groups.values():
            torch._foreach_copy_(*of_format)


class Graphs:
    """Recorded calls of one model, number format and image size.

    A recorded function may read what changes from call to call from the tensors it is given alone. All else is
    as it was when the function was recorded: it is either the same for all calls of a kind, or part of `kind`.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, Recorded | str] = OrderedDict()
        self._pool: Any = None
        self._lock = RLock()

    @property
    def recorded(self) -> int:
        """Number of kinds of calls that are launched as graphs."""
        return sum(isinstance(known, Recorded) for known in self._known.values())

    def run(
        self, kind: Hashable, function: Callable[[Given], Made], given: Given, device: torch.device
    ) -> Made:
        """Call a function of tensors, which `given` holds in tuples, lists, dicts and dataclasses.

        One thread at a time: a graph has one set of tensors that it reads and fills.
        """
        with self._lock:
            return self._run(kind, function, given, device)

    def _run(
        self, kind: Hashable, function: Callable[[Given], Made], given: Given, device: torch.device
    ) -> Made:
        shape, tensors = taken_apart(given)
        key = kind, shape
        known = self._known.get(key)
        if known is None:
            self._known[key] = "called"
            if len(self._known) > MOST_KINDS:
                self._known.popitem(last=False)
            return function(given)
        self._known.move_to_end(key)
        if known == "called":
            self._make_room()
            known = self._known[key] = self._record(function, given, device) or "not recordable"
        if isinstance(known, str):
            return function(given)
        return known(tensors)

    def _make_room(self) -> None:
        """Drop the graph that was not launched for the longest time, where there are as many as may be."""
        if self.recorded >= MOST_GRAPHS:
            oldest = next(key for key, known in self._known.items() if isinstance(known, Recorded))
            del self._known[oldest]

    def _record(
        self, function: Callable[[Given], Made], given: Given, device: torch.device
    ) -> Recorded | None:
        static = mapped(given, _own)
        # casts that autocast holds lie outside the graph, and may be freed while it reads them
        torch.clear_autocast_cache()
        try:
            made, replay, self._pool = record(function, static, device, self._pool)
        except RuntimeError as error:
            warnings.warn(
                f"a part of the model can't be recorded as a CUDA graph and runs kernel by kernel: {error}",
                stacklevel=2,
            )
            return None
        finally:
            torch.clear_autocast_cache()  # nor may the graph's own casts be read elsewhere
        results: dict[int, Tensor] = {}
        mapped(made, lambda tensor: results.setdefault(id(tensor), tensor))
        return Recorded(taken_apart(static)[1], made, list(results.values()), replay)


def mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tree of tuples, lists, dicts and dataclasses with other tensors."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, (tuple, list)):  # quicker than a union of types
        return type(tree)([mapped(item, change) for item in tree])
    if isinstance(tree, dict):
        return {name: mapped(item, change) for name, item in tree.items()}
    kind: Any = type(tree)
    if names := _fields(kind):
        return replace(tree, **{name: mapped(getattr(tree, name), change) for name in names})
    return tree


def taken_apart(tree: Any) -> tuple[Hashable, list[Tensor]]:
    """All of a tree but the numbers in its tensors; and these, each without repetitions that take no memory."""
    found: list[Tensor] = []

    def shape_of(tree: Any) -> Hashable:
        if isinstance(tree, Tensor):
            shape, steps = tree.shape, tree.stride()
            if 0 not in shape:
                found.append(_compact(tree) if 0 in steps else tree)
            return shape, steps, tree.dtype
        kind: Any = type(tree)
        if isinstance(tree, (tuple, list)):
            return kind, *[shape_of(item) for item in tree]
        if isinstance(tree, dict):
            return tuple([(name, shape_of(item)) for name, item in tree.items()])
        if names := _fields(kind):
            return kind, *[shape_of(getattr(tree, name)) for name in names]
        return kind, tree

    return shape_of(tree), found


@cache
def _fields(kind: type) -> tuple[str, ...]:
    """Names of a dataclass's fields; none of other types."""
    return tuple(f.name for f in fields(kind)) if is_dataclass(kind) else ()


def settings_of(module: torch.nn.Module) -> Hashable:
    """Numbers, switches and names that are attributes of a module: what its code may ask for beside tensors."""
    return tuple([value for value in vars(module).values() if isinstance(value, SETTINGS)])


def _compact(tensor: Tensor) -> Tensor:
    """A tensor without the dimensions that it is expanded to."""
    if 0 not in tensor.stride():
        return tensor
    return tensor[tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())]


def _own(tensor: Tensor) -> Tensor:
    """A copy in the same order of dimensions, expanded where the original is."""
    return _compact(tensor).clone().expand(tensor.shape)
