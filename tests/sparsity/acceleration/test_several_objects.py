"""Several objects in one session: pruned alike, prompted on different frames, added late, removed.

Items are those of the authors' code that break there (method 6.2).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from probes import build_predictor
from sparsity import accelerate
from sparsity.acceleration.encoder import window_grid
from sparsity.profile import Memory, Profile
from tests.conftest import make_mask
from tests.sparsity.acceleration.conftest import (
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


def test_objects_prompted_on_different_frames_equal_stock(
    demo_predictor: Any, long_folder: str
) -> None:
    """Item 21: an object's prompt frame counts for the windows of the next frame."""
    prompts = (
        Prompt(0, 1, part_of_mask(0)),
        Prompt(2, 2, part_of_mask(1)),
        Prompt(3, 7, points=((40, 60),)),
    )
    predictors = (
        demo_predictor,
        *(accelerate(demo_predictor, p) for p in ("dense", everything_kept())),
    )
    expected, same, found = (
        track(p, long_folder, prompts, max_frame_num_to_track=5) for p in predictors
    )
    assert same.equal(expected)
    for frame, logits in expected.logits.items():
        assert ((logits > 0) == (found.logits[frame] > 0)).float().mean() > 0.998


@pytest.mark.parametrize("keep", [0.05, 0.2])
def test_every_object_is_pruned(demo_predictor: Any, long_folder: str, keep: float) -> None:
    """Item 17: not only the last one."""
    profile = Profile(name="few", memory=Memory(keep=keep))
    fast = accelerate(demo_predictor, profile)
    result = track(fast, long_folder, PROMPTS["three objects"])
    report = last(fast, result.state)
    assert pruned_objects(report) == {1, 2, 3}
    tokens = fast.sam_image_embedding_size**2
    for item in report.objects.values():
        assert item.prunable_keys_used == item.pruned_frames * int(keep * tokens)
        assert item.prunable_keys_total == item.pruned_frames * tokens


def test_a_removed_object_takes_its_tokens_with_it(fast: Any, long_folder: str) -> None:
    """Item 19: the others go on as if it had never been there."""
    state = fast.init_state(long_folder)
    for prompt in PROMPTS["three objects"]:
        prompt.give(fast, state)
    run(fast, state, max_frame_num_to_track=7)
    expected = {
        i: {f: out["pred_masks"].clone() for f, out in state["output_dict_per_obj"][i]["non_cond_frame_outputs"].items()}
        for i in (0, 2)
    }  # fmt: skip
    fast.remove_object(state, 2)
    for new, old in ((0, 0), (1, 2)):
        results = state["output_dict_per_obj"][new]["non_cond_frame_outputs"]
        assert all(torch.equal(results[f]["pred_masks"], mask) for f, mask in expected[old].items())
    after = run(fast, state, start_frame_idx=8)
    assert all(len(logits) == 2 for logits in after.values())
    assert pruned_objects(last(fast, state)) == {1, 3}


def test_an_object_added_late_takes_part(fast: Any, long_folder: str) -> None:
    """Items 20 and 21: its prompt is answered from dense features, the next frame is dense."""
    state = fast.init_state(long_folder)
    PROMPTS["mask"][0].give(fast, state)
    run(fast, state, max_frame_num_to_track=6)
    Prompt(6, 9, points=((110, 20),)).give(fast, state)
    run(fast, state, start_frame_idx=6)
    frames = {item.frame: item for item in fast.report(state).frames if 9 in item.objects}
    assert frames[7].windows is None
    assert pruned_objects(frames[11]) == {1, 9}


@pytest.mark.parametrize("profile", ["exact", "paper"])
def test_an_object_added_during_a_pass_waits_for_the_next(
    demo_predictor: Any, long_folder: str, profile: str
) -> None:
    """The pass under way goes on as if it were not there, like stock's, which counts its objects once."""
    fast = accelerate(demo_predictor, profile)
    expected = track(fast, long_folder, PROMPTS["mask"])
    state, found = fast.init_state(long_folder), {}
    PROMPTS["mask"][0].give(fast, state)
    for frame, ids, logits in fast.propagate_in_video(state):
        assert ids == [1]
        found[frame] = logits.clone()
        if frame == 4:
            Prompt(4, 9, points=((110, 20),)).give(fast, state)
    assert all(torch.equal(found[f], expected.logits[f]) for f in expected.logits)
    reasons = [[item.reason for item in fast.report(s).frames] for s in (state, expected.state)]
    assert reasons[0] == reasons[1]
    after = run(fast, state, start_frame_idx=4)
    assert all(len(logits) == 2 for logits in after.values())


def test_masks_in_memory_do_not_compete(demo_predictor: Any, long_folder: str) -> None:
    """Stock encodes one object at a time, so that its constraint on masks in memory does nothing."""
    stock = build_predictor("demo", image_size=256, device="cpu")
    stock.non_overlap_masks_for_mem_enc = True
    prompts = (Prompt(0, 1, make_mask(0)), Prompt(0, 2, make_mask(3)))
    runs = [
        track(p, long_folder, prompts, max_frame_num_to_track=4)
        for p in (stock, accelerate(stock, "exact"))
    ]
    assert off_by(runs[1].logits[4], runs[0].logits[4]) <= 1e-3
    assert off_by(runs[0].logits[4].flip(0), runs[0].logits[4]) > 1e-2


def test_several_objects_share_windows_and_features(fast: Any, stock_runs: StockRuns) -> None:
    """Item 22: all objects of a pass see the features of the one image; the windows are the union's."""
    stock = fast._stock
    state = stock_runs(stock, "three objects").state
    windows = tuple(range(window_grid(fast).count // 2))
    fast.choose_windows(state, lambda frame: windows)
    step(fast, state, 10)  # chooses tokens
    together = step(fast, state, 10)
    techniques = {**fast.profile.techniques, "batched_objects": False}
    with fast.use(fast.profile.model_copy(update={"techniques": techniques})):
        one_by_one = step(fast, state, 10)
    assert off_by(together, one_by_one) <= 1e-4
    assert last(fast, state).windows == list(windows)
    fast.choose_windows(state, None)
    assert off_by(step(fast, state, 10), together) > 1e-3
