"""Clips that break routing: the guard rescues them, names the frames, and without it the loss is larger."""

from __future__ import annotations

import pytest

from sparsity.calibration.runs import run_clip
from sparsity.calibration.thresholds import mask_only, scene_cut_for
from sparsity.profile import Guard, Profile
from sparsity.profiles import BUILTIN
from tests.sparsity.calibration.conftest import made

SHOT = 4
"""Frames of a shot in a clip of 12."""


@pytest.fixture(scope="module")
def found(demo_predictor, traces):
    """A clip that is cut twice, routed by the fewest windows, with the guard that calm clips give and without."""
    techniques = BUILTIN["exact"].techniques
    bare = Profile(name="bare", windows=mask_only(0.0, "best"), techniques=techniques)
    rules = Guard(scene_cut=scene_cut_for(traces), score_below=0.0, mask_jump=0.5)
    guarded = bare.model_copy(update={"name": "guarded", "guard": rules})
    return run_clip(demo_predictor, made("scene_cut", seed=4), (guarded, bare))


def test_the_guard_rescues_the_cuts_and_says_so(found):
    cuts = {t for t, rule in found["guarded"].rescued.items() if rule == "scene cut"}
    assert cuts == {SHOT, 2 * SHOT}
    assert found["bare"].rescued == {}


def test_with_the_guard_less_is_lost_than_without(found):
    assert found["guarded"].loss < found["bare"].loss / 2
    assert found["guarded"].agreement > found["bare"].agreement
