"""Programs that use sam2, each run on stock sam2 and under every built-in profile.

A client is a function of a predictor and a folder of frames. It calls sam2's methods alone and returns all answers it
got by name, in order. The one thing that is replaced between two runs is the predictor. A client also has a variant in
which its user does one thing otherwise; what is right for the one must be wrong for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from probes import build_predictor
from probes.observing import Told, listen
from sparsity import accelerate
from tests.sparsity.acceleration.conftest import off_by

FRAMES, HEIGHT, WIDTH = 5, 96, 128

SIDE = 128
"""Of the model's input in pixels: 2 x 2 windows in stage 3."""

PROFILES = ("dense", "exact", "paper", "recommended")

ABSENT = -1024.0
"""What sam2 gives out all over the mask of an object that isn't there (sam2/modeling/sam2_base.py:18)."""

AGREED, EACH_AGREED = 0.9, 0.7
"""IoU with stock's masks that is asked of profiles that leave something out: on the mean, and of each."""

ROUTED = ("paper", "recommended")
"""These profiles."""

PLACES = {"upper": (24, 28), "lower": (68, 30), "right": (50, 98)}
"""Centres (row, column) of the objects on frame 0; the first two share the left half, so that windows are left out."""

RADII = (14, 17)

Answers = dict[str, Tensor]
"""Mask logits ``[objects, 1, H, W]`` by what was asked."""

Client = Callable[..., Answers]


def mask(place: str, t: int = 0) -> np.ndarray:
    """Where an object is on frame `t`, bool ``[H, W]``."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    row, column = PLACES[place]
    return ((y - row) / RADII[0]) ** 2 + ((x - column - t) / RADII[1]) ** 2 < 1


def pictures(frames: int = FRAMES) -> np.ndarray:
    """Three ellipses that drift to the right over a smooth background, uint8 ``[T, H, W, 3]``."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 110, (6, 8, 3), dtype=np.uint8)
    background = np.array(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    clip = np.repeat(background[None], frames, axis=0)
    colours = {"upper": (230, 200, 40), "lower": (60, 220, 230), "right": (235, 90, 200)}
    for t in range(frames):
        for place, colour in colours.items():
            clip[t][mask(place, t)] = colour
    return clip


def box(place: str, t: int = 0) -> np.ndarray:
    """The corners (x, y, x, y) around an object on frame `t`."""
    row, column = PLACES[place]
    down, across = RADII
    return np.array([column + t - across, row - down, column + t + across, row + down], np.float32)


def click(place: str, t: int = 0, right: float = 0, down: float = 0) -> np.ndarray:
    """A point in an object on frame `t`, float32 ``[1, 2]``."""
    row, column = PLACES[place]
    return np.array([[column + t + right, row + down]], np.float32)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The clip as a folder of JPEG files; a string, as stock wants it."""
    folder = tmp_path_factory.mktemp("client")
    for t, frame in enumerate(pictures()):
        Image.fromarray(frame).save(Path(folder) / f"{t:05d}.jpg", quality=92)
    return str(folder)


@pytest.fixture(scope="session")
def stock() -> Any:
    """The trained demo model."""
    return build_predictor("demo", image_size=SIDE, device="cpu")


def unlike(profile: str, found: Answers, expected: Answers) -> list[str]:
    """Name what is not stock's, as far as a profile promises that it is.

    ``dense`` bit for bit; ``exact`` within 1e-4 of the largest logit; the others leave something out, and an object is
    but 34 by 28 pixels large: their masks agree by an IoU of 0.9 on the mean over all, and each by 0.7.
    """
    if list(found) != list(expected):
        return [f"{list(found)} asked, {list(expected)} expected"]
    wrong, agreed = [], []
    for name, theirs in expected.items():
        ours = found[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            wrong.append(f"{name}: {ours.dtype} {list(ours.shape)}")
        elif profile == "dense":
            wrong += [name] * (not torch.equal(ours, theirs))
        elif profile == "exact":
            wrong += [name] * (not all(map(near, ours, theirs)))
        else:
            each = list(map(iou, ours, theirs))
            wrong += [f"{name}: IoU {each}"] * (min(each) <= EACH_AGREED)
            agreed += each
    if agreed and np.mean(agreed) <= AGREED:
        wrong.append(f"mean IoU {np.mean(agreed):.3f}")
    return wrong


def near(found: Tensor, expected: Tensor) -> bool:
    """Whether an object's logits differ by 1e-4 of the largest at most; alike where it is absent."""
    gone = expected <= ABSENT
    if not torch.equal(found <= ABSENT, gone):
        return False
    return bool(gone.all()) or off_by(found[~gone], expected[~gone]) <= 1e-4


def iou(found: Tensor, expected: Tensor) -> float:
    """Of two masks of logits; 1 where both are empty."""
    a, b = found > 0, expected > 0
    union = int((a | b).sum())
    return float((a & b).sum()) / union if union else 1.0


@dataclass(repr=False)
class Plays:
    """What clients were answered, each played once with each predictor and variant.

    Attributes
    ----------
    fast
        Accelerated predictors by profile; all clients share them, as they share stock's.
    left_out
        Frames of which windows were left out, by play.
    """

    stock: Any
    clip: str
    fast: dict[str, Any] = field(default_factory=dict)
    left_out: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _made: dict[tuple[Any, ...], Answers] = field(default_factory=dict)

    def predictor(self, profile: str | None) -> Any:
        """The predictor under a profile; stock's without."""
        if profile is None:
            return self.stock
        if profile not in self.fast:
            self.fast[profile] = accelerate(self.stock, profile)
        return self.fast[profile]

    def __call__(self, client: Client, profile: str | None = None, **variant: Any) -> Answers:
        """A client's answers."""
        key = client.__module__, client.__name__, profile, *sorted(variant.items())
        if key not in self._made:
            predictor, decisions = self.predictor(profile), list[Told]()
            listening = listen(predictor, decided=decisions.append)
            with listening if profile in ROUTED else nullcontext():
                self._made[key] = client(predictor, self.clip, **variant)
            self.left_out[key] = sum(told.what.cells is not None for told in decisions)
        return self._made[key]

    def check(self, client: Client, profile: str, routes: bool | None = True) -> None:
        """Hold that a client is answered as by stock, and not as by stock where its user does one thing otherwise.

        Windows were left out for it where the profile says so, unless it gives features itself; None doesn't ask.
        """
        found = self(client, profile)
        assert unlike(profile, found, self(client)) == []
        assert unlike(profile, found, self(client, otherwise=True)) != []
        if profile in ROUTED and routes is not None:
            left_out = self.left_out[client.__module__, client.__name__, profile]
            assert bool(left_out) == routes


@pytest.fixture(scope="session")
def plays(stock: Any, clip: str) -> Plays:
    """Clients' answers."""
    return Plays(stock, clip)


@pytest.fixture(params=PROFILES)
def profile(request: pytest.FixtureRequest) -> str:
    """Every built-in profile."""
    return request.param
