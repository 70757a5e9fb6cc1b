"""What to track: masks of the first frame, or a function that prompts by itself; given, checked and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.errors import InputError
from probes.video import VideoSource

Prompts = Mapping[int, NDArray[Any]] | Callable[[Any, dict[str, Any]], Any]
"""Masks bool ``[H, W]`` of frame 0 by object id, or a function of predictor and state that gives prompts."""


def give_prompts(
    prompts: Prompts, predictor: Any, source: VideoSource, state: dict[str, Any]
) -> int:
    """Give prompts to a video's fresh state, and return the first frame that has one.

    Raises
    ------
    InputError
        There are none, or a mask is of another size than the video.
    """
    if callable(prompts):
        prompts(predictor, state)
    else:
        for object_id, mask in prompts.items():
            if np.shape(mask) != (source.height, source.width):
                raise InputError(
                    f"the mask of object {object_id} is {list(np.shape(mask))}; expected [{source.height}, "
                    f"{source.width}], the size of the video; resize it"
                )
            predictor.add_new_mask(state, 0, object_id, np.asarray(mask) > 0)
    frames = [
        frame
        for outputs in state["temp_output_dict_per_obj"].values()
        for frame in outputs["cond_frame_outputs"]
    ]
    if not frames:
        raise InputError(
            "no prompts were given; expected a mask, points or a box for one object at least; add one"
        )
    return min(frames)


def digest_of_prompts(prompts: Prompts) -> str | None:
    """Hash prompts that say by themselves what they are; None for a function that doesn't."""
    if callable(prompts):
        owner: Any = getattr(prompts, "__self__", None)
        return str(owner.digest()) if hasattr(owner, "digest") else None
    found = hashlib.sha256()
    for object_id, mask in sorted(prompts.items()):
        bits = np.packbits(np.asarray(mask) > 0).tobytes()
        found.update(f"{object_id} {np.shape(mask)}".encode() + bits)
    return found.hexdigest()


def digest_of_prompted(state: dict[str, Any]) -> str:
    """Hash the points, boxes and masks that a video's state holds, by object and frame."""
    found = hashlib.sha256()
    for index, object_id in sorted(state["obj_idx_to_id"].items()):
        for kind in ("point_inputs_per_obj", "mask_inputs_per_obj"):
            for frame, given in sorted(state[kind][index].items()):
                parts = given.values() if isinstance(given, dict) else [given]
                for part in parts:
                    found.update(f"{object_id} {kind} {frame} {list(part.shape)}".encode())
                    found.update(part.cpu().numpy().tobytes())
    return found.hexdigest()
