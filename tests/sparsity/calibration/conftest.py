"""Shared by the tests of calibration: the demo model, traces of short made clips, and folders of short clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from probes.video import open_video
from sparsity import accelerate
from sparsity.calibration.capture import capture
from sparsity.calibration.traces import Trace
from sparsity.clips.made import make_clip
from sparsity.clips.sources import Clip, clip_of
from sparsity.work.model import ModelChoice, shared_stock

SMALL = ModelChoice(image_size=192)
"""The demo model at a size at which it takes a quarter of the time: 9 windows of 4 cells."""

FRAMES = 10

NAMES = ("smooth", "fast", "occlusion", "distractors", "tiny")

LONGEST = "tiny"
"""Of the clips that the search takes with seed 0, the second in the order of names."""


def made(name: str, seed: int = 3, frames: int = FRAMES) -> Clip:
    """Return a made clip as calibration takes it."""
    clip = make_clip(name, seed=seed, frames=frames, size=(144, 256))
    return clip_of(name, open_video(clip.frames), clip.masks[0], dict(enumerate(clip.masks)))


@pytest.fixture(scope="session")
def demo_predictor() -> Any:
    """The demo model, accelerated."""
    return accelerate(shared_stock(SMALL), "exact")


@pytest.fixture(scope="session")
def traces(demo_predictor: Any) -> list[Trace]:
    """Dense runs over three clips, one of them with two objects."""
    return [capture(demo_predictor, made(name)) for name in ("smooth", "fast", "distractors")]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five short clips as folders of frames, with a mask for every frame."""
    root = tmp_path_factory.mktemp("videos")
    for name in NAMES:
        clip = make_clip(name, seed=5, frames=6 if name == LONGEST else 5, size=(96, 160))
        for t, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
            for kind, picture in (("videos", frame), ("masks", mask)):
                path = root / kind / name / f"{t:05d}.{'jpg' if kind == 'videos' else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    return root
