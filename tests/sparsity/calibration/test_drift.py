"""Drift between dense frames: measured from the last dense one, and what refreshing follows from it."""

from __future__ import annotations

import numpy as np
import pytest

from sparsity.acceleration.report import FrameReport
from sparsity.calibration.drift import TOLERATED, Drift, drift_of, since_dense


def frame(index: int, dense: bool) -> FrameReport:
    return FrameReport(index, False, 4, 4, None if dense else [0], "refresh" if dense else "routed")


def test_distance_counts_from_the_last_dense_frame():
    one, other = np.uint8([[1, 1]]), np.uint8([[1, 0]])
    frames = [frame(i, i in (0, 1, 4)) for i in range(7)]
    found = since_dense(frames, [one] * 7, [one, one, one, other, one, one, other], (1,))
    assert found == [(1, 100.0), (2, 50.0), (1, 100.0), (2, 50.0)]


def test_a_clip_counts_once_however_long_it_is():
    short, long = [(1, 100.0), (2, 90.0)], [(1, 100.0)] * 9 + [(2, 100.0)] * 9
    assert drift_of([short, long]).lost == (0.0, 5.0)
    assert drift_of([short]).lost == (0.0, 10.0)


def test_refreshing_starts_before_too_much_is_lost():
    assert Drift((0.0,) * 20).refresh is None
    steep = Drift(tuple(float(s) for s in range(20)))
    gentle = Drift(tuple(s / 4 for s in range(20)))
    assert steep.refresh is not None and gentle.refresh is not None
    assert steep.refresh < gentle.refresh
    assert max(steep.lost[: steep.refresh]) <= TOLERATED


def test_a_frequent_dense_frame_keeps_more_agreement():
    steep = Drift(tuple(float(s) for s in range(20)))
    assert steep.kept(2) > steep.kept(10) > steep.kept(None)
    assert steep.kept(None) == pytest.approx(1 - 9.5 / 100)
    assert Drift(()).refresh is None and Drift(()).kept(4) == 1
