"""The one seam through which attention is observed, on a stock and on an accelerated predictor alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probes.layout import MemoryLayout


@dataclass(frozen=True)
class Moment:
    """When an attention call happens.

    Attributes
    ----------
    frame
        Index of the frame; None where it is not known (features asked for outside tracking).
    objects
        Ids of the objects that the call's batch rows belong to, in order; empty for encoder calls. A call
        that all objects share (the first memory self-attention) has one row and names them all.
    reverse
        Whether tracking runs backwards.
    layouts
        What each key of memory cross-attention is, one layout per object; empty elsewhere.
    """

    frame: int | None = None
    objects: tuple[int, ...] = ()
    reverse: bool = False
    layouts: tuple[MemoryLayout, ...] = ()

    def of_row(self, row: int) -> Moment:
        """The same moment for one object of several."""
        return replace(
            self, objects=self.objects[row : row + 1], layouts=self.layouts[row : row + 1]
        )


@dataclass(frozen=True)
class AttentionCall:
    """One attention call, after rotary phases, query pooling and head split.

    Attributes
    ----------
    site
        Dotted name, see `probes.sites`.
    q, k, v
        ``[B, h, Nq, c]``, ``[B, h, Nk, c]``, ``[B, h, Nk, cv]``; not to be changed.
    moment
        When it happens.
    keys
        int64 ``[Nk]``: which of the dense run's keys took part; None when all did.
    """

    site: str
    q: Tensor
    k: Tensor
    v: Tensor
    moment: Moment
    keys: Tensor | None = None


Observer = Callable[[AttentionCall], None]


class Seam:
    """Where the accelerated predictor's attention passes by; not observed, it costs one truth test a call."""

    def __init__(self) -> None:
        self.observers: tuple[Observer, ...] = ()
        self.moment = Moment()
        self._strips: dict[str, list[tuple[Tensor, Tensor, Tensor]]] | None = None

    def tell(
        self,
        site: str,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor | None = None,
        row: int | None = None,
    ) -> None:
        """Hand a call to all observers; `row` says which of the moment's objects it belongs to."""
        if self._strips is not None:
            self._strips.setdefault(site, []).append((q, k, v))
            return
        moment = self.moment if row is None else self.moment.of_row(row)
        call = AttentionCall(site, q, k, v, moment, keys)
        for observer in self.observers:
            observer(call)

    @contextmanager
    def at(self, moment: Moment) -> Iterator[None]:
        """Say when the calls of the context happen."""
        before, self.moment = self.moment, moment
        try:
            yield
        finally:
            self.moment = before

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Join calls of one site, made strip by strip, to one call along the batch, told when the context ends."""
        if not self.observers:
            yield
            return
        self._strips = {}
        try:
            yield
            strips = self._strips
        finally:
            self._strips = None
        for site, parts in strips.items():
            q, k, v = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            self.tell(site, q, k, v)
