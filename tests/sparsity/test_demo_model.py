"""The demo model: SAM 2 in small, weights that load strictly, and stock sam2 tracks with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import sparsity
from probes.models import build_predictor, fingerprint
from sparsity.clips.made import make_clip, write_davis

FOLDER = Path(sparsity.__file__).parent / "demo"


@pytest.fixture(scope="module")
def model():
    return build_predictor("demo", device="cpu")


@pytest.fixture(scope="module")
def untrained():
    return build_predictor(config=FOLDER / "config.yaml", weights="random", device="cpu")


@pytest.fixture
def mean_j(tmp_path):
    def track(model, name, seed):
        """Return the mean J of object 1, tracked by sam2's predictor, over the frames after the first."""
        clip = make_clip(name, seed, 5)
        truth = clip.masks == 1
        if not (tmp_path / "JPEGImages").exists():
            write_davis(tmp_path, {name: clip})
        with torch.inference_mode():
            state = model.init_state(str(tmp_path / "JPEGImages" / "480p" / name))
            model.add_new_mask(state, 0, 1, truth[0])
            found = [x[0, 0].numpy() > 0 for _, _, x in model.propagate_in_video(state)]
        js = [(f & t).sum() / (f | t).sum() for f, t in zip(found, truth, strict=True)]
        return np.mean(js[1:])

    return track


@pytest.mark.parametrize(("name", "seed", "least"), [("smooth", 0, 0.85), ("smooth", 1, 0.85)])
def test_the_model_has_not_become_worse(model, mean_j, name, seed, least):
    assert mean_j(model, name, seed) > least


def test_the_trained_model_tracks_and_a_blank_one_does_not(model, untrained, mean_j):
    trained = mean_j(model, "static_camera", 1)
    assert trained > 0.75
    assert mean_j(untrained, "static_camera", 1) < trained - 0.3


def test_the_file_is_small_and_its_own(model, untrained):
    assert (FOLDER / "weights.safetensors").stat().st_size <= 25_000_000
    assert fingerprint(model) != fingerprint(untrained)
    assert fingerprint(model) == fingerprint(build_predictor("demo", device="cpu"))
    assert next(model.parameters()).dtype == torch.float32


def test_the_config_is_sam_2_in_small(model):
    trunk = model.image_encoder.trunk
    assert trunk.stage_ends == [0, 2, 9, 11] and trunk.global_att_blocks == (5, 7, 9)
    assert model.image_size == 384 and model.image_size // 16 // trunk.window_spec[2] >= 4
    assert model.num_maskmem == 7 and len(model.memory_attention.layers) == 4
    assert model.pred_obj_scores and model.use_obj_ptrs_in_encoder
    assert model.multimask_output_for_tracking
    assert sum(p.numel() for p in model.parameters()) < 12_500_000  # 25 MB as float16
