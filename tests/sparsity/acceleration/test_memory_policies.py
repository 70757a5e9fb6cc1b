"""Memory that keeps chosen frames, on the real model: what is read, what is kept of a video, and what goes with it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sam2.utils.amg import calculate_stability_score

from probes import build_predictor, observe
from probes.errors import InputError
from sparsity import accelerate
from sparsity.clips.made import Clip, make_clip
from sparsity.profile import BUILTIN, Profile, parse_profile
from sparsity.techniques.memory_policy import MemoryPolicy
from tests.sparsity.acceleration.conftest import run

FRAMES = 20
KINDS = ("quality", "distractor", "spread")
SETTINGS = {
    "quality": {"iou_above": 0.6},
    "distractor": {"anchor_box_below": 1.0, "anchor_iou_above": 0.0, "anchor_gap": 2},
    "spread": {"recent": 1},
}
"""Settings by which the demo model at 128 pixels keeps other frames than the newest."""

Logits = dict[int, torch.Tensor]


def with_policy(kind: str, base: str = "exact") -> Profile:
    policy = MemoryPolicy(kind=kind, **SETTINGS.get(kind, {}))
    return BUILTIN[base].model_copy(update={"memory_policy": policy})


@pytest.fixture(scope="module")
def fast() -> Any:
    return accelerate(build_predictor("demo", device="cpu", image_size=128), "exact")


@pytest.fixture(scope="module")
def clip() -> Clip:
    """Two objects that leave and come back."""
    return make_clip("leave_and_return", 1, FRAMES, (96, 128), objects=2)


def begun(fast: Any, clip: Clip, first: int = 0, **options: Any) -> dict[str, Any]:
    """A video whose objects are prompted on a frame."""
    state: dict[str, Any] = fast.init_state(clip.frames, **options)
    for i in (1, 2):
        fast.add_new_mask(state, first, i, clip.masks[0] == i)
    return state


def tracked(fast: Any, clip: Clip, profile: Profile, **options: Any) -> tuple[Logits, Any]:
    with fast.use(profile):
        state = begun(fast, clip, **options)
        return run(fast, state), state


def equal(one: Logits, other: Logits) -> bool:
    assert list(one) == list(other)
    return all(torch.equal(one[t], other[t]) for t in one)


def read(fast: Any, state: dict[str, Any], frame: int, object_id: int) -> list[int]:
    """Frames that an object's memory held on a frame, when it was tracked last."""
    reports = [one for one in fast.report(state).frames if one.frame == frame]
    found: list[int] = reports[-1].objects[object_id].memory_frames
    return found


@pytest.fixture(scope="module")
def full(fast: Any, clip: Clip) -> dict[str, tuple[Logits, Any]]:
    return {kind: tracked(fast, clip, with_policy(kind)) for kind in ("recent", *KINDS)}


def test_recent_is_stock(fast: Any, clip: Clip, full: Any) -> None:
    plain, state = tracked(fast, clip, BUILTIN["exact"])
    assert equal(plain, full["recent"][0])
    assert read(fast, state, 12, 1) == [0, *range(6, 12)]
    notes = full["recent"][1]["output_dict_per_obj"][0]["non_cond_frame_outputs"][12]["efficient"]
    assert "memory_policy" not in notes


@pytest.mark.parametrize("kind", KINDS)
def test_each_policy_reads_other_frames_and_as_many(fast: Any, kind: str, full: Any) -> None:
    (logits, state), (recent, other) = full[kind], full["recent"]
    assert equal({t: logits[t] for t in range(7)}, {t: recent[t] for t in range(7)})
    assert not equal(logits, recent)
    for t in range(1, FRAMES):
        for i in (1, 2):
            mine, stocks = read(fast, state, t, i), read(fast, other, t, i)
            assert len(mine) == len(stocks) and mine[-1] == stocks[-1] == t - 1
    assert any(read(fast, state, t, 1) != read(fast, state, t, 2) for t in range(FRAMES)[8:])


@pytest.mark.parametrize(
    ("kind", "base"), [*((kind, "exact") for kind in KINDS), ("spread", "recommended")]
)
def test_bounded_history_gives_the_same_masks(
    fast: Any, clip: Clip, full: Any, kind: str, base: str
) -> None:
    profile = with_policy(kind, base)
    expected, whole = full[kind] if base == "exact" else tracked(fast, clip, profile)
    found, state = tracked(fast, clip, profile, history="bounded")
    assert equal(found, expected)
    sizes = [len(s["output_dict_per_obj"][0]["non_cond_frame_outputs"]) for s in (state, whole)]
    assert sizes[0] <= 16 + 6 and sizes[1] == FRAMES - 1
    assert set(state["frames_tracked_per_obj"][0]) >= set(
        state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
    )


def test_what_a_policy_keeps_is_not_dropped(fast: Any, clip: Clip) -> None:
    looped = np.concatenate([clip.frames, clip.frames[::-1]])
    profile = with_policy("spread")
    with fast.use(profile):
        state = fast.init_state(looped, history="bounded")
        fast.add_new_mask(state, 0, 1, clip.masks[0] == 1)
        run(fast, state)
    held = state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
    oldest = min(held)
    assert oldest < len(looped) - 1 - 16 and oldest in read(fast, state, len(looped) - 1, 1)
    assert len(held) <= 16 + 7


@pytest.mark.parametrize("kind", KINDS)
def test_batched_objects_are_what_they_are_alone(
    fast: Any, clip: Clip, kind: str, full: Any
) -> None:
    logits, both = full[kind]
    with fast.use(with_policy(kind)):
        state = fast.init_state(clip.frames)
        fast.add_new_mask(state, 0, 2, clip.masks[0] == 2)
        alone = run(fast, state)
    last = FRAMES - 1
    assert read(fast, state, last, 2) == read(fast, both, last, 2)
    assert torch.allclose(alone[last][0], logits[last][1], atol=1e-3)
    assert not torch.allclose(alone[last][0], logits[last][0], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_goes_on_as_if_nothing_had_been(
    fast: Any, clip: Clip, kind: str, full: Any
) -> None:
    expected, _ = full[kind]
    with fast.use(with_policy(kind)):
        state = begun(fast, clip)
        run(fast, state, max_frame_num_to_track=12)
        again = pickle.loads(pickle.dumps(state))
        found = run(fast, again, start_frame_idx=13)
        assert equal(found, {t: expected[t] for t in range(13, FRAMES)})
        forgot = copy.deepcopy(state)
        for own in forgot["output_dict_per_obj"].values():
            for out in own["non_cond_frame_outputs"].values():
                del out["efficient"]["memory_policy"]
        assert not equal(run(fast, forgot, start_frame_idx=13), found)


def test_reverse_reads_what_was_kept_on_the_way(fast: Any, clip: Clip) -> None:
    last = FRAMES - 1
    with fast.use(with_policy("spread")):
        state = fast.init_state(clip.frames)
        fast.add_new_mask(state, last, 1, clip.masks[0] == 1)
        backward = run(fast, state, reverse=True)
        assert list(backward) == list(range(last, -1, -1))
        frames = read(fast, state, 0, 1)
        assert frames[0] == last and frames[-1] == 1 and frames[1:] != list(range(6, 0, -1))
        assert frames[1:] == sorted(frames[1:], reverse=True)
        run(fast, state, start_frame_idx=4)
        assert read(fast, state, 4, 1) == [last, *range(4)], "what lies behind, as by stock's rule"


def test_a_corrected_frame_changes_what_follows_and_nothing_else(fast: Any, clip: Clip) -> None:
    found, kind = {}, "quality"
    for corrections in ("keep", "computed anew"):
        with fast.use(with_policy(kind)):
            state = fast.init_state(clip.frames, corrections="keep")
            fast.add_new_mask(state, 0, 1, clip.masks[0] == 1)
            before = run(fast, state)
            fast.add_new_mask(state, 9, 1, clip.masks[0] == 2)
            if corrections != "keep":
                for out in state["output_dict_per_obj"][0]["non_cond_frame_outputs"].values():
                    out["efficient"].pop("from", None)
            found[corrections] = run(fast, state, start_frame_idx=0)
    assert equal(found["keep"], found["computed anew"])
    reasons = [one.reason for one in fast.report(state).frames]
    assert "unchanged" not in reasons and not equal(before, found["keep"])


@pytest.mark.parametrize("base", ["exact", "recommended"])
def test_those_who_watch_are_told_which_frames_were_read(fast: Any, clip: Clip, base: str) -> None:
    told: dict[tuple[int, Any], list[int]] = {}

    def note(call: Any) -> None:
        for i, layout in zip(call.moment.objects, call.moment.layouts, strict=True):
            told[call.moment.frame, i] = [entry.frame for entry in layout.frames]
            assert call.keys is not None or call.k.shape[2] == layout.keys

    plain, _ = tracked(fast, clip, with_policy("spread", base))
    with observe(fast, note, "memory.layer0.cross"):
        watched, state = tracked(fast, clip, with_policy("spread", base))
    assert equal(plain, watched)
    assert told == {(t, i): read(fast, state, t, i) for t in range(1, FRAMES) for i in (1, 2)}
    assert told[FRAMES - 1, 1] != [0, *range(FRAMES - 7, FRAMES - 1)]


def test_a_profile_says_what_it_chooses_by_and_what_that_needs() -> None:
    text = with_policy("spread").to_json()
    assert parse_profile(text).memory_policy == with_policy("spread").memory_policy
    for wrong, said in (
        (text.replace('"spread"', '"newest"'), "memory_policy.kind is 'newest'"),
        (text.replace('"exact": true', '"exact": false'), "needs exact or retrieval"),
    ):
        with pytest.raises(InputError, match=said):
            parse_profile(wrong)
    assert all(profile.memory_policy.kind == "recent" for profile in BUILTIN.values())


def test_a_memory_attention_of_ones_own_is_refused(clip: Clip) -> None:
    stock = build_predictor("demo", device="cpu", image_size=128)
    fast = accelerate(stock, with_policy("quality"))
    state = begun(fast, clip)
    stock.memory_attention.layers[0].cross_attn_image.q_proj.register_forward_hook(
        lambda module, given, made: made * 1.5
    )
    with pytest.raises(InputError, match="memory_policy 'quality' .* isn't sam2's own"):
        run(fast, state)
    with fast.use("exact"):
        assert len(run(fast, begun(fast, clip))) == FRAMES


STABLE = 0.9
"""So that candidates are taken by stability on some frames and not on others."""


def stable_masks(base: str = "exact") -> Profile:
    policy = MemoryPolicy(stable_below=STABLE)
    return BUILTIN[base].model_copy(update={"memory_policy": policy})


@pytest.fixture
def shaky(clip: Clip) -> Any:
    """Stock sam2 whose decoder is made to prefer stable masks by SAM's own score."""

    def prefer(module: Any, given: Any, made: tuple[torch.Tensor, ...]) -> Any:
        masks, ious, *others = made
        if masks.shape[1] == 1:
            return made
        score = calculate_stability_score(masks, 0.0, 1.0).nan_to_num(1.0)
        for b, best in enumerate(ious.argmax(1)):
            if score[b, best] < STABLE:
                ious = ious.index_copy(0, torch.tensor([b]), score[b : b + 1])
        return masks, ious, *others

    stock = build_predictor("demo", device="cpu", image_size=128)
    stock.sam_mask_decoder.register_forward_hook(prefer)
    state = accelerate(stock, "dense").init_state(clip.frames)
    for i in (1, 2):
        stock.add_new_mask(state, 0, i, clip.masks[0] == i)
    return run(stock, state)


def test_stable_masks_are_given_out_and_remembered(
    fast: Any, clip: Clip, full: Any, shaky: Logits
) -> None:
    found, state = tracked(fast, clip, stable_masks())
    for t, logits in shaky.items():
        assert torch.allclose(found[t], logits, atol=2e-2)
    assert not all(torch.allclose(full["recent"][0][t], shaky[t], atol=2e-2) for t in shaky)
    said = [one.objects[i] for one in fast.report(state).frames for i in (1, 2) if one.frame]
    assert all(one.iou == one.ious[one.taken] for one in said)
    others = [one for one in said if one.iou != max(one.ious)]
    assert 0 < len(others) < len(said)
    plain = fast.report(full["recent"][1]).frames[-1].objects[1]
    assert plain.taken is None and plain.iou == max(plain.ious)


@pytest.mark.parametrize("base", ["recommended", "exact"])
def test_stable_masks_with_other_techniques(fast: Any, clip: Clip, base: str) -> None:
    profile = stable_masks(base)
    masks, _ = tracked(fast, clip, profile)
    bounded, _ = tracked(fast, clip, profile, history="bounded")
    assert equal(masks, bounded) and not equal(masks, tracked(fast, clip, BUILTIN[base])[0])
    policy = profile.memory_policy.model_copy(update={"kind": "spread", "recent": 1})
    with_both, _ = tracked(fast, clip, profile.model_copy(update={"memory_policy": policy}))
    assert not equal(masks, with_both)


@pytest.mark.parametrize(
    ("setting", "value"), [("multimask_output_for_tracking", False), ("multimask_min_pt_num", 1)]
)
def test_a_single_mask_leaves_nothing_to_choose(
    fast: Any, clip: Clip, monkeypatch: pytest.MonkeyPatch, setting: str, value: int
) -> None:
    monkeypatch.setattr(fast, setting, value)
    refused = pytest.raises(
        InputError, match="memory_policy.stable_below 0.9, but .* a single mask"
    )
    with refused, fast.use(stable_masks()):
        pass  # before a frame is tracked, so that nothing of a run is written
    assert len(tracked(fast, clip, BUILTIN["exact"])[0]) == FRAMES
