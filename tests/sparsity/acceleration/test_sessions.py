"""What users do with a session: late prompts, corrections, jumps, reverse, abandoned runs.

Each of these breaks the authors' code or silently gives it wrong windows or keys (method 6.2; the item is
named at the test). Where everything is kept, the outcome must be stock's; where not, the report must say
that routing and pruning went on.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from probes import build_predictor
from probes.errors import InputError
from sparsity import accelerate
from sparsity.acceleration.model.encoder import window_grid
from sparsity.profile import Profile
from sparsity.techniques.routing import Routing
from tests.sparsity.acceleration.conftest import (
    FULL,
    PROMPTS,
    Prompt,
    Runs,
    everything_kept,
    last,
    make_frames,
    make_mask,
    off_by,
    part_of_mask,
    pruned_objects,
    run,
    step,
    track,
)

CLICK = Prompt(points=((38, 32),))
SECOND_CLICK = Prompt(points=((38, 32), (27, 24)))

SHORT = 7
"""Frames of a clip in which windows and keys are left out: windows from its third frame on, keys from its fourth."""


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """A short clip."""
    return make_frames(SHORT)


def test_a_prompt_on_a_later_frame(fast: Any, clip: np.ndarray) -> None:
    """Items 1 and 5: at that frame no decoder runs for the object, yet its mask has to route the next frame."""
    prompts = (Prompt(0, 1, part_of_mask(0)), Prompt(2, 2, part_of_mask(1)))
    result = track(fast, clip, prompts)
    assert list(result.logits) == list(range(SHORT))
    frames = {item.frame: item for item in result.report.frames}
    assert frames[2].windows is None and frames[3].windows is None, "dense on and after a prompt"
    assert frames[4].windows is not None
    assert pruned_objects(frames[6]) == {1, 2}


def test_a_second_propagation_in_reverse(fast: Any, clip: np.ndarray) -> None:
    """Items 2 and 18: forward, then backward on one state; pruning works backward too."""
    state, end = fast.init_state(clip), SHORT - 1
    Prompt(end, 1, make_mask(end)).give(fast, state)
    assert list(run(fast, state)) == [end]
    backward = run(fast, state, reverse=True)
    assert list(backward) == list(range(end, -1, -1))
    reports = {item.frame: item for item in fast.report(state).frames if item.reverse}
    assert reports[end - 1].windows is None, "the first tracked frame is dense"
    assert reports[2].windows is not None
    assert pruned_objects(reports[2]) == {1}
    again = run(fast, state, reverse=True)
    assert list(again) == list(backward)


def test_forward_then_reverse_from_the_middle(fast: Any, clip: np.ndarray) -> None:
    """Item 2: tokens chosen in one direction are not used in the other."""
    state = fast.init_state(clip)
    Prompt(3, 1, make_mask(3)).give(fast, state)
    run(fast, state)
    assert pruned_objects(last(fast, state)) == {1}
    run(fast, state, reverse=True)
    backward = {item.frame: item for item in fast.report(state).frames if item.reverse}
    assert pruned_objects(backward[2]) == set(), (
        "what lies behind is recollected for the first time"
    )
    assert pruned_objects(backward[1]) == {1}
    with fast.use(everything_kept()):
        found = step_back(fast, state, 1)
    assert off_by(found, step_back(fast.stock, state, 1)) <= 1e-4


def step_back(predictor: Any, state: dict[str, Any], frame: int) -> torch.Tensor:
    """Track one frame in reverse."""
    options = {"start_frame_idx": frame, "max_frame_num_to_track": 0, "reverse": True}
    return run(predictor, state, **options)[frame]


def test_a_run_in_chunks_equals_one_run(fast: Any, runs: Runs) -> None:
    """Item 3: a start on a frame without prompt, as a resumed or chunked run has it."""
    whole = runs(fast.stock, profile="paper")
    state = fast.init_state(runs.source)
    PROMPTS["mask"][0].give(fast, state)
    parts = run(fast, state, max_frame_num_to_track=3)
    for start in (4, 6):
        parts |= run(fast, state, start_frame_idx=start, max_frame_num_to_track=1)
    assert list(parts) == list(range(8))
    for frame, logits in parts.items():
        assert torch.equal(logits, whole.logits[frame])
    windows = [item.windows for item in fast.report(state).frames]
    assert windows == [item.windows for item in whole.report.frames[:8]]


def test_a_start_far_from_any_result_is_dense(fast: Any, clip: np.ndarray) -> None:
    """Items 3 and 19: after a jump, what the last frame said about windows is void."""
    state = fast.init_state(clip)
    PROMPTS["mask"][0].give(fast, state)
    run(fast, state, max_frame_num_to_track=2)
    run(fast, state, start_frame_idx=5, max_frame_num_to_track=1)
    jumped, next_to_it = fast.report(state).frames[-2:]
    assert (jumped.windows, jumped.reason) == (None, "no adjacent result")
    assert next_to_it.windows is not None


def test_a_start_at_either_end_of_the_video(demo_predictor: Any, clip: np.ndarray) -> None:
    """There is no frame before the first and none behind the last whose picture could be compared."""
    fast, end = accelerate(demo_predictor, "recommended"), SHORT - 1
    state = fast.init_state(clip)
    Prompt(3, 1, make_mask(3)).give(fast, state)
    ahead = run(fast, state, start_frame_idx=0, max_frame_num_to_track=1)
    back = run(fast, state, start_frame_idx=end, max_frame_num_to_track=1, reverse=True)
    assert (list(ahead), list(back)) == ([0, 1], [end, end - 1])
    reasons = [item.reason for item in fast.report(state).frames]
    assert reasons[::2] == ["no adjacent result"] * 2
    assert not set(reasons[1::2]) & {"no adjacent result"}


def test_clicks_after_a_click_and_mixed_prompts(fast: Any) -> None:
    """Item 4: one candidate mask here, three there."""
    state = fast.init_state(make_frames(5))
    CLICK.give(fast, state)
    SECOND_CLICK.give(fast, state)
    Prompt(0, 2, part_of_mask(0)).give(fast, state)
    Prompt(0, 3, box=(7, 2, 71, 62)).give(fast, state)
    assert len(run(fast, state)) == 5
    assert pruned_objects(last(fast, state)) == {1, 2, 3}


def test_a_correction_midway(fast: Any, runs: Runs) -> None:
    """Items 2 and 20: tracked, corrected on a routed frame, tracked on."""
    state = fast.init_state(runs.source)
    PROMPTS["mask"][0].give(fast, state)
    run(fast, state, max_frame_num_to_track=4)
    assert last(fast, state).windows is not None
    Prompt(4, 1, points=((42, 32),)).give(fast, state)
    after = run(fast, state, start_frame_idx=5, max_frame_num_to_track=3)
    assert list(after) == list(range(5, 9))
    frames = {item.frame: item for item in fast.report(state).frames[-4:]}
    assert frames[5].reason == "no adjacent result", "a corrected one says nothing about windows"
    assert not {frames[t].reason for t in range(6, 9)} & {"no adjacent result"}
    assert pruned_objects(last(fast, state)) == {1}


def test_an_abandoned_run_leaves_nothing_behind(fast: Any, runs: Runs) -> None:
    """Item 6: neither the next video nor the same one after `reset_state` feels it."""
    expected = runs(fast.stock, profile="paper")
    state = fast.init_state(runs.source)
    PROMPTS["three objects"][0].give(fast, state)
    list(islice(fast.propagate_in_video(state), 4))
    assert track(fast, runs.source, PROMPTS["mask"], 5).equal(expected, 5)
    fast.reset_state(state)
    assert fast.report(state).frames == []
    PROMPTS["mask"][0].give(fast, state)
    again = run(fast, state, max_frame_num_to_track=4)
    assert list(again) == list(range(5))
    assert all(torch.equal(again[f], expected.logits[f]) for f in again)
    hooks = [m for m in fast.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []


def test_sessions_take_turns(fast: Any, runs: Runs) -> None:
    """Item 32: two videos tracked in turn with one predictor."""
    kinds = ("mask", "three objects")
    expected = [runs(fast.stock, kind, "paper") for kind in kinds]
    states = [fast.init_state(runs.source) for _ in kinds]
    for state, kind in zip(states, kinds, strict=True):
        for prompt in PROMPTS[kind]:
            prompt.give(fast, state)
    turns = zip(*(fast.propagate_in_video(state, 0, 4) for state in states), strict=True)
    for frames in turns:
        for (frame, _, logits), alone in zip(frames, expected, strict=True):
            assert torch.equal(logits, alone.logits[frame])
    assert frame == 4


@pytest.mark.parametrize("size", [160, 256])
def test_other_image_sizes(size: int) -> None:
    """Item 7: every size works, all windows kept is dense at each of them."""
    stock = build_predictor("demo", image_size=size, device="cpu")
    fast = accelerate(stock, "paper")
    state, end = track(fast, make_frames(5), PROMPTS["mask"]).state, 4
    assert last(fast, state).windows_total == window_grid(fast).count == (-(-size // 64)) ** 2
    assert pruned_objects(last(fast, state)) == {1}
    with fast.use(None):
        expected = step(fast, state, end)
    with fast.use(Profile(name="windows", routing=Routing())):
        fast.choose_windows(state, lambda frame: tuple(range(window_grid(fast).count)))
        assert off_by(step(fast, state, end), expected) <= 1e-4
        fast.choose_windows(state, lambda frame: (0,))
        assert off_by(step(fast, state, end), expected) > 1e-3


def test_an_object_that_loses_its_prompt_in_mid_pass_is_named(fast: Any, clip: np.ndarray) -> None:
    for loses in (False, True):
        state = fast.init_state(clip)
        PROMPTS["mask"][0].give(fast, state)
        frames = fast.propagate_in_video(state)
        for _ in range(2):
            next(frames)
        if not loses:
            assert next(frames)[0] == 2
            continue
        fast.clear_all_prompts_in_frame(state, 0, 1)
        with pytest.raises(InputError, match="object 1 lost its last prompt before frame 2"):
            next(frames)
        assert list(state["cached_features"]) == [2], (
            "as stock leaves it, which fails after encoding"
        )


def test_a_model_without_pointers(own_demo: Any) -> None:
    """Item 12."""
    own_demo.use_obj_ptrs_in_encoder = False
    fast = accelerate(own_demo, "paper")
    report = track(fast, make_frames(5), PROMPTS["mask"]).report.frames[-1]
    assert pruned_objects(report) == {1}
    tokens = fast.sam_image_embedding_size**2
    assert report.objects[1].keys_total == 4 * tokens


def test_saliency_of_the_latest_frame_alone(fast: Any, clip: np.ndarray) -> None:
    """Item 15: windows added at a low score come from one frame's saliency, and nothing piles up."""
    reports = {}
    for name, score in (("always", 1000.0), ("never", -1000.0)):
        routing = Routing(score_below=score, margin_px=0, saliency_mass=0.9)
        with fast.use(Profile(name=name, routing=routing)):
            reports[name] = track(fast, clip, PROMPTS["mask"]).report
    always, never = ([f.windows_kept for f in r.frames[2:]] for r in reports.values())
    assert reports["always"].reasons["saliency added"] == SHORT - 2
    assert max(always) < window_grid(fast).count, "the union over frames would keep them all"
    assert sum(never) < sum(always)


def test_two_conditioning_frames(fast: Any, clip: np.ndarray) -> None:
    """Item 16: both are read whole, and no frame is read with another frame's tokens."""
    prompts = (Prompt(0, 1, make_mask(0)), Prompt(2, 1, make_mask(2)))
    item = track(fast, clip, prompts).report.frames[-1].objects[1]
    tokens = fast.sam_image_embedding_size**2
    kept = int(0.05 * tokens)
    frames = item.keys_total // tokens
    pointers = item.keys_total - frames * tokens
    assert item.pruned_frames == frames - 3 > 1, "two prompts and the newest frame are whole"
    assert item.keys_used == [3 * tokens + item.pruned_frames * kept + pointers] * 4


@pytest.mark.parametrize("chosen", [(), (0, 99), (-1,)])
def test_windows_that_are_not_there_are_refused(
    fast: Any, runs: Runs, chosen: tuple[int, ...]
) -> None:
    state = runs(fast.stock).resumed()
    fast.choose_windows(state, lambda frame: chosen)
    with pytest.raises(
        InputError, match=rf"windows .* frame {FULL}; expected one or more of 0 to 8"
    ):
        step(fast, state, FULL)
    fast.choose_windows(state, lambda frame: (1, 0, 1))
    step(fast, state, FULL)
    assert last(fast, state).windows == [0, 1]


def test_dense_after_few_windows_are_worth_it(demo_predictor: Any, clip: np.ndarray) -> None:
    """Encoding stops where the kept share makes it slower than a dense frame."""
    run = track(accelerate(demo_predictor, everything_kept()), clip, PROMPTS["mask"])
    reasons = run.report.reasons
    assert reasons["most windows kept"] == SHORT - 2
    assert "routed" not in reasons


def test_frames_of_a_memory_stride(own_demo: Any) -> None:
    """Any memory stride: every frame of the strided bank but the newest is pruned."""
    own_demo.memory_temporal_stride_for_eval, own_demo.num_maskmem = 2, 4
    fast = accelerate(own_demo, "paper")
    state = track(fast, make_frames(8), PROMPTS["mask"]).state
    assert last(fast, state).objects[1].pruned_frames == 2
    whole = accelerate(own_demo, everything_kept())
    assert off_by(step(whole, state, 7), step(own_demo, state, 7)) <= 1e-4
    assert off_by(step(whole, state, 7), step(whole, state, 6)) > 1e-3


def test_numpy_arrays_and_streams_give_the_same(own_demo: Any) -> None:
    own_demo.max_obj_ptrs_in_encoder = 4  # a video of fewer frames scales their distances
    fast, frames = accelerate(own_demo, "paper"), make_frames(6)
    expected = track(fast, frames, PROMPTS["mask"])
    assert track(fast, iter(frames), PROMPTS["mask"]).equal(expected)
    assert not track(fast, frames[::-1].copy(), PROMPTS["mask"]).equal(expected)
    assert np.isfinite(expected.logits[5].numpy()).all()
