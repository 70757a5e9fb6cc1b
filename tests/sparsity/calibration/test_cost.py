"""What a frame costs: the same whatever the process did before, and of the objects of the clip."""

from __future__ import annotations

import pytest

from sparsity.acceleration import attention
from sparsity.calibration.clips import CalibrationClip
from sparsity.calibration.cost import Cost, measure_cost
from sparsity.calibration.runs import shared_predictor
from sparsity.options import ModelChoice
from sparsity.profile import Shortcut
from sparsity.profiles import BUILTIN
from tests.sparsity.calibration.conftest import made


def counted(clip: CalibrationClip) -> Cost:
    """Operations of a clip's frames, with the demo model at a size at which it is quick."""
    predictor = shared_predictor(ModelChoice(image_size=128))
    return measure_cost(predictor, clip, BUILTIN["paper"], Shortcut(kind="cached"))[0]


def test_formulations_that_a_process_still_tries_are_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "WORTH_TIMING", 1)  # as with large inputs
    monkeypatch.setattr(attention, "_chosen", {})
    one, several = made("smooth", frames=4), made("distractors", frames=4)
    first = counted(one)
    assert attention._chosen, "something was tried"
    assert counted(one) == first
    assert len(several.objects) > len(one.objects) == 1
    assert counted(several).keys > first.keys, "each object reads its own memory"
