"""The weights that come along: they load strictly, and they track what they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from probes.models import build_predictor, fingerprint
from sparsity.demo.clips import make_clip
from sparsity.demo.network import CONFIG, build_model
from sparsity.demo.unroll import unroll
from sparsity.demo.validation import jaccard

WEIGHTS = Path(CONFIG).with_name("weights.safetensors")


@pytest.fixture(scope="module")
def model():
    return build_predictor("demo", device="cpu")


def mean_j(model, name, seed):
    clip = make_clip(name, seed, 10)
    size = {"size": (384, 384), "mode": "bilinear", "antialias": True}
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float() / 255
    masks = F.interpolate(torch.from_numpy(clip.masks == 1)[:, None].float(), **size) >= 0.5
    with torch.no_grad():
        out = unroll(model, F.interpolate(frames, **size)[None], masks[None])
    true = out.targets > 0.5
    return torch.stack([jaccard(s.best[:, 0] > 0, true[:, s.frame]) for s in out.steps]).mean()


@pytest.mark.parametrize(("name", "seed", "least"), [("smooth", 0, 0.75), ("smooth", 1, 0.75)])
def test_the_model_has_not_become_worse(model, name, seed, least):
    assert mean_j(model, name, seed) > least


def test_the_file_is_small_and_its_own(model):
    assert WEIGHTS.stat().st_size <= 25_000_000
    random = build_predictor(config=CONFIG, weights="random", device="cpu")
    assert fingerprint(model) != fingerprint(random)
    assert fingerprint(model) == fingerprint(build_predictor("demo", device="cpu"))
    assert next(model.parameters()).dtype == torch.float32


def test_the_trained_model_tracks_and_a_blank_one_does_not(model):
    trained = mean_j(model, "static_camera", 1)
    assert trained > 0.6
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank = build_model().eval()
    assert mean_j(blank, "static_camera", 1) < trained - 0.3
