"""A camera: sam2 has no streams, so the client writes the inference state itself and appends frames as they come."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from sam2.utils.misc import load_video_frames
from torch import Tensor

from tests.clients.conftest import FRAMES, HEIGHT, SIDE, WIDTH, Answers, Plays, mask

KEPT = 2
"""Results that the client keeps of each object, besides prompts: fewer than the model would read."""


def camera(clip: str, otherwise: bool) -> list[Tensor]:
    """Frames as the model takes them, ``[3, S, S]``; `otherwise` the picture is mirrored after two of them."""
    images, _, _ = load_video_frames(clip, SIDE, offload_video_to_cpu=True, compute_device="cpu")
    return [
        picture.flip(-1) if otherwise and t >= 2 else picture for t, picture in enumerate(images)
    ]


def written(images: Any) -> dict[str, Any]:
    """An inference state of one frame, with every entry that sam2's methods read."""
    state: dict[str, Any] = {"images": images, "num_frames": 1}
    state.update(offload_video_to_cpu=False, offload_state_to_cpu=False)
    state.update(video_height=HEIGHT, video_width=WIDTH)
    state.update(device=torch.device("cpu"), storage_device=torch.device("cpu"))
    state.update(obj_id_to_idx=OrderedDict(), obj_idx_to_id=OrderedDict(), obj_ids=[])
    for name in (
        "point_inputs_per_obj", "mask_inputs_per_obj", "cached_features", "constants", "output_dict_per_obj",
        "temp_output_dict_per_obj", "frames_tracked_per_obj",
    ):  # fmt: skip
        state[name] = {}
    return state


def forget(state: dict[str, Any], frame: int, kept: int = KEPT) -> None:
    """Delete results that are older than the client wants to pay for."""
    for outputs in state["output_dict_per_obj"].values():
        for old in [t for t in outputs["non_cond_frame_outputs"] if t <= frame - kept]:
            del outputs["non_cond_frame_outputs"][old]


def appended(predictor: Any, clip: str, otherwise: bool = False, kept: int = KEPT) -> Answers:
    """Every frame is appended with ``torch.cat``; a second object is added midway."""
    first, *others = camera(clip, otherwise)
    state, said = written(first[None]), {}
    predictor.add_new_mask(state, 0, 1, mask("upper"))
    for frame in range(FRAMES):
        if frame:
            state["images"] = torch.cat([state["images"], others[frame - 1][None]])
            state["num_frames"] += 1
            state["cached_features"] = {}
        if frame == 2:
            predictor.add_new_mask(state, frame, 2, mask("lower", frame))
        for index, ids, logits in predictor.propagate_in_video(state, frame, 0):
            said[f"frame {index}, objects {list(ids)}"] = logits.clone()
        forget(state, frame, kept)
        outputs = state["output_dict_per_obj"].values()
        assert all(len(own["non_cond_frame_outputs"]) <= kept for own in outputs)
    return said


def one_at_a_time(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """No frame but the latest is kept at all, and it is tracked by the client's own step."""
    pictures = camera(clip, otherwise)
    state, said = written({0: pictures[0]}), {}
    predictor.add_new_mask(state, 0, 1, mask("upper"))
    predictor.propagate_in_video_preflight(state)
    outputs = state["output_dict_per_obj"][0]
    for frame in range(1, FRAMES):
        state["images"], state["num_frames"] = {frame: pictures[frame]}, frame + 1
        state["cached_features"].clear()
        with torch.inference_mode():
            out, low = predictor._run_single_frame_inference(
                inference_state=state, output_dict=outputs, frame_idx=frame, batch_size=1,
                is_init_cond_frame=False, point_inputs=None, mask_inputs=None, reverse=False,
                run_mem_encoder=True,
            )  # fmt: skip
            outputs["non_cond_frame_outputs"][frame] = out
            _, logits = predictor._get_orig_video_res_output(state, low)
        said[f"frame {frame}"] = logits.clone()
        forget(state, frame)
    return said


def test_frames_are_appended_and_results_deleted(plays: Plays, profile: str) -> None:
    plays.check(appended, profile)


def test_no_frame_is_kept(plays: Plays, profile: str) -> None:
    plays.check(one_at_a_time, profile)


def test_what_is_deleted_would_have_been_read(plays: Plays, profile: str) -> None:
    """A client that deletes nothing gets other logits, from the frame on that would have read what is gone."""
    found, longer = plays(appended, profile), plays(appended, profile, kept=FRAMES)
    equal = [torch.equal(found[name], longer[name]) for name in found]
    assert equal == [True] * (FRAMES - 1) + [False]
