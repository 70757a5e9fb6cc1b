"""Memory attention written out for training is sam2's own, and hides only what it should."""

from __future__ import annotations

import random

import pytest
import torch

from sparsity.demo.losses import attention_loss, occupancy, pointer_loss
from sparsity.demo.network import (
    FEATURE_SCALE,
    build_model,
    prepare_weights,
    scale_features,
    set_size,
)
from sparsity.demo.photos import Pool
from sparsity.demo.scenes import KINDS, make_scene
from sparsity.demo.schedule import kind_shares
from sparsity.demo.teaching import NEVER, AttentionTeacher, hidden_keys, salient_only
from sparsity.demo.unroll import Step, point_prompt, unroll


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model().eval()
        prepare_weights(model)
    return set_size(model, 64) or model


@pytest.fixture
def clip():
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(1, 4, 3, 64, 64, generator=generator)
    masks = torch.zeros(1, 4, 2, 64, 64, dtype=torch.bool)
    masks[:, :, 0, 8:40, 8:40] = True
    masks[:, :, 1, 30:60, 40:60] = True
    return frames, masks


@torch.no_grad()
def tracked(model, clip, **settings):
    torch.manual_seed(3)
    return unroll(model, *clip, **settings).steps[-1].multi


def test_written_out_attention_equals_the_models_own(model, clip):
    teacher = AttentionTeacher()
    plain = tracked(model, clip)
    teacher.attach(model)
    try:
        taught = tracked(model, clip, teacher=teacher)
        hidden = tracked(model, clip, teacher=teacher, cut=1.0)
    finally:
        teacher.detach(model)
    torch.testing.assert_close(taught, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(hidden, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(tracked(model, clip), plain), "detaching gives the model back"


@torch.no_grad()
def test_scaled_features_are_remembered_as_before(model, clip):
    def remembered(net):
        features = net.forward_image(clip[0][0])["backbone_fpn"][-1]
        return features, net.memory_encoder.pix_feat_proj(features)

    other = build_model().eval()
    other.load_state_dict(model.state_dict())
    scale_features(other)
    (features, memory), (scaled, same) = remembered(model), remembered(other)
    torch.testing.assert_close(same, memory, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scaled, features * FEATURE_SCALE, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(scaled, features, rtol=1e-1)


def test_a_frame_is_hidden_only_where_another_shows_the_target():
    present = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 1, 1]]).bool()
    for seed in range(20):
        torch.manual_seed(seed)
        bias = hidden_keys([0, 1, 2], present, 5, 1.0).view(3, 3, 5)
        assert (bias == bias[..., :1]).all(), "whole frames"
        visible = (bias[..., 0] == 0) & present[:, :3]
        assert visible.any(1).all()
    assert hidden_keys([0, 1, 2], present, 5, 0.0) is None
    assert hidden_keys([0], present, 5, 1.0) is None


def test_salient_tokens_are_those_with_the_most_mass_of_their_frame():
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 16, 3 * 16 + 4)
    bias = salient_only(logits, 3, 0.25).view(2, 3, 16)
    mass = logits[:, 0, :, :48].unflatten(-1, (3, 16)).softmax(-1).mean(1)
    assert ((bias == 0).sum(-1) == 4).all() and set(bias.unique().tolist()) == {0.0, NEVER}
    assert (mass[bias == 0].view(2, 3, 4).amin(-1) >= mass[bias < 0].view(2, 3, 12).amax(-1)).all()


def test_attention_on_the_target_costs_less_than_beside_it():
    truth = torch.zeros(1, 3, 64, 64)
    truth[..., 16:48, 16:48] = 1
    occupied = occupancy(truth)
    on = (occupied[0, 0] > 0).float()
    empty = torch.zeros(1)

    def cost(cells, pointer=0.0):
        row = torch.cat([cells / cells.sum() / 2, cells / cells.sum() / 2]) * (1 - pointer)
        weights = torch.cat([row, torch.full((2,), pointer / 2)])[None, None].expand(1, 16, -1)
        step = Step(2, empty, empty, empty, empty, [weights], [0, 1])
        return attention_loss(step, occupied).item(), pointer_loss(step, 16).item()

    assert cost(on)[0] == pytest.approx(0, abs=1e-4)
    assert cost(1 - on)[0] > 5
    assert cost(on, 0.05)[1] == 0 and cost(on, 0.5)[1] > 0.5 and cost(on, 0.001)[1] > 0.5


def test_a_click_lies_inside_and_a_box_around():
    torch.manual_seed(0)
    mask = torch.zeros(4, 64, 64)
    mask[:, 10:30, 20:50] = 1
    points = point_prompt(mask, "click")["point_coords"][:, 0]
    assert all(mask[i, int(y), int(x)] == 1 for i, (x, y) in enumerate(points))
    box = point_prompt(mask, "box")["point_coords"]
    assert (box - torch.tensor([[20.0, 10], [50, 30]])).abs().max() < 3


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_of_every_kind_show_two_targets(kind):
    random.seed(0)
    torch.manual_seed(0)
    images = torch.randint(0, 255, (6, 4, 32, 32), dtype=torch.uint8)
    images[:, 3] = 0
    images[:, 3, 4:28, 4:28] = 255
    clip = images[:1].expand(8, -1, -1, -1)
    pool = Pool(images, images, [clip], [clip])
    absent = 0
    for _ in range(20):
        frames, masks = make_scene(pool, kind, 5, 64)
        assert frames.shape == (5, 3, 64, 64) and frames.min() >= 0 and frames.max() <= 1
        assert masks.shape == (5, 2, 64, 64) and masks.dtype == torch.bool
        assert not (masks[:, 0] & masks[:, 1]).any(), "a pixel shows one thing"
        absent += int((~masks.flatten(2).any(-1)).sum())
    assert 0 < absent < 100


def test_shares_of_kinds_add_up():
    for progress in (0.0, 0.3, 1.0):
        shares = kind_shares(progress)
        assert set(shares) == set(KINDS) and sum(shares.values()) == pytest.approx(1)
