"""A cluster of which one worker announces a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from distributed import Scheduler, SpecCluster, Worker


class MixedCluster:
    """Two workers in this process, of which one announces a GPU."""

    def __init__(self, cluster: Any) -> None:
        self._workers = cluster.workers
        self.address: str = cluster.scheduler_address

    def done(self) -> tuple[int, int]:
        """Return how many clips the worker with a GPU was given until now, and the one without."""
        given = (self._workers[name].state.executed_count for name in ("gpu", "plain"))
        with_one, without = given
        return with_one, without


@pytest.fixture
def mixed_cluster() -> Iterator[MixedCluster]:
    """A cluster of its own for each test, so that its counts begin at zero."""
    common: dict[str, Any] = {"nthreads": 1, "dashboard": False}
    workers = {
        "gpu": {"cls": Worker, "options": {**common, "resources": {"GPU": 1}}},
        "plain": {"cls": Worker, "options": common},
    }
    place = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
    scheduler = {"cls": Scheduler, "options": {**place, "dashboard": False}}
    with SpecCluster(workers=workers, scheduler=scheduler, silence_logs="ERROR") as cluster:
        yield MixedCluster(cluster)
