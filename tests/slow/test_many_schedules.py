"""Two hundred random schedules of eight threads, four videos each with clicks in between, on one predictor.

Not part of ``make test``: ``python -m pytest tests/slow/test_many_schedules.py`` takes some twenty-five minutes on two cores.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from probes import build_predictor
from sparsity import accelerate
from tests.sparsity.acceleration.test_threads import jobs, worked

SCHEDULES, THREADS, VIDEOS = 200, 8, 4

PROFILES = ("dense", "exact", "paper", "recommended")


def test_all_schedules_give_what_one_after_the_other_gives() -> None:
    fast: Any = accelerate(build_predictor("demo", image_size=128, device="cpu"), "exact")
    known = jobs(0, 24)
    alone: dict[tuple[str, int], list[Tensor]] = {
        (profile, i): worked(fast, [job], profile)
        for profile in PROFILES
        for i, job in enumerate(known)
    }
    drawn, compared = random.Random(1), 0
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(SCHEDULES):
            todo = [
                (drawn.choice(PROFILES), [drawn.randrange(len(known)) for _ in range(VIDEOS)])
                for _ in range(THREADS)
            ]
            running = [
                pool.submit(worked, fast, [known[i] for i in chosen], p) for p, chosen in todo
            ]
            for (profile, chosen), future in zip(todo, running, strict=True):
                expected = [masks for i in chosen for masks in alone[profile, i]]
                found = future.result()
                assert len(found) == len(expected) and all(map(torch.equal, found, expected))
                compared += len(found)
    assert compared > SCHEDULES * THREADS * VIDEOS * 3
