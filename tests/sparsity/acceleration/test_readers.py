"""On routed frames only the tokens of computed windows read memory, if the profile says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from probes.errors import InputError
from sparsity import accelerate
from sparsity.acceleration.encoder import window_grid
from sparsity.acceleration.session import KEY
from sparsity.acceleration.windows import window_tokens
from sparsity.profile import EXACT_TECHNIQUES, Memory, Profile, Shortcut, Windows
from sparsity.profiles import parse_profile
from tests.conftest import make_frames
from tests.sparsity.acceleration.conftest import LONG, PROMPTS, off_by, track

WITH = Memory(keep=0.2, readers="routed")


def profile(memory: Memory) -> Profile:
    """Both methods with all exact rewrites."""
    techniques = dict.fromkeys(EXACT_TECHNIQUES, True)
    return Profile(name="readers", windows=Windows(), memory=memory, techniques=techniques)


def test_all_windows_read_like_all_tokens(demo_predictor: Any, long_folder: str) -> None:
    runs = []
    for readers in ("all", "routed"):
        fast = accelerate(demo_predictor, profile(WITH.model_copy(update={"readers": readers})))
        every = tuple(range(window_grid(fast).count))
        state = fast.init_state(long_folder)
        fast.choose_windows(state, lambda frame, every=every: every)
        for prompt in PROMPTS["three objects"]:
            prompt.give(fast, state)
        runs.append(
            [v.clone() for _, _, v in fast.propagate_in_video(state, max_frame_num_to_track=3)]
        )
    assert max(map(off_by, *runs)) <= 1e-3, "memory is kept in bfloat16"
    assert off_by(runs[0][3], runs[0][2]) > 1e-2


def test_the_report_says_how_many_tokens_read(demo_predictor: Any, long_folder: str) -> None:
    fast = accelerate(demo_predictor, profile(WITH))
    run = track(fast, long_folder, PROMPTS["three objects"])
    frames = fast.report(run.state).frames
    routed = [item for item in frames if item.windows is not None]
    assert len(routed) >= 5
    for item in routed:
        share = item.windows_kept / item.windows_total  # windows divide this grid
        assert {found.queries_share for found in item.objects.values()} == {share}
    dense = [item for item in frames[1:] if item.windows is None]
    assert all(found.queries_share == 1.0 for item in dense for found in item.objects.values())


def test_tokens_that_do_not_read_keep_what_they_had(demo_predictor: Any) -> None:
    """On a still picture their memory-conditioned features stay; those of the others follow their memory."""
    profile_of = profile(WITH).model_copy(update={"shortcut": Shortcut(kind="cached")})
    fast = accelerate(demo_predictor, profile_of)
    still = make_frames(1).repeat(5, axis=0)
    seen: list[torch.Tensor] = []
    hook = demo_predictor.memory_attention.norm.register_forward_pre_hook(
        lambda module, args: seen.append(args[0][0].clone())
    )
    windows, added = (5, 6), []
    try:
        state = fast.init_state(still)
        fast.choose_windows(state, lambda frame: windows if frame > 2 else None)
        PROMPTS["mask"][0].give(fast, state)
        for frame, _, _ in fast.propagate_in_video(state, max_frame_num_to_track=3):
            if frame > 0:
                result = state["output_dict_per_obj"][0]["non_cond_frame_outputs"][frame]
                added.append(result[KEY].added.clone())
    finally:
        hook.remove()
    assert len(seen) == len(added) == 3
    grid = window_grid(fast)
    inside = window_tokens(grid.tokens, grid.window, windows, fast.device).tokens
    outside = torch.ones(grid.tokens**2, dtype=torch.bool)
    outside[inside] = False
    torch.testing.assert_close(added[2][outside], added[1][outside], rtol=1e-4, atol=1e-4)
    assert (added[2][inside] - added[1][inside]).abs().max() > 1e-2
    assert (added[1][outside] - added[0][outside]).abs().max() > 1e-2, "dense frames read anew"


def test_only_the_newest_result_carries_what_was_added(
    demo_predictor: Any, long_folder: str
) -> None:
    fast = accelerate(demo_predictor, profile(WITH))
    run = track(fast, long_folder, PROMPTS["mask"])
    results = run.state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
    carried = [frame for frame, out in results.items() if out[KEY].added is not None]
    assert carried == [LONG - 1]


def test_it_differs_from_all_tokens_reading(demo_predictor: Any, long_folder: str) -> None:
    some = track(accelerate(demo_predictor, profile(WITH)), long_folder, PROMPTS["mask"])
    everyone = profile(WITH.model_copy(update={"readers": "all"}))
    whole = track(accelerate(demo_predictor, everyone), long_folder, PROMPTS["mask"])
    assert not some.equal(whole)
    masks = [(some.logits[f] > 0, whole.logits[f] > 0) for f in whole.logits]
    overlaps = [float((a & b).sum() / (a | b).sum()) for a, b in masks]
    assert min(overlaps) > 0.8, "the object's own tokens read memory as before"
    assert off_by(some.logits[1], whole.logits[1]) == 0, "dense frames are the same"


def test_it_needs_windows() -> None:
    document = profile(WITH).model_copy(update={"windows": None}).to_json()
    with pytest.raises(InputError, match="needs windows to be routed by"):
        parse_profile(document)
