"""Gradients of q, k and v, and attribution by them: held against finite differences and against hand computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from probes.errors import InputError
from probes.gradients import (
    DifferentiableFrame,
    attention_times_gradient,
    integrated_gradients,
    mask_target,
)
from probes.observing import edit, observe
from probes.seam import AttentionCall
from probes.tracking import begin_video
from probes.video import open_video
from sparsity import accelerate
from tests.probes.test_observing import left_behind

FRAME, SITE = 2, "memory.layer2.cross"


def track(predictor: Any, frames: np.ndarray, mask: np.ndarray) -> tuple[Any, list[Tensor]]:
    state = begin_video(predictor, open_video(frames))
    predictor.add_new_mask(state, 0, 1, mask)
    propagated = predictor.propagate_in_video(state, max_frame_num_to_track=FRAME)
    return state, [masks for _, _, masks in propagated]


@pytest.fixture(scope="module")
def tracked(
    small_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> tuple[Any, list[Tensor]]:
    """The clip's state, tracked to the frame, and all masks."""
    with torch.inference_mode():
        return track(small_stock, clip_frames, clip_mask)


@pytest.fixture(scope="module")
def frame(small_stock: Any, tracked: tuple[Any, list[Tensor]]) -> DifferentiableFrame:
    return DifferentiableFrame(small_stock, tracked[0], FRAME, 1)


def test_gradients_reach_back_to_every_frame_and_masks_are_the_same(
    small_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray, tracked: Any
) -> None:
    calls: list[AttentionCall] = []
    with observe(small_stock, calls.append, "*", gradients=True):
        _, masks = track(small_stock, clip_frames, clip_mask)
    assert left_behind(small_stock) == []
    assert "propagate_in_video" not in small_stock.__dict__
    assert all(torch.equal(a.detach(), b) for a, b in zip(masks, tracked[1], strict=True))
    first = [call for call in calls if call.moment.frame == 1]
    assert len(first) > 15
    slopes = torch.autograd.grad(masks[-1].sum(), [c.q for c in first], allow_unused=True)
    reached = {c.site for c, slope in zip(first, slopes, strict=True) if slope is not None}
    assert reached >= {SITE, "encoder.stage1.block0.window", "memory.layer0.self"}
    with observe(small_stock, lambda call: calls.append(call), SITE):
        with torch.inference_mode():
            _, plain = track(small_stock, clip_frames, clip_mask)
    assert not plain[-1].requires_grad and not calls[-1].q.requires_grad


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_gradients_are_finite_differences(
    small_stock: Any, frame: DifferentiableFrame, part: str
) -> None:
    aim, calls = mask_target(frame.logits), list[AttentionCall]()
    with observe(small_stock, calls.append, SITE, gradients=True):
        value = aim(frame())
    tensor = getattr(calls[0], part)
    (slope,) = torch.autograd.grad(value, tensor)
    direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    direction += slope * direction.norm() / slope.norm()
    expected = float((slope * direction).sum())

    def moved(by: float) -> float:
        def change(call: AttentionCall) -> AttentionCall:
            return call.change(**{part: getattr(call, part) + by * direction})

        with edit(small_stock, change, SITE):
            return aim(frame()).item()

    step = 4e-3
    found = (moved(step) - moved(-step)) / (2 * step)
    assert found == pytest.approx(expected, rel=0.03)
    assert found != pytest.approx(2 * expected, rel=0.03) and abs(expected) > 1e-3


def test_a_frames_logits_are_those_of_tracking(
    small_stock: Any, tracked: tuple[Any, list[Tensor]], frame: DifferentiableFrame
) -> None:
    results = tracked[0]["output_dict_per_obj"][0]
    stored = results["non_cond_frame_outputs"][FRAME]["pred_masks"][0, 0]
    assert torch.equal(frame.logits, stored)
    assert torch.equal(frame(**frame.inputs).detach(), stored)
    assert [f.frame for f in frame.layout.frames] == [0, 1]
    for name, tensor in frame.inputs.items():
        other = {name: tensor + 0.5}
        assert not torch.allclose(frame(**other).detach(), stored), name
    assert torch.equal(frame().detach(), stored) and left_behind(small_stock) == []


def test_integrated_gradients_add_up_to_what_the_inputs_change(
    small_stock: Any, tracked: tuple[Any, list[Tensor]], frame: DifferentiableFrame
) -> None:
    found = integrated_gradients(small_stock, tracked[0], FRAME, 1, steps=24)
    assert found.memory is not None and found.pointers is not None and found.picture is None
    assert found.memory.shape == (2, 8, 8) and found.pointers.shape == (2,)
    aim = mask_target(frame.logits)
    gone = {name: torch.zeros_like(frame.inputs[name]) for name in ("memory", "pointers")}
    assert found.value == pytest.approx(float(aim(frame.logits)), abs=1e-5)
    assert found.baseline == pytest.approx(aim(frame(**gone)).item(), abs=1e-4)
    assert abs(found.gap) < 0.02 * abs(found.value - found.baseline)
    coarse = integrated_gradients(small_stock, tracked[0], FRAME, 1, steps=1)
    assert abs(coarse.gap) > abs(found.gap)


def test_integrated_gradients_of_one_step_are_a_gradient_times_the_input(
    small_stock: Any, tracked: tuple[Any, list[Tensor]], frame: DifferentiableFrame
) -> None:
    """Of one Gauss-Legendre step, which lies in the middle; here for the picture."""
    found = integrated_gradients(small_stock, tracked[0], FRAME, 1, of=["picture"], steps=1)
    picture = frame.inputs["picture"]
    half = (picture / 2).requires_grad_()
    (slope,) = torch.autograd.grad(mask_target(frame.logits)(frame(picture=half)), half)
    assert found.picture is not None and found.memory is None
    assert torch.allclose(found.picture, (slope * picture).sum(0), rtol=1e-3, atol=1e-6)
    assert not torch.allclose(found.picture, slope.sum(0), rtol=1e-3, atol=1e-6)


def test_attention_times_gradient_is_that_of_the_weights(
    small_stock: Any, tracked: tuple[Any, list[Tensor]], frame: DifferentiableFrame
) -> None:
    """By hand: autograd through the whole matrix of weights."""
    held: list[tuple[Tensor, Tensor]] = []

    def by_weights(call: AttentionCall) -> AttentionCall:
        weights = call.attention()
        output = weights @ call.v
        held.append((weights, output))
        return call.change(output=output)

    with edit(small_stock, by_weights, SITE):
        value = mask_target(frame.logits)(frame())
    ((weights, _),) = held
    (slope,) = torch.autograd.grad(value, weights)
    expected = (weights * slope).clamp(min=0).sum(2)[0].detach()
    found = attention_times_gradient(small_stock, tracked[0], FRAME, 1, "*")
    assert torch.allclose(found[SITE], expected, rtol=1e-3, atol=1e-7)
    assert not torch.allclose(found["memory.layer1.cross"], expected, rtol=1e-3, atol=1e-7)
    assert found[SITE].shape == (1, frame.layout.keys)
    assert found["encoder.stage1.block0.window"].shape == (1, 32 * 32)
    assert found["decoder.final.token_to_image"].shape[-1] == 8 * 8
    assert all(bool((one >= 0).all()) and float(one.sum()) > 0 for one in found.values())


def test_what_has_no_gradients_is_refused(
    small_stock: Any,
    clip_frames: np.ndarray,
    clip_mask: np.ndarray,
    tracked: tuple[Any, list[Tensor]],
) -> None:
    state = tracked[0]
    fast = accelerate(small_stock, "exact")
    with pytest.raises(InputError, match="rewrites have no gradients"):
        with observe(fast, print, gradients=True):
            pytest.fail("it ran")
    with pytest.raises(InputError, match="begun under inference mode"):
        with observe(small_stock, print, gradients=True):
            small_stock.add_new_mask(state, 0, 2, clip_mask)
    with pytest.raises(InputError, match=r"leave them"):
        with torch.no_grad(), observe(small_stock, print, gradients=True):
            track(small_stock, clip_frames, clip_mask)
    for inputs in ([], ["memory", "memory"], ["masks"]):
        with pytest.raises(InputError, match="expected some of picture, memory, pointers"):
            integrated_gradients(small_stock, state, FRAME, 1, of=inputs)
    with pytest.raises(InputError, match="without a prompt"):
        integrated_gradients(small_stock, state, 0, 1)
    with pytest.raises(InputError, match="pass the stock predictor"):
        attention_times_gradient(fast, state, FRAME, 1)
    assert left_behind(small_stock) == []
    assert "propagate_in_video" not in small_stock.__dict__
