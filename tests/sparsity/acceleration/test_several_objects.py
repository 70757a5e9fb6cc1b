"""Several objects in one session: pruned alike, prompted on different frames, added late, removed.

Items are those of the authors' code that break there (method 6.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparsity import accelerate
from sparsity.acceleration import predictor
from sparsity.acceleration.model import attention, linear
from sparsity.acceleration.model.encoder import window_grid
from sparsity.acceleration.parts import MOST_OBJECTS
from sparsity.acceleration.recall import recall
from sparsity.profile import Profile
from sparsity.techniques.retrieval import Retrieval
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


@pytest.fixture
def without_pointers(demo_predictor: Any) -> Iterator[Any]:
    """The demo model, whose memory attention takes memory in its weights' format where an object has no pointer yet.

    Memory is kept in bfloat16, and pointers alone make it float32, so that stock fails there.
    """
    hook = demo_predictor.memory_attention.register_forward_pre_hook(
        lambda module, args, given: (args, {**given, "memory": given["memory"].float()}),
        with_kwargs=True,
    )
    yield demo_predictor
    hook.remove()


def test_objects_prompted_on_different_frames_equal_stock(
    without_pointers: Any, long_folder: str
) -> None:
    """Item 21: an object's prompt frame counts for the windows of the next frame."""
    prompts = (
        Prompt(0, 1, part_of_mask(0)),
        Prompt(2, 2, part_of_mask(1)),
        Prompt(3, 7, points=((27, 44),)),
    )
    predictors = (
        without_pointers,
        *(accelerate(without_pointers, p) for p in ("dense", everything_kept())),
    )
    expected, same, found = (track(p, long_folder, prompts, 5) for p in predictors)
    assert same.equal(expected)
    for frame, logits in expected.logits.items():
        assert ((logits > 0) == (found.logits[frame] > 0)).float().mean() > 0.998
        assert ((logits > 0) != (found.logits[frame].flip(0) > 0)).float().mean() > 0.01


@pytest.mark.parametrize("keep", [0.05, 0.2])
def test_every_object_is_pruned(demo_predictor: Any, keep: float) -> None:
    """Item 17: not only the last one."""
    fast = accelerate(demo_predictor, Profile(name="few", retrieval=Retrieval(keep=keep)))
    report = last(fast, track(fast, make_frames(5), PROMPTS["three objects"]).state)
    assert pruned_objects(report) == {1, 2, 3}
    tokens = fast.sam_image_embedding_size**2
    for item in report.objects.values():
        assert item.prunable_keys_used == item.pruned_frames * int(keep * tokens)
        assert item.prunable_keys_total == item.pruned_frames * tokens


def test_a_removed_object_takes_its_tokens_with_it(fast: Any, runs: Runs) -> None:
    """Item 19: the others go on as if it had never been there."""
    state = runs(fast.stock, "three objects", "paper").resumed()
    expected = {
        i: {f: out["pred_masks"].clone() for f, out in state["output_dict_per_obj"][i]["non_cond_frame_outputs"].items()}
        for i in (0, 2)
    }  # fmt: skip
    fast.remove_object(state, 2)
    for new, old in ((0, 0), (1, 2)):
        results = state["output_dict_per_obj"][new]["non_cond_frame_outputs"]
        assert all(torch.equal(results[f]["pred_masks"], mask) for f, mask in expected[old].items())
    after = run(fast, state, start_frame_idx=FULL)
    assert list(after) == [FULL, FULL + 1]
    assert all(len(logits) == 2 for logits in after.values())
    assert pruned_objects(last(fast, state)) == {1, 3}


def test_an_object_added_late_takes_part(fast: Any) -> None:
    """Items 20 and 21: its prompt is answered from dense features, the next frame is dense."""
    state = fast.init_state(make_frames(7))
    PROMPTS["mask"][0].give(fast, state)
    run(fast, state, max_frame_num_to_track=3)
    Prompt(3, 9, points=((110, 80),)).give(fast, state)
    run(fast, state, start_frame_idx=3)
    frames = {item.frame: item for item in fast.report(state).frames if 9 in item.objects}
    assert frames[4].windows is None
    assert pruned_objects(frames[6]) == {1, 9}


@pytest.mark.parametrize("profile", ["exact", "paper"])
def test_an_object_added_during_a_pass_waits_for_the_next(
    demo_predictor: Any, runs: Runs, profile: str
) -> None:
    """The pass under way goes on as if it were not there, like stock's, which counts its objects once."""
    fast = accelerate(demo_predictor, profile)
    expected = runs(demo_predictor, profile=profile)
    state, found = fast.init_state(runs.source), {}
    PROMPTS["mask"][0].give(fast, state)
    for frame, ids, logits in fast.propagate_in_video(state, 0, 5):
        assert ids == [1]
        found[frame] = logits.clone()
        if frame == 3:
            Prompt(3, 9, points=((110, 80),)).give(fast, state)
    assert list(found) == list(range(6))
    assert all(torch.equal(found[f], expected.logits[f]) for f in found)
    reasons = [item.reason for item in fast.report(state).frames]
    assert reasons == [item.reason for item in expected.report.frames[:6]]
    after = run(fast, state, start_frame_idx=3, max_frame_num_to_track=1)
    assert all(len(logits) == 2 for logits in after.values())


def test_masks_in_memory_do_not_compete(own_demo: Any, long_folder: str) -> None:
    """Stock encodes one object at a time, so that its constraint on masks in memory does nothing."""
    own_demo.non_overlap_masks_for_mem_enc = True
    prompts = (Prompt(0, 1, make_mask(0)), Prompt(0, 2, make_mask(3)))
    runs = [track(p, long_folder, prompts, 4) for p in (own_demo, accelerate(own_demo, "exact"))]
    assert off_by(runs[1].logits[3], runs[0].logits[3]) <= 1e-3
    assert off_by(runs[0].logits[3].flip(0), runs[0].logits[3]) > 1e-2


def test_several_objects_share_windows_and_features(fast: Any, runs: Runs) -> None:
    """Item 22: all objects of a pass see the features of the one image; the windows are the union's."""
    state = runs(fast.stock, "three objects").resumed()
    windows = tuple(range(window_grid(fast).count // 2))
    fast.choose_windows(state, lambda frame: windows)
    step(fast, state, FULL)  # chooses tokens
    together = step(fast, state, FULL)
    fast.non_overlap_masks_for_mem_enc = True  # which they are tracked one by one for
    assert off_by(together, step(fast, state, FULL)) <= 1e-4
    fast.non_overlap_masks_for_mem_enc = False
    assert last(fast, state).windows == list(windows)
    fast.choose_windows(state, None)
    assert off_by(step(fast, state, FULL), together) > 1e-3


@pytest.mark.parametrize("kept", [False, True], ids=["exact", "kept tokens"])
def test_more_objects_than_a_pass_holds_give_the_masks_of_one_by_one(
    demo_predictor: Any, kept: bool
) -> None:
    """18 objects: a pass of 16 and one of 2. Where windows are routed, those of all objects are computed for each."""
    few = Profile(name="few", exact=True, retrieval=Retrieval(keep=0.2))
    fast = accelerate(demo_predictor, few if kept else "exact")
    count = MOST_OBJECTS + 2
    boxes = [(5 + 3 * i, 5 + 2 * i, 60 + 3 * i, 40 + 2 * i) for i in range(count)]
    prompts = tuple(Prompt(0, i, box=box) for i, box in enumerate(boxes, 1))
    together = track(fast, make_frames(5), prompts, 5).logits[4]
    for i in (0, MOST_OBJECTS - 1, count - 1):
        alone = track(fast, make_frames(5), (Prompt(0, 1, box=boxes[i]),), 5).logits[4]
        assert off_by(together[i : i + 1], alone) <= 1e-3
        other = i - 1 if i else 1
        assert off_by(together[other : other + 1], alone) > 1e-2


class Operations(TorchDispatchMode):
    """Counts what is handed to the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def test_objects_whose_memory_is_alike_are_read_in_one_call(
    demo_predictor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted the GPU's way: fused attention, public products."""
    monkeypatch.setattr(attention, "WORTH_TIMING", 2**62)
    monkeypatch.setattr(linear, "onednn_linear", lambda dtype: False)
    few = Profile(name="few", exact=True, retrieval=Retrieval(keep=0.2))
    boxes = [(5 + 20 * i, 5, 60 + 20 * i, 60) for i in range(4)]
    counted: dict[tuple[int, int], int] = {}

    def counting(*given: Any) -> Any:
        with Operations() as operations:
            found = recall(*given)
        counted[len(given[1].objects), given[1].index] = operations.count
        return found

    monkeypatch.setattr(predictor, "recall", counting)
    fast = accelerate(demo_predictor, few)
    for objects in (1, 4):
        prompts = tuple(Prompt(0, i, box=box) for i, box in enumerate(boxes[:objects], 1))
        track(fast, make_frames(6), prompts, 6)
    assert counted[4, 5] <= 1.15 * counted[1, 5]
    later = (Prompt(0, 1, box=boxes[0]), Prompt(2, 2, box=boxes[1]))
    track(fast, make_frames(6), later, 6)
    assert counted[2, 5] > 1.3 * counted[1, 5], "memories that differ in kind are read one by one"


@pytest.mark.parametrize("objects", [1, 2])
def test_positions_of_ones_own_are_read_where_others_share_theirs(
    fast: Any, long_folder: str, objects: int
) -> None:
    """sam2 makes the positions of memory tokens once for all results; a client may give one of them others."""
    prompts = tuple(Prompt(0, i + 1, part_of_mask(i)) for i in range(objects))
    run = track(fast, long_folder, prompts, 4)

    def again(factor: float | None) -> torch.Tensor:
        """The next frame, where the newest result's positions of the last object are other ones."""
        state = run.resumed()
        result = state["output_dict_per_obj"][objects - 1]["non_cond_frame_outputs"][3]
        if factor is not None:
            result["maskmem_pos_enc"] = [place * factor for place in result["maskmem_pos_enc"]]
        return step(fast, state, 4)

    shared, own, other = again(None), again(1.0), again(-1.0)
    assert torch.equal(own, shared)
    assert not torch.equal(other[-1], shared[-1]), "they are read"
    assert torch.equal(other[:-1], shared[:-1]), "of this object alone"
