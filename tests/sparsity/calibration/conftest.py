"""Shared by the tests of calibration: the demo model and a trace of a short made clip."""

from __future__ import annotations

from typing import Any

import pytest

from probes.models import DEMO, build_predictor
from probes.video import open_video
from sparsity import accelerate
from sparsity.calibration.capture import capture
from sparsity.calibration.clips import CalibrationClip
from sparsity.calibration.traces import Trace
from sparsity.demo.clips import make_clip


def made(name: str, seed: int = 3, frames: int = 12) -> CalibrationClip:
    """Return a made clip as calibration takes it."""
    clip = make_clip(name, seed=seed, frames=frames, size=(144, 256))
    return CalibrationClip(name, open_video(clip.frames), clip.masks[0], tuple(clip.masks))


@pytest.fixture(scope="session")
def demo_predictor() -> Any:
    """The demo model, accelerated."""
    return accelerate(build_predictor(DEMO, device="cpu"), "exact")


@pytest.fixture(scope="session")
def traces(demo_predictor: Any) -> list[Trace]:
    """Dense runs over three clips, one of them with two objects."""
    return [capture(demo_predictor, made(name)) for name in ("smooth", "fast", "distractors")]
