"""Kept windows over time: known routes give known figures, a real trace stays in range."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sparsity.calibration.replay import replay_windows
from sparsity.calibration.stability import window_consistency
from sparsity.profile import Guard, Windows


def test_a_real_trace_is_followed(traces):
    windows, guard = Windows(), Guard()
    found = window_consistency(traces[2], windows, guard)
    replay = replay_windows(traces[2], windows, guard)
    routed = [d.windows for d in replay.decisions if d.windows is not None]
    assert found.routed == pytest.approx(len(routed) / len(replay.decisions))
    assert found.kept == pytest.approx(sum(map(len, routed)) / len(routed) / traces[2].grid.count)
    assert 0 < found.stability <= 1 and 0 < found.coverage <= 1
    assert found.stability > found.chance
    wider = window_consistency(traces[2], Windows(margin_px=64), guard)
    assert wider.kept > found.kept and wider.coverage >= found.coverage


def test_a_still_object_keeps_its_windows(traces):
    trace = traces[2]
    first = slice(1, 2)
    still = replace(
        trace,
        **{
            name: getattr(trace, name)[first].expand(
                len(trace.frames), *getattr(trace, name).shape[1:]
            )
            for name in ("candidates", "best", "saliency", "score", "tracked", "thumbnails")
        },
    )
    found = window_consistency(still, Windows(), Guard())
    assert found.stability == 1 and found.stability > found.chance
    moving = window_consistency(trace, Windows(), Guard())
    assert moving.stability < 1


def test_a_dense_trace_has_no_kept_windows(traces):
    trace = replace(traces[2], tracked=torch.zeros_like(traces[2].tracked))
    found = window_consistency(trace, Windows(), Guard())
    assert found.routed == 0
    assert all(map(math.isnan, (found.kept, found.stability, found.chance, found.coverage)))
