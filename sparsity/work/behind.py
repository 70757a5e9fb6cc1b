"""Work that goes on behind the model: in a thread, in order, with few jobs waiting."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

WAITING = 4
"""Jobs that wait at most; each may hold a frame."""


class Behind:
    """Does jobs one after the other in a thread of its own.

    Attributes
    ----------
    seconds
        That it was at work so far.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._jobs: deque[Future[None]] = deque()
        self.seconds = 0.0

    def give(self, job: Callable[..., None], *given: Any) -> None:
        """Do a job when the earlier ones are done; wait where many are waiting, and raise what an earlier one raised."""
        while self._jobs and (len(self._jobs) >= WAITING or self._jobs[0].done()):
            self._jobs.popleft().result()
        self._jobs.append(self._pool.submit(self._do, job, *given))

    def _do(self, job: Callable[..., None], *given: Any) -> None:
        begun = time.perf_counter()
        try:
            job(*given)
        finally:
            self.seconds += time.perf_counter() - begun

    def wait(self) -> None:
        """Wait until all is done."""
        while self._jobs:
            self._jobs.popleft().result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=kind is not None)
