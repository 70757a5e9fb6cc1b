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
from sparsity.acceleration.encoder import window_grid
from sparsity.profile import Profile, Windows
from tests.conftest import make_frames, make_mask
from tests.sparsity.acceleration.conftest import (
    LONG,
    PROMPTS,
    Prompt,
    StockRuns,
    everything_kept,
    last,
    off_by,
    part_of_mask,
    pruned_objects,
    run,
    step,
    track,
)

CLICK = Prompt(points=((51, 48),))
SECOND_CLICK = Prompt(points=((51, 48), (40, 40)))


def test_a_prompt_on_a_later_frame(fast: Any, long_folder: str) -> None:
    """Items 1 and 5: at that frame no decoder runs for the object, yet its mask has to route the next frame."""
    prompts = (Prompt(0, 1, part_of_mask(0)), Prompt(5, 2, part_of_mask(1)))
    result = track(fast, long_folder, prompts)
    assert list(result.logits) == list(range(LONG))
    frames = {item.frame: item for item in fast.report(result.state).frames}
    assert frames[5].windows is None and frames[6].windows is None, "dense on and after a prompt"
    assert frames[8].windows is not None
    assert pruned_objects(frames[11]) == {1, 2}


def test_a_second_propagation_in_reverse(fast: Any, long_folder: str) -> None:
    """Items 2 and 18: forward, then backward on one state; pruning works backward too."""
    state = fast.init_state(long_folder)
    Prompt(11, 1, make_mask(11)).give(fast, state)
    assert list(run(fast, state)) == [11]
    backward = run(fast, state, reverse=True)
    assert list(backward) == list(range(11, -1, -1))
    reports = {item.frame: item for item in fast.report(state).frames if item.reverse}
    assert reports[10].windows is None, "the first tracked frame is dense"
    assert reports[2].windows is not None
    assert pruned_objects(reports[2]) == {1}
    again = run(fast, state, reverse=True)
    assert list(again) == list(backward)


def test_forward_then_reverse_from_the_middle(fast: Any, long_folder: str) -> None:
    """Item 2: tokens chosen in one direction are not used in the other."""
    state = fast.init_state(long_folder)
    Prompt(6, 1, make_mask(6)).give(fast, state)
    run(fast, state)
    assert pruned_objects(last(fast, state)) == {1}
    run(fast, state, reverse=True)
    backward = {item.frame: item for item in fast.report(state).frames if item.reverse}
    assert pruned_objects(backward[5]) == set(), (
        "what lies behind is recollected for the first time"
    )
    assert pruned_objects(backward[4]) == {1}
    with fast.use(everything_kept()):
        found = step_back(fast, state, 3)
    assert off_by(found, step_back(fast._stock, state, 3)) <= 1e-4


def step_back(predictor: Any, state: dict[str, Any], frame: int) -> torch.Tensor:
    """Track one frame in reverse."""
    options = {"start_frame_idx": frame, "max_frame_num_to_track": 0, "reverse": True}
    return run(predictor, state, **options)[frame]


def test_a_run_in_chunks_equals_one_run(fast: Any, long_folder: str) -> None:
    """Item 3: a start on a frame without prompt, as a resumed or chunked run has it."""
    whole = track(fast, long_folder, PROMPTS["mask"])
    state = fast.init_state(long_folder)
    PROMPTS["mask"][0].give(fast, state)
    parts = run(fast, state, max_frame_num_to_track=5)
    for start in (6, 9):
        parts |= run(fast, state, start_frame_idx=start, max_frame_num_to_track=2)
    assert list(parts) == list(whole.logits)
    for frame, logits in parts.items():
        assert torch.equal(logits, whole.logits[frame])
    windows = [item.windows for item in fast.report(state).frames]
    assert windows == [item.windows for item in fast.report(whole.state).frames]


def test_a_start_far_from_any_result_is_dense(fast: Any, long_folder: str) -> None:
    """Items 3 and 19: after a jump, what the last frame said about windows is void."""
    state = fast.init_state(long_folder)
    PROMPTS["mask"][0].give(fast, state)
    run(fast, state, max_frame_num_to_track=4)
    run(fast, state, start_frame_idx=9, max_frame_num_to_track=1)
    jumped, next_to_it = fast.report(state).frames[-2:]
    assert (jumped.windows, jumped.reason) == (None, "no adjacent result")
    assert next_to_it.windows is not None


def test_a_start_at_either_end_of_the_video(demo_predictor: Any, long_folder: str) -> None:
    """There is no frame before the first and none behind the last whose picture could be compared."""
    fast = accelerate(demo_predictor, "recommended")
    state = fast.init_state(long_folder)
    Prompt(3, 1, make_mask(3)).give(fast, state)
    ahead = run(fast, state, start_frame_idx=0, max_frame_num_to_track=1)
    back = run(fast, state, start_frame_idx=LONG - 1, max_frame_num_to_track=1, reverse=True)
    assert (list(ahead), list(back)) == ([0, 1], [LONG - 1, LONG - 2])
    reasons = [item.reason for item in fast.report(state).frames]
    assert reasons[::2] == ["no adjacent result"] * 2
    assert not set(reasons[1::2]) & {"no adjacent result"}


def test_clicks_after_a_click_and_mixed_prompts(fast: Any, long_folder: str) -> None:
    """Item 4: one candidate mask here, three there."""
    state = fast.init_state(long_folder)
    CLICK.give(fast, state)
    SECOND_CLICK.give(fast, state)
    Prompt(0, 2, part_of_mask(0)).give(fast, state)
    Prompt(0, 3, box=(20, 18, 84, 78)).give(fast, state)
    assert len(run(fast, state)) == LONG
    assert pruned_objects(last(fast, state)) == {1, 2, 3}


def test_a_correction_midway(fast: Any, long_folder: str) -> None:
    """Items 2 and 20: tracked, corrected on a routed frame, tracked on."""
    state = fast.init_state(long_folder)
    PROMPTS["mask"][0].give(fast, state)
    run(fast, state, max_frame_num_to_track=6)
    assert last(fast, state).windows is not None
    Prompt(6, 1, points=((55, 48),)).give(fast, state)
    after = run(fast, state, start_frame_idx=7)
    assert list(after) == list(range(7, LONG))
    frames = {item.frame: item for item in fast.report(state).frames[-5:]}
    assert frames[7].reason == "no adjacent result", "a corrected one says nothing about windows"
    assert not {frames[t].reason for t in range(8, LONG)} & {"no adjacent result"}
    assert pruned_objects(last(fast, state)) == {1}


def test_an_abandoned_run_leaves_nothing_behind(fast: Any, long_folder: str) -> None:
    """Item 6: neither the next video nor the same one after `reset_state` feels it."""
    expected = track(fast, long_folder, PROMPTS["mask"])
    state = fast.init_state(long_folder)
    PROMPTS["three objects"][0].give(fast, state)
    list(islice(fast.propagate_in_video(state), 5))
    assert track(fast, long_folder, PROMPTS["mask"]).equal(expected)
    fast.reset_state(state)
    assert fast.report(state).frames == []
    PROMPTS["mask"][0].give(fast, state)
    again = run(fast, state)
    assert all(torch.equal(again[f], expected.logits[f]) for f in again)
    hooks = [m for m in fast.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []


def test_sessions_take_turns(fast: Any, long_folder: str) -> None:
    """Item 32: two videos tracked in turn with one predictor."""
    prompts = (PROMPTS["mask"], PROMPTS["three objects"])
    expected = [track(fast, long_folder, given) for given in prompts]
    states = [fast.init_state(long_folder) for _ in prompts]
    for state, given in zip(states, prompts, strict=True):
        for prompt in given:
            prompt.give(fast, state)
    for frames in zip(*(fast.propagate_in_video(state) for state in states), strict=True):
        for (frame, _, logits), alone in zip(frames, expected, strict=True):
            assert torch.equal(logits, alone.logits[frame])


@pytest.mark.parametrize("size", [192, 320])
def test_other_image_sizes(size: int) -> None:
    """Item 7: every size works, all windows kept is dense at each of them."""
    stock = build_predictor("demo", image_size=size, device="cpu")
    fast = accelerate(stock, "paper")
    result = track(fast, make_frames(LONG), PROMPTS["mask"])
    assert (
        last(fast, result.state).windows_total == window_grid(fast).count == (-(-size // 64)) ** 2
    )
    assert pruned_objects(last(fast, result.state)) == {1}
    state = result.state
    with fast.use(None):
        expected = step(fast, state, 10)
    with fast.use(Profile(name="windows", windows=Windows())):
        fast.choose_windows(state, lambda frame: tuple(range(window_grid(fast).count)))
        assert off_by(step(fast, state, 10), expected) <= 1e-4
        fast.choose_windows(state, lambda frame: (0,))
        assert off_by(step(fast, state, 10), expected) > 1e-3


def test_an_object_that_loses_its_prompt_in_mid_pass_is_named(fast: Any, long_folder: str) -> None:
    for loses in (False, True):
        state = fast.init_state(long_folder)
        PROMPTS["mask"][0].give(fast, state)
        frames = fast.propagate_in_video(state)
        for _ in range(4):
            next(frames)
        if not loses:
            assert next(frames)[0] == 4
            continue
        fast.clear_all_prompts_in_frame(state, 0, 1)
        with pytest.raises(InputError, match="object 1 lost its last prompt before frame 4"):
            next(frames)


def test_a_model_without_pointers(long_folder: str) -> None:
    """Item 12."""
    stock = build_predictor("demo", image_size=256, device="cpu")
    stock.use_obj_ptrs_in_encoder = False
    with torch.autocast("cpu", torch.bfloat16):
        fast = accelerate(stock, "paper")
        report = last(fast, track(fast, long_folder, PROMPTS["mask"]).state)
    assert pruned_objects(report) == {1}
    tokens = fast.sam_image_embedding_size**2
    assert report.objects[1].keys_total == 7 * tokens


def test_saliency_of_the_latest_frame_alone(fast: Any, long_folder: str) -> None:
    """Item 15: windows added at a low score come from one frame's saliency, and nothing piles up."""
    always = Profile(name="always", windows=Windows(score_below=1000.0, margin_px=0))
    with fast.use(always):
        result = track(fast, long_folder, PROMPTS["mask"])
        shares = [item.windows_kept for item in fast.report(result.state).frames[2:]]
        reasons = fast.report(result.state).reasons
    assert reasons["saliency added"] >= 5
    assert max(shares) < window_grid(fast).count, "the union over frames would keep them all"
    with fast.use(Profile(name="never", windows=Windows(score_below=-1000.0, margin_px=0))):
        other = track(fast, long_folder, PROMPTS["mask"])
        fewer = [item.windows_kept for item in fast.report(other.state).frames[2:]]
    assert sum(fewer) < sum(shares)


def test_two_conditioning_frames(fast: Any, long_folder: str) -> None:
    """Item 16: both are read whole, and no frame is read with another frame's tokens."""
    prompts = (Prompt(0, 1, make_mask(0)), Prompt(3, 1, make_mask(3)))
    result = track(fast, long_folder, prompts)
    item = last(fast, result.state).objects[1]
    tokens = fast.sam_image_embedding_size**2
    kept = int(0.05 * tokens)
    frames = item.keys_total // tokens
    pointers = item.keys_total - frames * tokens
    assert item.pruned_frames == frames - 3, "two prompts and the newest frame are whole"
    assert item.keys_used == [3 * tokens + item.pruned_frames * kept + pointers] * 4


@pytest.mark.parametrize("chosen", [(), (0, 99), (-1,)])
def test_windows_that_are_not_there_are_refused(
    fast: Any, stock_runs: StockRuns, chosen: tuple[int, ...]
) -> None:
    state = stock_runs(fast._stock, "mask").state
    fast.choose_windows(state, lambda frame: chosen)
    with pytest.raises(InputError, match=r"chosen for frame 10; expected one or more of 0 to 15"):
        step(fast, state, 10)
    fast.choose_windows(state, lambda frame: (1, 0, 1))
    step(fast, state, 10)
    assert last(fast, state).windows == [0, 1]


def test_dense_after_few_windows_are_worth_it(fast: Any, long_folder: str) -> None:
    """Routing stops where the kept share makes it slower than a dense frame."""
    result = track(accelerate(fast._stock, everything_kept()), long_folder, PROMPTS["mask"])
    reasons = fast.report(result.state).reasons
    assert reasons["most windows kept"] == LONG - 2
    assert "routed" not in reasons


def test_frames_of_a_memory_stride(long_folder: str) -> None:
    """Any memory stride: every frame of the strided bank but the newest is pruned."""
    stock = build_predictor("demo", image_size=256, device="cpu")
    stock.memory_temporal_stride_for_eval = 2
    fast = accelerate(stock, "paper")
    result = track(fast, make_frames(16), PROMPTS["mask"])
    report = last(fast, result.state)
    assert report.objects[1].pruned_frames == 5
    whole = accelerate(stock, everything_kept())
    state = track(stock, long_folder, PROMPTS["mask"]).state
    assert off_by(step(whole, state, 10), step(stock, state, 10)) <= 1e-4


def test_numpy_arrays_and_streams_give_the_same(fast: Any) -> None:
    frames = make_frames(17)  # a video of fewer frames than pointers scales their distances
    expected = track(fast, frames, PROMPTS["mask"])
    assert track(fast, iter(frames), PROMPTS["mask"]).equal(expected)
    assert not track(fast, frames[::-1].copy(), PROMPTS["mask"]).equal(expected)
    assert np.isfinite(expected.logits[5].numpy()).all()
