"""Kept windows over time: known routes give known figures, a real trace stays in range."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sparsity.calibration.traces import replay_decisions, window_consistency
from sparsity.techniques.routing import Guard, Routing


def test_a_real_trace_is_followed(traces):
    windows, guard = Routing(), Guard(kept_share=1.0)
    found = window_consistency(traces[0], windows, guard)
    decisions, grid = replay_decisions(traces[0], windows, guard), traces[2].grid
    routed = [grid.windows_of(d.cells) for d in decisions if d.cells is not None]
    assert found.routed == pytest.approx(len(routed) / len(decisions))
    assert found.kept == pytest.approx(sum(map(len, routed)) / len(routed) / grid.count)
    assert 0 < found.stability <= 1 and 0 < found.coverage <= 1
    assert found.stability > found.chance
    wider = window_consistency(traces[0], Routing(margin_px=64), guard)
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
    found = window_consistency(still, Routing(), Guard())
    assert found.stability == 1 and found.stability > found.chance
    moving = window_consistency(trace, Routing(), Guard())
    assert moving.stability < 1


def test_a_dense_trace_has_no_kept_windows(traces):
    trace = replace(traces[2], tracked=torch.zeros_like(traces[2].tracked))
    found = window_consistency(trace, Routing(), Guard())
    assert found.routed == 0
    assert all(map(math.isnan, (found.kept, found.stability, found.chance, found.coverage)))
