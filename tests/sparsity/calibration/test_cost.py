"""What a frame costs, whatever the process did before, and of all objects; drift, and what refreshing follows from it."""

from __future__ import annotations

import numpy as np
import pytest

from probes.prompts import Prompt
from probes.video import open_video
from sparsity.acceleration.model import attention, choice, linear
from sparsity.acceleration.model.quantized import why_not_int8
from sparsity.acceleration.report import FrameReport, Report
from sparsity.calibration.cost import (
    TOLERATED,
    WHOLE,
    Cost,
    Drift,
    drift_of,
    measure_cost,
    share_in_int8,
)
from sparsity.clips.sources import Clip
from sparsity.evaluation.evaluate import Tracked, since_dense
from sparsity.profile import BUILTIN
from sparsity.techniques.adapter import Adapter
from sparsity.work.model import ModelChoice, shared_predictor
from tests.sparsity.calibration.conftest import made


def counted(clip: Clip, base: str = "paper") -> Cost:
    """Operations of a clip's frames, with the demo model at a size at which it is quick."""
    predictor = shared_predictor(ModelChoice(image_size=128))
    return measure_cost(predictor, clip, BUILTIN[base], Adapter(kind="cached"))[0]


def test_formulations_that_a_process_still_tries_are_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind in (attention, linear):
        monkeypatch.setattr(kind, "WORTH_TIMING", 1)  # as with large inputs
    monkeypatch.setattr(choice, "CHOSEN", {})
    clip = made("smooth", frames=4)
    first = counted(clip)
    assert choice.CHOSEN, "something was tried"
    assert counted(clip) == first


def test_each_object_reads_its_own_memory() -> None:
    # at this size nothing is tried: the same formulation counts the same operations in any process
    one, several = made("smooth", frames=4), made("distractors", frames=4)
    assert len(several.objects) > len(one.objects) == 1
    assert counted(several).keys > counted(one).keys


def test_a_frame_whose_features_are_carried_over_spares_the_encoder_and_routing_a_part_of_it():
    clip = made("smooth", frames=6)
    carried, routed = counted(clip, WHOLE), counted(clip)
    assert carried(1, 1) == pytest.approx(1) == routed(1, 1)
    assert carried(0, 1) < routed(0, 1) < 1 and carried(1, 0) < 1


def test_what_int8_leaves_of_the_time_is_a_share():
    predictor = shared_predictor(ModelChoice(image_size=128))
    if why_not_int8(predictor.device):
        pytest.skip("no int8 here")
    share = share_in_int8(predictor, made("smooth", frames=3))
    assert 0 < share < 10 and round(share, 2) == share, "no time is asserted: machines are busy"


def test_distance_counts_from_the_last_dense_frame():
    one, other = np.uint8([[1, 1]]), np.uint8([[1, 0]])
    reports = [
        FrameReport(i, False, 4, 4, None if i in (0, 1, 4) else [0], "made") for i in range(7)
    ]
    masks = [one, one, one, other, one, one, other]
    routed, dense = (
        Tracked(dict(enumerate(found)), Report("made", False, reports), [0.0] * 7)
        for found in (masks, [one] * 7)
    )
    clip = Clip("made", open_video(np.zeros((7, 1, 2, 3), np.uint8)), (Prompt(0, 1, mask=one > 0),))
    found = since_dense(clip, routed, dense)
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
