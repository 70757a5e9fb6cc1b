"""Which of several formulations of the same computation is run: the one that was the fastest when they were tried.

What is fastest depends on the machine. Formulations are tried once for each class of calls, at its first call that is large
enough for a clock, on that call's own tensors; the process stays with what was found, in all of its threads. Another process
may find otherwise, and then rounds otherwise: with ``torch.use_deterministic_algorithms(True)`` none is tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from threading import RLock

import torch

CHOSEN: dict[Hashable, str] = {}
"""What was found so far; a run that goes on in another process takes it along."""

_choosing = RLock()
"""Threads wait for one another's choice, so that all take the same; a formulation may ask for choices inside it."""


def chosen(
    kind: Hashable, candidates: Mapping[str, Callable[[], object]], clearly: float, tries: int
) -> str:
    """Name the formulation that a class of calls takes: the first one unless another is clearly faster.

    Parameters
    ----------
    kind
        The class; the candidates' names and the number of threads are part of it.
    candidates
        By name, the default first. All compute the same.
    clearly
        How many times as fast as the first another must be. Below one it is taken even if it is somewhat slower.
    tries
        Of each candidate, in turn with the others; the quickest counts.
    """
    if torch.are_deterministic_algorithms_enabled():
        return next(iter(candidates))
    key = kind, *candidates, torch.get_num_threads()
    if key not in CHOSEN:
        with _choosing:
            if key not in CHOSEN:
                CHOSEN[key] = _fastest(candidates, clearly, tries)
    return CHOSEN[key]


def _fastest(candidates: Mapping[str, Callable[[], object]], clearly: float, tries: int) -> str:
    rounds = [{name: _seconds(run) for name, run in candidates.items()} for _ in range(tries)]
    seconds = {name: min(its[name] for its in rounds) for name in candidates}
    default, *others = candidates
    best = min(others, key=seconds.__getitem__)
    return best if seconds[best] * clearly < seconds[default] else default


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
