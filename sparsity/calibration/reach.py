"""What so many clips can promise: said before anything runs, and refused where it can't be what is asked."""

from __future__ import annotations

import math

import numpy as np

from probes.errors import InputError
from sparsity.calibration.bounds import (
    HEADROOM,
    POINTS,
    WITHOUT_LEVEL,
    certain_bound,
    kind_for,
    smallest_certifiable,
    smallest_expected,
    videos_needed,
)
from sparsity.calibration.request import Request

HALVINGS = 10
"""Of the accepted loss, in looking for what a certain bound carries."""


def check_reach(request: Request, count: int) -> None:
    """Refuse a bound that `count` clips don't bring within the accepted loss, whatever happens on them.

    Raises
    ------
    InputError
        The bound asked for is larger than `max_drop` even where no clip loses anything.
    """
    if request.bound == "certain" and math.isfinite(request.level):
        least = smallest_certifiable(count, request.confidence)
        needed = videos_needed(request.level, request.confidence)
    elif request.bound == "expectation" and math.isfinite(request.level):
        least, needed = smallest_expected(count), math.ceil(POINTS / request.level) - 1
    else:
        return
    if least > request.level:
        raise InputError(
            f"bound {request.bound} and max-drop {request.level:g} given; {count} clips for the promise, two thirds of "
            f"all, can't state less than {least:.1f} points; expected {needed} or more; give more videos, a larger "
            "--max-drop, or --bound approximate"
        )


def certifiable(request: Request, count: int) -> str:
    """Say what `count` clips can promise, before anything is run."""
    level, confidence = request.level, request.confidence
    kind = request.bound or kind_for(count, confidence, level)
    if kind == "expectation":
        return (
            f"{count} clips for the promise can state a mean loss of {smallest_expected(count):.1f} points in "
            "expectation at best (conformal risk control: on average over calibrations, not with a probability)."
        )
    least = certain_bound(np.zeros(count), confidence, level).upper
    said = (
        f"{count} clips for the promise can certify a mean loss of {least:.1f} points at "
        f"{confidence:.0%} at best"
    )
    finite = math.isfinite(level)
    if kind == "certain":
        said += ", whatever the videos are."
        return said if not finite else f"{said} {_carried(count, confidence, level)}"
    if finite:
        said += f"; certifying {level:g} takes {videos_needed(level, confidence)} clips"
    if request.bound is None:
        enough = videos_needed((level if finite else WITHOUT_LEVEL) / HEADROOM, confidence)
        said += f"; from {enough} clips on the bound is a certain one"
    return f"{said}. Here it is approximate (Student t and BCa): it can't know of kinds of videos not given."


def _carried(count: int, confidence: float, level: float) -> str:
    """Say up to which mean loss a certain bound stays within the level, where all videos lose the same."""
    low, high = 0.0, level
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        holds = certain_bound(np.full(count, middle), confidence, level).upper <= level
        low, high = (middle, high) if holds else (low, middle)
    return (
        f"It stays within {level:g} where they lose {low:.2g} points on average, all alike; uneven losses may take "
        "less."
    )
