"""sam2's inference state belongs to the client: filled, emptied, read, copied, made by hand."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from probes.errors import InputError
from probes.video import ModelFrames, open_video
from sparsity import accelerate
from sparsity.acceleration import predictor as predictors
from sparsity.techniques import KEY
from tests.sparsity.acceleration.conftest import (
    PROMPTS,
    make_frames,
    make_mask,
    off_by,
    part_of_mask,
    run,
    track,
)

SOME = 5

BOX = (7, 2, 71, 62)

PROFILES = ("dense", "exact", "recommended")


@pytest.fixture(params=PROFILES)
def fast(request: pytest.FixtureRequest, small_demo: Any) -> Any:
    return accelerate(small_demo, request.param)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of JPEG files, which stock takes too."""
    folder = tmp_path_factory.mktemp("state")
    for t, frame in enumerate(make_frames(8)):
        Image.fromarray(frame).save(folder / f"{t:05d}.jpg", quality=92)
    return str(folder)


def near(fast: Any, found: Tensor, expected: Tensor) -> bool:
    """Whether masks are stock's, as far as the profile promises."""
    if fast.profile.name == "dense":
        return torch.equal(found, expected)
    if fast.profile.name == "exact":
        return off_by(found, expected) <= 1e-4
    agreed = (found > 0) & (expected > 0)
    return float(agreed.sum() / ((found > 0) | (expected > 0)).sum()) > 0.9


def prompted(predictor: Any, clip: str) -> dict[str, Any]:
    """A video with a mask on its first frame, ready to be tracked."""
    state: dict[str, Any] = predictor.init_state(clip)
    predictor.add_new_mask(state, 0, 1, make_mask())
    predictor.propagate_in_video_preflight(state)
    return state


def into(predictor: Any, state: dict[str, Any], frame: int, nth: int = 0) -> Tensor:
    """A client's own step of one object into a frame."""
    outputs = state["output_dict_per_obj"][nth]
    out, masks = predictor._run_single_frame_inference(
        state, outputs, frame, 1, False, None, None, False, True
    )
    outputs["non_cond_frame_outputs"][frame] = out
    found: Tensor = masks.clone()
    return found


def picture(index: int) -> Tensor:
    """A picture of another clip as the model takes it, ``[3, S, S]``."""
    clip = np.ascontiguousarray(make_frames(SOME)[:, ::-1])
    return ModelFrames(open_video(clip), 128, "cpu")[index]


# ---------------------------------------------------------------------- sam2's one-frame cache


@torch.inference_mode()
def test_features_in_the_cache_can_be_read(small_demo: Any, fast: Any, clip: str) -> None:
    """All of them, also of a frame that was tracked densely; a routed one's are never there."""
    found = []
    for predictor in (small_demo, fast):
        state = prompted(predictor, clip)
        predictor._get_image_feature(state, 1, 1)
        (index, (image, output)), *others = state["cached_features"].items()
        assert (index, others) == (1, []) and image.shape == (1, 3, 128, 128)
        found.append(output)
    for kind in ("backbone_fpn", "vision_pos_enc"):
        for ours, theirs in zip(found[1][kind], found[0][kind], strict=True):
            assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-4)
    assert torch.allclose(found[1]["vision_features"], found[0]["vision_features"], atol=1e-4)
    run(fast, state)
    for index, (image, _) in state["cached_features"].items():
        assert torch.equal(image[0], state["images"][index])
        assert fast.report(state).frames[index].windows is None


@torch.inference_mode()
def test_features_that_a_client_put_there_are_used(small_demo: Any, fast: Any, clip: str) -> None:
    found = []
    for predictor in (small_demo, fast):
        state = prompted(predictor, clip)
        plain = into(predictor, copy.deepcopy(state), 1)
        image = picture(1)[None]
        state["cached_features"] = {1: (image, small_demo.forward_image(image))}
        found.append(into(predictor, state, 1))
        assert off_by(found[-1], plain) > 1e-3
    assert near(fast, found[1], found[0])
    state = prompted(fast, clip)
    image = state["images"][2][None]
    state["cached_features"] = {2: (image, fast.forward_image(image))}
    into(fast, state, 1)
    state["cached_features"] = {2: (image, fast.forward_image(image))}
    into(fast, state, 2)
    reasons = [frame.reason for frame in fast.report(state).frames]
    routes = fast.profile.routing is not None
    assert reasons == (["first tracked", "features given"] if routes else ["not routed"] * 2)


@torch.inference_mode()
def test_features_that_a_client_took_away_are_made_anew(
    small_demo: Any, fast: Any, clip: str
) -> None:
    """Another picture at the same index, again and again, as streaming clients do it."""
    found: list[list[Tensor]] = []
    for predictor in (small_demo, fast):
        state, masks = prompted(predictor, clip), []
        state["images"] = torch.stack([state["images"][0], state["images"][1]])
        for index in range(1, SOME):
            state["images"] = torch.cat([state["images"][:1], picture(index)[None]])
            state["cached_features"] = {}
            masks.append(into(predictor, state, 1))
        state["images"][1] = state["images"][0]
        state["cached_features"].clear()
        masks.append(into(predictor, state, 1))
        found.append(masks)
    for ours, theirs in zip(*found[::-1], strict=True):
        assert near(fast, ours, theirs)
    assert off_by(found[0][0], found[0][-1]) > 1e-3


@torch.inference_mode()
def test_a_profile_takes_no_features_of_another(small_demo: Any, clip: str) -> None:
    """After exact rewrites and routing, stock behaviour is stock's bit for bit; also on a copied state."""
    fast = accelerate(small_demo, "exact")
    state, expected = prompted(fast, clip), prompted(small_demo, clip)
    into(fast, state, 1)
    copied = copy.deepcopy(state)
    wanted = into(small_demo, expected, 1)
    for other in (state, copied):
        other["output_dict_per_obj"] = expected["output_dict_per_obj"]
        assert not torch.equal(into(fast, other, 1), wanted)
        with fast.use(None):
            assert torch.equal(into(fast, other, 1), wanted)


@pytest.mark.parametrize("how", ["reset", "last object removed"])
def test_what_a_reset_leaves_in_the_cache_is_not_taken_for_a_clients(
    small_demo: Any, clip: str, how: str
) -> None:
    fast = accelerate(small_demo, "exact")
    state = fast.init_state(clip)
    if how == "reset":
        fast.reset_state(state)
    else:
        fast.add_new_mask(state, 0, 1, make_mask())
        fast.remove_object(state, 1)
    assert list(state["cached_features"]) == [0]
    rounded = fast.add_new_points_or_box(copy.deepcopy(state), 0, 1, box=BOX)[2]
    with fast.use(None):
        found = fast.add_new_points_or_box(state, 0, 1, box=BOX)[2]
    expected = small_demo.add_new_points_or_box(small_demo.init_state(clip), 0, 1, box=BOX)[2]
    assert torch.equal(found, expected) and not torch.equal(rounded, expected)


@torch.inference_mode()
def test_a_frame_that_is_tracked_again_is_routed_as_the_profile_in_use_says(
    demo_predictor: Any, clip: str
) -> None:
    fast = accelerate(demo_predictor, "paper")
    state = track(fast, clip, PROMPTS["mask"], SOME).state
    routed = into(fast, copy.deepcopy(state), SOME)
    expected = into(demo_predictor, copy.deepcopy(state), SOME)
    into(fast, state, SOME)
    assert fast.report(state).frames[-1].windows is not None
    for profile, most in (("exact", 1e-4), (None, 0)):
        again = copy.deepcopy(state)
        with fast.use(profile):
            assert off_by(into(fast, again, SOME), expected) <= most
        assert fast.report(again).frames[-1].windows is None
    assert off_by(routed, expected) > 1e-3


# ---------------------------------------------------------------------- frames


def test_all_frames_can_be_decoded_at_once(small_demo: Any, fast: Any, tmp_path: Path) -> None:
    for t, frame in enumerate(make_frames(SOME)):
        Image.fromarray(frame).save(tmp_path / f"{t:05d}.jpg", quality=92)
    expected = track(small_demo, str(tmp_path), PROMPTS["mask"])
    state = fast.init_state(tmp_path, eager=True)
    assert torch.equal(state["images"], expected.state["images"])
    for file in tmp_path.iterdir():
        file.unlink()
    fast.add_new_mask(state, 0, 1, make_mask())
    found = run(fast, state)
    assert all(near(fast, found[f], expected.logits[f]) for f in range(SOME))
    stream = fast.init_state(iter(make_frames(SOME)), eager=True)
    assert stream["num_frames"] == SOME


def test_a_state_of_pictures_that_one_has(small_demo: Any, fast: Any) -> None:
    clip = make_frames(SOME)
    images = ModelFrames(open_video(clip), 128, "cpu").whole()
    state = fast.new_state(images, clip.shape[1:3])
    fast.add_new_mask(state, 0, 1, make_mask())
    expected = track(fast, clip, PROMPTS["mask"]).logits
    assert all(torch.equal(logits, expected[f]) for f, logits in run(fast, state).items())
    assert len(fast.report(state).frames) == SOME
    for wrong in (images[0], images[:, :1], images[:, :, 1:], images[:0]):
        with pytest.raises(InputError, match=r"expected \[T, 3, 128, 128\], at least one"):
            fast.new_state(wrong, (96, 128))
    with pytest.raises(InputError, match="history 'none' given"):
        fast.new_state(images, (96, 128), history="none")


def by_hand(predictor: Any, images: Tensor) -> dict[str, Any]:
    """A state as streaming clients write it."""
    names = (
        "point_inputs_per_obj", "mask_inputs_per_obj", "cached_features", "constants", "output_dict_per_obj",
        "temp_output_dict_per_obj", "frames_tracked_per_obj",
    )  # fmt: skip
    device = predictor.device
    return {
        "images": images, "num_frames": len(images), "offload_video_to_cpu": False, "offload_state_to_cpu": False,
        "video_height": 96, "video_width": 128, "device": device, "storage_device": device,
        "obj_id_to_idx": OrderedDict(), "obj_idx_to_id": OrderedDict(), "obj_ids": [],
        **{name: {} for name in names},
    }  # fmt: skip


def test_a_state_made_by_hand_is_tracked_and_has_a_bounded_report(
    small_demo: Any, fast: Any, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream whose frames are appended as they come."""
    monkeypatch.setattr(predictors, "LAST_REPORTED", 3)
    frames, found = ModelFrames(open_video(clip), 128, "cpu"), []
    for predictor in (small_demo, fast):
        state = by_hand(predictor, frames[:2])
        predictor.add_new_mask(state, 0, 1, make_mask())
        masks = run(predictor, state)
        for index in range(2, SOME):
            state["images"] = torch.cat([state["images"], frames[index : index + 1]])
            state["num_frames"] = index + 1
            masks |= run(predictor, state, start_frame_idx=index, max_frame_num_to_track=0)
        found.append(masks)
    assert all(near(fast, found[1][f], found[0][f]) for f in range(SOME))
    assert [item.frame for item in fast.report(state).frames] == [2, 3, 4]
    assert len(track(fast, clip, PROMPTS["mask"], SOME).report.frames) == SOME


# ---------------------------------------------------------------------- memory


@pytest.mark.parametrize("in_place", [False, True])
def test_memory_that_a_client_wrote_is_read(
    small_demo: Any, fast: Any, in_place: bool, clip: str
) -> None:
    """Of the prompt, whose projections are held, and of a frame whose tokens were chosen."""
    found: list[dict[int, Tensor]] = []
    for predictor in (small_demo, fast):
        state, masks = predictor.init_state(clip), {}
        predictor.add_new_mask(state, 0, 1, make_mask())
        for frame, _, logits in predictor.propagate_in_video(state):
            masks[frame] = logits.clone()
            if frame == 3:
                outputs = state["output_dict_per_obj"][0]
                for out in (outputs["cond_frame_outputs"][0], outputs["non_cond_frame_outputs"][1]):
                    features = out["maskmem_features"]
                    if in_place:
                        with torch.inference_mode():
                            features.zero_()
                    else:
                        out["maskmem_features"] = torch.zeros_like(features)
        found.append(masks)
    plain = track(small_demo, clip, PROMPTS["mask"]).logits
    assert off_by(found[0][4], plain[4]) > 1e-3
    if fast.profile.name != "recommended":
        assert all(near(fast, found[1][f], found[0][f]) for f in range(8))
    else:
        routed = track(fast, clip, PROMPTS["mask"]).logits
        assert off_by(found[1][4], routed[4]) > 1e-3


@pytest.mark.parametrize("what", ["nothing", "profile", "memory", "features", "picture", "objects"])
@torch.inference_mode()
def test_what_changes_between_two_objects_of_a_frame_is_read(
    demo_predictor: Any, clip: str, what: str
) -> None:
    """A client steps one object, changes something, and steps the next."""
    fast = accelerate(demo_predictor, "exact")
    state, profile = fast.init_state(clip), "exact"
    for i in range(3):
        fast.add_new_mask(state, 0, i + 1, part_of_mask(i))
    fast.propagate_in_video_preflight(state)
    other = state["images"][3].flip(-1)
    into(fast, state, 1, 0)
    unchanged = into(fast, copy.deepcopy(state), 1, 1)
    match what:
        case "profile":
            profile = "dense"
        case "memory":
            state["output_dict_per_obj"][1]["cond_frame_outputs"][0]["maskmem_features"].neg_()
        case "features":
            features = demo_predictor.forward_image(other[None])
            state["cached_features"] = {1: (other[None], features)}
        case "picture":
            state["images"][1] = other
            state["cached_features"].clear()
        case "objects":
            fast.remove_object(state, 2)
    plain = copy.deepcopy({key: value for key, value in state.items() if key != KEY})
    if what != "features":
        plain["cached_features"].clear()
    expected = into(demo_predictor, plain, 1, 1)
    with fast.use(profile):
        assert off_by(into(fast, state, 1, 1), expected) <= (0 if what == "profile" else 1e-4)
    changed = off_by(unchanged, expected)
    assert changed <= 1e-4 if what == "nothing" else changed > (0 if what == "profile" else 1e-3)


@torch.inference_mode()
def test_a_frame_that_was_both_prompted_and_tracked_has_two_pointers(
    small_demo: Any, clip: str
) -> None:
    """A client tracks an object into the frame of its prompt: later frames read either result where sam2 does."""
    state = prompted(small_demo, clip)
    plain = into(small_demo, copy.deepcopy(state), 2)
    state["images"] = torch.stack(list(state["images"])).flip(-1)
    state["cached_features"].clear()
    into(small_demo, state, 0)
    expected = into(small_demo, copy.deepcopy(state), 2)
    state["cached_features"].clear()
    assert off_by(into(accelerate(small_demo, "exact"), state, 2), expected) <= 1e-4
    assert off_by(plain, expected) > 1e-3


# ---------------------------------------------------------------------- clients that drive parts


@torch.inference_mode()
def test_a_client_that_drives_parts_gets_exact_rewrites(small_demo: Any, clip: str) -> None:
    """``forward_image`` and ``track_step``, without a state: same masks, fewer operations."""
    images = ModelFrames(open_video(clip), 128, "cpu")[:SOME]
    mask = torch.nn.functional.interpolate(
        torch.from_numpy(make_mask())[None, None].float(), (128, 128)
    ).round()
    found, reads = {}, {}
    for name in ("stock", "dense", "exact"):
        predictor = small_demo if name == "stock" else accelerate(small_demo, name)
        outputs: dict[str, Any] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        calls: list[int] = []
        attention = predictor.memory_attention.forward
        if name != "stock":
            made = predictor.parts.weights
        for t in range(SOME):
            given = predictor._prepare_backbone_features(predictor.forward_image(images[t : t + 1]))
            _, features, positions, sizes = given
            out = predictor.track_step(
                t, t == 0, features, positions, sizes, None, mask if t == 0 else None, outputs, SOME
            )
            outputs["cond_frame_outputs" if t == 0 else "non_cond_frame_outputs"][t] = out
        found[name] = torch.stack([
            out["pred_masks"] for kind in outputs.values() for out in kind.values()
        ])  # fmt: skip
        reads[name] = name != "stock" and {part for part, *_ in made._made}
        assert predictor.memory_attention.forward == attention and not calls
    assert torch.equal(found["dense"], found["stock"])
    assert not torch.equal(found["exact"], found["stock"])
    assert off_by(found["exact"], found["stock"]) <= 1e-4
    packed = {"Encoder of Linear", "SparseMemoryAttention of Linear"}
    assert packed <= reads["exact"] and not reads["dense"]


def test_a_clients_own_step_is_reported_as_such(small_demo: Any, clip: str) -> None:
    fast = accelerate(small_demo, "recommended")
    fast._run_single_frame_inference = MethodType(
        SAM2VideoPredictor._run_single_frame_inference, fast
    )
    tracked = track(fast, clip, PROMPTS["mask"], SOME)
    reasons = [frame.reason for frame in tracked.report.frames]
    assert reasons == ["prompt", *["tracked by the client's own code"] * (SOME - 1)]
    expected = track(small_demo, clip, PROMPTS["mask"], SOME).logits
    assert all(off_by(tracked.logits[f], expected[f]) <= 1e-4 for f in range(SOME))


# ---------------------------------------------------------------------- settings


def test_settings_are_kept_by_copies_and_by_accelerating_again(small_demo: Any) -> None:
    fast = accelerate(small_demo, "exact")
    fast.non_overlap_masks, fast.fill_hole_area, fast.num_maskmem = True, 3, 4
    others = (
        copy.copy(fast), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), accelerate(fast, "paper"),
    )  # fmt: skip
    for other in others:
        assert (other.non_overlap_masks, other.fill_hole_area, other.num_maskmem) == (True, 3, 4)
    assert others[-1].profile.name == "paper"
    assert small_demo.num_maskmem == 7 and accelerate(small_demo, "exact").num_maskmem == 7


def test_nothing_is_written_through_to_the_stock_predictor(small_demo: Any, clip: str) -> None:
    stock = copy.deepcopy(small_demo)
    before = track(stock, clip, PROMPTS["mask"], SOME).logits
    fast = accelerate(stock, "exact")
    fast.maskmem_tpos_enc = torch.nn.Parameter(fast.maskmem_tpos_enc[:4] * 2)
    fast.num_maskmem = 4
    fast.register_buffer("mine", torch.zeros(1))
    fast.register_forward_hook(lambda *args: None)
    fast.memory_encoder = torch.nn.Identity()
    assert "mine" not in dict(stock.named_buffers()) and not stock._forward_hooks
    after = track(stock, clip, PROMPTS["mask"], SOME).logits
    assert all(torch.equal(after[f], before[f]) for f in range(SOME))
