"""How far a routed run drifts from the dense one between dense frames: what refreshing rests on.

A replay knows the dense run's masks and can't see this; one setting is run for real to learn it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsity.acceleration.report import FrameReport
from sparsity.evaluation.quality import agreement
from sparsity.masks import Ids

TOLERATED = 3.0
"""Points of agreement that may be lost since the last dense frame before another one comes."""

SMOOTH = 3
"""Distances that are averaged before they are compared with `TOLERATED`."""


@dataclass(frozen=True)
class Drift:
    """Agreement lost since the last dense frame.

    Attributes
    ----------
    lost
        Points of agreement lost against the first routed frame after a dense one, mean over clips, at 1, 2, …
        frames since the dense one; never below 0.
    """

    lost: tuple[float, ...]

    @property
    def refresh(self) -> int | None:
        """The largest distance of dense frames within which no more than `TOLERATED` is lost; None for any."""
        found = [float(np.mean(self.lost[s : s + SMOOTH])) for s in range(len(self.lost))]
        over = [s for s, points in enumerate(found) if points > TOLERATED]
        return max(2, over[0]) if over else None

    def kept(self, every: int | None) -> float:
        """Share of agreement that is kept on average with a dense frame every so many frames."""
        part = self.lost if every is None else self.lost[:every]
        return 1 - float(np.mean(part)) / 100 if part else 1.0


def since_dense(
    frames: Sequence[FrameReport],
    masks: Sequence[Ids],
    dense: Sequence[Ids],
    objects: tuple[int, ...],
) -> list[tuple[int, float]]:
    """Frames since the last dense one, and agreement with the dense run in per cent, of each routed frame."""
    found = []
    last = 0
    for frame, one, other in zip(frames, masks, dense, strict=True):
        if frame.windows is None:
            last = frame.frame
        else:
            agreed = agreement([one], [other], objects)
            found.append((frame.frame - last, float(np.mean(list(agreed.values())))))
    return found


def drift_of(clips: Sequence[Sequence[tuple[int, float]]]) -> Drift:
    """Average what `since_dense` found, first by clip.

    Examples
    --------
    >>> drift_of([[(1, 98.0), (2, 96.0), (3, 90.0)], [(1, 90.0), (2, 92.0)]]).lost
    (0.0, 0.0, 8.0)
    """
    lost: dict[int, list[float]] = {}
    for rows in clips:
        by_distance: dict[int, list[float]] = {}
        for distance, agreed in rows:
            by_distance.setdefault(distance, []).append(agreed)
        for distance, values in by_distance.items():
            first = float(np.mean(by_distance[min(by_distance)]))
            lost.setdefault(distance, []).append(first - float(np.mean(values)))
    longest = max(lost, default=0)
    means = [float(np.mean(lost.get(s, [0.0]))) for s in range(1, longest + 1)]
    return Drift(tuple(max(0.0, mean) for mean in means))
