"""Corrections that stay, and what is not computed again."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from probes.errors import InputError
from probes.observing import listen
from sparsity import accelerate
from tests.sparsity.acceleration.conftest import make_frames, make_mask, off_by, part_of_mask, run

FRAMES = 8


def elsewhere(t: int = 0) -> np.ndarray:
    """A mask that tracking would not give."""
    found = np.zeros_like(make_mask())
    found[60:80, 70 + t : 100 + t] = True
    return found


def begun(predictor: Any, corrections: str = "keep") -> dict[str, Any]:
    state: dict[str, Any] = predictor.init_state(make_frames(FRAMES), corrections=corrections)
    predictor.add_new_mask(state, 0, 1, part_of_mask(0))
    predictor.add_new_mask(state, 0, 2, part_of_mask(1))
    return state


@contextmanager
def computed(predictor: Any) -> Iterator[list[tuple[int, int]]]:
    """Frames and objects whose masks are decoded meanwhile, prompted ones too."""
    seen: list[tuple[int, int]] = []
    with listen(
        predictor,
        decoded=lambda told: seen.extend((told.moment.frame, i) for i in told.moment.objects),
    ):
        yield seen


def iou(logits: Tensor, mask: np.ndarray) -> float:
    found = (logits > 0).numpy()
    return float((found & mask).sum() / (found | mask).sum())


@pytest.mark.parametrize("profile", ["dense", "exact"])
def test_a_correction_stays_and_later_frames_follow_it(demo_predictor: Any, profile: str) -> None:
    fast = accelerate(demo_predictor, profile)
    masks = {}
    for corrections in ("stock", "keep"):
        state = begun(fast, corrections)
        run(fast, state)
        fast.add_new_mask(state, 4, 1, elsewhere())
        masks[corrections] = run(fast, state, start_frame_idx=4)
    assert iou(masks["keep"][4][0, 0], elsewhere()) >= 0.99
    assert iou(masks["stock"][4][0, 0], elsewhere()) < 0.5, "as sam2 does it"
    for t in (5, 6, 7):
        there, here = torch.from_numpy(elsewhere()), torch.from_numpy(make_mask(t))
        kept, stock = masks["keep"][t][0, 0], masks["stock"][t][0, 0]
        assert kept[there].mean() > stock[there].mean() and kept[here].mean() < stock[here].mean()
    assert not fast.add_all_frames_to_correct_as_cond


@pytest.mark.parametrize("profile", ["dense", "exact", "recommended"])
def test_what_did_not_change_is_not_computed_again(small_demo: Any, profile: str) -> None:
    """Not the boundary when one goes on, nor the other object after a correction."""
    fast = accelerate(small_demo, profile)
    state = begun(fast)
    run(fast, state, max_frame_num_to_track=4)
    with computed(fast) as seen:
        run(fast, state, start_frame_idx=4)
    assert sorted(seen) == [(t, i) for t in range(5, FRAMES) for i in (1, 2)]
    assert [f.reason for f in fast.report(state).frames if f.frame == 4][-1] == "unchanged"
    before = run(fast, state)
    fast.add_new_mask(state, 5, 1, elsewhere())
    with computed(fast) as seen:
        after = run(fast, state)
    assert sorted(seen) == [(t, 1) for t in range(1, FRAMES) if t != 5]
    for t in range(FRAMES):
        assert torch.equal(after[t][1], before[t][1])
    assert not torch.equal(after[7][0], before[7][0])
    with computed(fast) as seen:
        again = run(fast, state)
    assert not seen and all(torch.equal(again[t], after[t]) for t in range(FRAMES))
    with computed(fast) as seen, fast.use("dense" if profile != "dense" else "exact"):
        run(fast, state, max_frame_num_to_track=1)
    assert sorted(seen) == [(1, 1), (1, 2)], "another profile's results are no answer"


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("what", ["nothing", "picture", "features"])
def test_a_picture_that_a_client_put_there_is_tracked(
    small_demo: Any, what: str, eager: bool
) -> None:
    """And what follows from it; also where features are given in its place, which are of that pass alone."""
    fast = accelerate(small_demo, "dense")
    state = fast.init_state(make_frames(FRAMES), corrections="keep", eager=eager)
    fast.add_new_mask(state, 0, 1, make_mask())
    before = run(fast, state)
    with torch.inference_mode():
        other = state["images"][3].flip(-1)
        if what == "picture":
            state["images"][3] = other
            state["cached_features"].clear()
        elif what == "features":
            state["cached_features"] = {3: (other[None], small_demo.forward_image(other[None]))}
    with computed(fast) as seen:
        after = run(fast, state, start_frame_idx=3)
    assert sorted(seen) == ([] if what == "nothing" else [(t, 1) for t in range(3, FRAMES)])
    assert torch.equal(after[3], before[3]) == (what == "nothing")
    with computed(fast) as seen:
        again = run(fast, state, start_frame_idx=3)
    assert (not seen) == (what != "features")
    assert torch.equal(again[3], (before if what == "features" else after)[3])


def test_changed_weights_and_memory_are_computed_anew(small_demo: Any) -> None:
    own = copy.deepcopy(small_demo)
    fast = accelerate(own, "exact")
    state = begun(fast)
    before = run(fast, state)
    features = state["output_dict_per_obj"][0]["cond_frame_outputs"][0]
    features["maskmem_features"] = features["maskmem_features"] * 0.5
    with computed(fast) as seen:
        run(fast, state)
    assert sorted(seen) == [(t, 1) for t in range(1, FRAMES)]
    with torch.no_grad():
        own.memory_attention.layers[0].linear2.weight.mul_(0.5)
    after = run(fast, state)
    assert not torch.equal(after[FRAMES - 1][1], before[FRAMES - 1][1])


@pytest.mark.parametrize("profile", ["dense", "exact"])
def test_three_rounds_equal_all_prompts_from_the_start(small_demo: Any, profile: str) -> None:
    fast = accelerate(small_demo, profile)
    prompts = [(3, 1, elsewhere()), (5, 2, make_mask(5)), (2, 1, part_of_mask(2))]
    state = begun(fast)
    run(fast, state)
    for frame, i, mask in prompts:
        fast.add_new_mask(state, frame, i, mask)
        found = run(fast, state)
    whole = begun(fast)
    for frame, i, mask in prompts:
        fast.add_new_mask(whole, frame, i, mask)
    expected = run(fast, whole)
    assert all(
        off_by(found[t], expected[t]) <= (0 if profile == "dense" else 1e-4) for t in range(FRAMES)
    )
    assert off_by(found[7], run(fast, begun(fast))[7]) > 1e-3


def test_results_around_a_prompt_are_cleared_where_sam2s_setting_asks(small_demo: Any) -> None:
    """sam2 1.1.0 calls a method for it that it does not have."""
    own = copy.deepcopy(small_demo)
    own.clear_non_cond_mem_around_input = True
    fast = accelerate(own, "exact")
    state = begun(fast)
    first = run(fast, state)
    fast.add_new_mask(state, 4, 1, elsewhere())
    fast.propagate_in_video_preflight(state)
    mine, other = (state["output_dict_per_obj"][i]["non_cond_frame_outputs"] for i in (0, 1))
    assert not mine and len(other) == FRAMES - 1
    assert not torch.equal(run(fast, state)[7], first[7])


def test_a_copied_video_goes_on_without_computing_again(small_demo: Any) -> None:
    fast = accelerate(small_demo, "exact")
    state = begun(fast)
    expected = run(fast, state)
    other = copy.deepcopy(state)
    with computed(fast) as seen:
        found = run(fast, state)
    assert not seen and all(torch.equal(found[t], expected[t]) for t in range(FRAMES))
    assert all(torch.equal(masks, expected[t]) for t, masks in run(fast, other).items())


def test_other_words_are_refused(small_demo: Any) -> None:
    with pytest.raises(InputError, match="corrections 'drop' given; expected 'stock' or 'keep'"):
        accelerate(small_demo).init_state(make_frames(2), corrections="drop")


def _negated(module: Any, given: Any, found: Tensor) -> Tensor:
    return -found


def _left(module: Any, given: Any, found: Tensor) -> Tensor:
    return found


@contextmanager
def another(predictor: Any, what: str) -> Iterator[None]:
    """Change how a predictor computes, but not its weights."""
    if what == "hook":
        with predictor.memory_attention.register_forward_hook(_negated):
            yield
    elif what == "method":
        heads = predictor._forward_sam_heads
        predictor._forward_sam_heads = lambda **given: heads(
            **{**given, "backbone_features": -given["backbone_features"]}
        )
        yield
        del predictor._forward_sam_heads
    elif what == "format":
        with torch.autocast("cpu", torch.bfloat16):
            yield
    else:
        before = getattr(predictor, what)
        setattr(predictor, what, 3)
        yield
        setattr(predictor, what, before)


@pytest.mark.parametrize("what", ["hook", "method", "format", "sigmoid_scale_for_mem_enc"])
def test_what_is_computed_otherwise_now_is_computed_again(tiny_demo: Any, what: str) -> None:
    """By another hook beside one that is there, another method, number format or setting of sam2's."""
    fast = accelerate(tiny_demo, "exact")
    with fast.memory_attention.register_forward_hook(_left):
        state = begun(fast)
        before = run(fast, state, max_frame_num_to_track=2)
        anew = copy.deepcopy(state)
        for outputs in anew["output_dict_per_obj"].values():
            outputs["non_cond_frame_outputs"].clear()
        with another(fast, what):
            after = run(fast, state, max_frame_num_to_track=2)
            expected = run(fast, anew, max_frame_num_to_track=2)
    assert all(torch.equal(after[t], expected[t]) for t in range(3))
    assert not torch.equal(before[2], expected[2])


@pytest.mark.parametrize("saved", [False, True])
def test_a_copy_does_not_compute_again_what_did_not_change(tiny_demo: Any, saved: bool) -> None:
    fast = accelerate(tiny_demo, "exact")
    state = begun(fast)
    run(fast, state, max_frame_num_to_track=2)
    if saved:
        torch.save(state, file := io.BytesIO())
        file.seek(0)
        state = torch.load(file, weights_only=False)
    else:
        state = copy.deepcopy(state)
    with computed(fast) as seen:
        run(fast, state, max_frame_num_to_track=2)
    assert not seen
    out = state["output_dict_per_obj"][0]["non_cond_frame_outputs"][1]
    out["maskmem_features"] = -out["maskmem_features"]
    with computed(fast) as seen:
        run(fast, state, max_frame_num_to_track=2)
    assert seen == [(2, 1)], "what reads another memory"
