"""Shared by all tests: small models with random weights that track, and small made clips.

Session fixtures are built once and must not be changed; a test that changes weights builds its own model.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from probes.models import build_predictor

FRAMES, HEIGHT, WIDTH = 8, 96, 128
SIZE = 256
"""Side of the test models' input in pixels: a stage-3 grid of 16 x 16 tokens."""

torch.set_num_threads(1)
gc.disable()  # what is imported and collected stays; to look through it takes seconds


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Look through what tests leave, and not through what was there before the first one."""
    gc.freeze()
    gc.enable()


def make_frames(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return a clip uint8 [T, H, W, 3]: a bright ellipse drifts over a smooth background."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 160, (6, 8, 3), dtype=np.uint8)
    background = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    clip = np.repeat(background[None], frames, axis=0)
    for t in range(frames):
        clip[t][make_mask(t, height, width)] = (230, 200, 40 + 5 * t)
    return clip


def make_mask(t: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return where the ellipse is on frame t, bool [H, W]."""
    y, x = np.mgrid[:height, :width]
    return ((y - 0.5 * height) / (0.28 * height)) ** 2 + (
        (x - 0.4 * width - t) / (0.22 * width)
    ) ** 2 < 1


@pytest.fixture(scope="session")
def clip_frames() -> np.ndarray:
    """A clip of 8 frames, uint8 [8, 96, 128, 3]."""
    return make_frames()


@pytest.fixture(scope="session")
def clip_mask() -> np.ndarray:
    """The object on its first frame, bool [96, 128]."""
    return make_mask()


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, clip_frames: np.ndarray) -> Path:
    """The clip as a folder of JPEG frames 00000.jpg …"""
    folder = tmp_path_factory.mktemp("clip")
    for t, frame in enumerate(clip_frames):
        Image.fromarray(frame).save(folder / f"{t:05d}.jpg", quality=92)
    return folder


@pytest.fixture(scope="session")
def tiny_predictor() -> Any:
    """SAM 2.1 Tiny at 256 pixels, window 14: 2 x 2 windows in stage 3, with padding."""
    return build_predictor("sam2.1-tiny", weights="random", image_size=SIZE, device="cpu")


def small_config(path: Path, width: int, windows: list[int]) -> Path:
    """Write the configuration of a SAM 2 with Tiny's blocks: so many channels in stage 1, windows of the four stages."""
    import sam2

    settings = OmegaConf.load(
        Path(sam2.__file__).parent / "configs" / "sam2.1" / "sam2.1_hiera_t.yaml"
    )
    trunk = settings.model.image_encoder.trunk
    trunk.embed_dim, trunk.window_spec = width, windows
    neck = settings.model.image_encoder.neck
    neck.backbone_channel_list = [8 * width, 4 * width, 2 * width, width]
    settings.model.memory_attention.layer.dim_feedforward = 256
    settings.model.image_size = SIZE
    OmegaConf.save(settings, path)
    return path


@pytest.fixture(scope="session")
def padded_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow SAM 2 with Tiny's windows: 14 on a stage-3 grid of 16, so 2 x 2 windows, with padding."""
    return small_config(tmp_path_factory.mktemp("config") / "padded.yaml", 24, [8, 4, 14, 7])


@pytest.fixture(scope="session")
def padded_predictor(padded_config: Path) -> Any:
    """The model of `padded_config`."""
    return build_predictor(config=padded_config, weights="random", device="cpu")


@pytest.fixture(scope="session")
def dividing_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SAM 2 whose stage-3 windows (4) divide the grid (16): 4 x 4 windows, no padding."""
    return small_config(tmp_path_factory.mktemp("config") / "dividing.yaml", 32, [8, 4, 4, 2])


@pytest.fixture(scope="session")
def dividing_predictor(dividing_config: Path) -> Any:
    """The model of `dividing_config`."""
    return build_predictor(config=dividing_config, weights="random", device="cpu")


@pytest.fixture(scope="session", params=["padded", "dividing"])
def any_predictor(request: pytest.FixtureRequest) -> Any:
    """Each of the two geometries in turn."""
    return request.getfixturevalue(f"{request.param}_predictor")
