"""Clips that break routing: the guard rescues them, names the frames, and without it the loss is larger."""

from __future__ import annotations

import pytest

from probes.models import DEMO, build_predictor
from sparsity import accelerate
from sparsity.calibration.thresholds import mask_only, scene_cut_for
from sparsity.evaluation.evaluate import evaluate_clip
from sparsity.profile import BUILTIN
from sparsity.techniques.routing import Guard
from tests.sparsity.calibration.conftest import made

SHOT = 3
"""Frames of each of the three shots."""


@pytest.fixture(scope="module")
def found(traces):
    """A clip that is cut twice, routed by the fewest windows, with the guard that calm clips give and without.

    Tracked at the size that the demo model was trained at: smaller, it hardly follows the clip with every window.
    """
    predictor = accelerate(build_predictor(DEMO, device="cpu"), "exact")
    bare = BUILTIN["exact"].model_copy(update={"name": "bare", "routing": mask_only(0.0, "best")})
    rules = Guard(scene_cut=scene_cut_for(traces), score_below=0.0, mask_jump=0.5)
    guarded = bare.model_copy(update={"name": "guarded", "guard": rules})
    clip, dense = made("scene_cut", seed=4, frames=3 * SHOT), BUILTIN["exact"]
    return evaluate_clip(predictor, clip, (guarded, bare), dense=dense)


def test_the_guard_rescues_the_cuts_and_says_so(found):
    cuts = {t for t, rule in found["guarded"].rescued.items() if rule == "scene cut"}
    assert cuts == {SHOT, 2 * SHOT}
    assert found["bare"].rescued == {}


def test_with_the_guard_less_is_lost_than_without(found):
    assert found["guarded"].loss < found["bare"].loss / 2
    assert found["guarded"].quality.agreement > found["bare"].quality.agreement
