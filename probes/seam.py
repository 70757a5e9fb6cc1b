"""The one seam by which attention passes on its way to observers: calls, their moment, and who is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probes.layout import MemoryLayout
from probes.sites import AttentionSite


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
        What each key of memory cross-attention is, one layout per object; empty outside memory attention.
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
        ``[B, h, Nq, c]``, ``[B, h, Nk, c]``, ``[B, h, Nk, cv]``; not to be changed. In windowed blocks B
        counts windows.
    moment
        When it happens.
    keys
        int64: what took part, where that is not everything in its natural order. Memory and global
        blocks: ``[Nk]``, which of the dense run's keys. Windowed blocks: ``[B]``, which windows.
    queries
        int64 ``[Nq]``: which of the dense run's queries a memory or global call made; None for all of them, in
        global blocks for those that `keys` names.
    where
        The site itself with its geometry; None for a call that did not pass through `observe`.
    size
        Height and width of the video in pixels, where known.
    """

    site: str
    q: Tensor
    k: Tensor
    v: Tensor
    moment: Moment
    keys: Tensor | None = None
    queries: Tensor | None = None
    where: AttentionSite | None = None
    size: tuple[int, int] | None = None


Observer = Callable[[AttentionCall], None]


class Seam:
    """Where a predictor's attention passes by; not observed, it costs one truth test a call.

    Attributes
    ----------
    observers
        Who is told.
    moment
        When the calls happen that are now under way.
    size
        Height and width in pixels of the video they belong to.
    running
        Thread in which one of the predictor's own steps is under way, None where none is (predictors may share modules).
    """

    def __init__(self) -> None:
        self.observers: tuple[Observer, ...] = ()
        self.moment = Moment()
        self.size: tuple[int, int] | None = None
        self.running: int | None = None
        self._strips: dict[str, list[tuple[Tensor, Tensor, Tensor]]] | None = None

    def tell(
        self,
        site: str,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor | None = None,
        row: int | None = None,
        queries: Tensor | None = None,
    ) -> None:
        """Hand a call to all observers, without gradients; `row` says which of the moment's objects it belongs to."""
        if self._strips is not None:
            self._strips.setdefault(site, []).append((q, k, v))
            return
        moment = self.moment if row is None else self.moment.of_row(row)
        call = AttentionCall(
            site, q.detach(), k.detach(), v.detach(), moment, keys, queries, size=self.size
        )
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
    def joined(self, windows: Tensor | None) -> Iterator[None]:
        """Join calls of one site, made strip by strip, to one call along the batch, told when the context ends.

        `windows` says which windows the strips together hold, int64; None for all.
        """
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
            self.tell(site, q, k, v, windows)
