"""Reading ahead: what is asked for one after the other, forward or back, is made in a thread before it is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """Items by their index, some made ahead.

    Whoever makes them is called by one thread at a time, but by another one than its caller's.

    Parameters
    ----------
    make
        From an index to its item. What it raises is raised where the item is asked for.
    ahead
        Items that are made ahead at most; 0: none.

    Attributes
    ----------
    seconds
        Spent in `make` so far.
    """

    def __init__(self, make: Callable[[int], Item], ahead: int) -> None:
        self._make, self._ahead = make, ahead
        self._last: int | None = None
        self._coming: dict[int, Future[Item]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """A copy has nothing made ahead."""
        return {**self.__dict__, "_coming": {}, "_pool": None, "_last": None}

    def read(self, index: int, count: int) -> Item:
        """Return an item, and begin to make those that come next among the first `count`."""
        if self._process != os.getpid():  # threads don't come with a fork
            self._coming, self._pool, self._process = {}, None, os.getpid()
        step = 0 if self._last is None else index - self._last
        self._last = index
        coming = self._coming.pop(index, None)
        wanted = (
            range(index + step, index + step * (self._ahead + 1), step) if abs(step) == 1 else []
        )
        for other in [i for i in self._coming if i not in wanted]:
            self._coming.pop(other).cancel()
        if coming is None and (wanted or self._coming or self._pool):
            coming = self._submit(index)
        for i in wanted:
            if 0 <= i < count and i not in self._coming:
                self._coming[i] = self._submit(i)
        return self._make(index) if coming is None else coming.result()

    def _submit(self, index: int) -> Future[Item]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="frames")
        return self._pool.submit(self._make, index)
