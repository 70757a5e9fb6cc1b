"""Run the stock predictor over a video while a collector listens."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from probes.collector import Collector
from probes.errors import InputError
from probes.observing import observe
from probes.video import EndOfVideo, ModelFrames, VideoSource

Prompts = Mapping[int, NDArray[Any]] | Callable[[Any, dict[str, Any]], Any]
"""Masks bool ``[H, W]`` of frame 0 by object id, or a function of predictor and state that gives prompts."""


def check_stock(predictor: Any) -> None:
    """Refuse an accelerated predictor.

    Raises
    ------
    InputError
        It is one.
    """
    if "_seam" in predictor.__dict__:
        raise InputError(
            "an accelerated predictor was given; recordings are of dense runs, and ablation starts from one; pass "
            "the stock predictor that it was made from"
        )


def begin_video(predictor: Any, source: VideoSource) -> dict[str, Any]:
    """Begin a video on the stock predictor like its ``init_state``, with frames decoded when they are needed."""
    device = predictor.device
    state: dict[str, Any] = {
        "images": ModelFrames(source, predictor.image_size, device),
        "num_frames": source.num_frames if source.num_frames is not None else sys.maxsize,
        "offload_video_to_cpu": False,
        "offload_state_to_cpu": False,
        "video_height": source.height,
        "video_width": source.width,
        "device": device,
        "storage_device": device,
        "obj_ids": [],
    }
    for key in ("obj_id_to_idx", "obj_idx_to_id", "point_inputs_per_obj", "mask_inputs_per_obj"):
        state[key] = {}
    for key in ("output_dict_per_obj", "temp_output_dict_per_obj", "frames_tracked_per_obj"):
        state[key] = {}
    state["cached_features"], state["constants"] = {}, {}
    return state


def track_and_collect(
    predictor: Any,
    source: VideoSource,
    prompts: Prompts,
    collector: Collector,
    max_frames: int | None,
    autocast: bool,
    progress: bool,
    clip: str,
) -> tuple[str, tuple[int, ...]]:
    """Run the model, forward from the first prompt and then back; return the video's hash and the objects."""
    precision = torch.autocast(predictor.device.type, torch.bfloat16) if autocast else nullcontext()
    pixels = hashlib.sha256()
    done: set[int] = set()
    bar = tqdm(total=max_frames or source.num_frames, desc=clip, unit="frame", disable=not progress)
    with torch.inference_mode(), precision, collector.listening(), bar:
        with observe(predictor, collector.add, "*"), _noting(predictor, collector):
            state = begin_video(predictor, source)
            _give(prompts, predictor, state)
            start = min(
                t
                for outputs in state["temp_output_dict_per_obj"].values()
                for t in outputs["cond_frame_outputs"]
            )
            for reverse in (False, True):
                if reverse and start == 0:
                    continue
                # going back begins on a frame that is done
                left = None if max_frames is None else max_frames - len(done)
                limit = left if left is None or reverse else left - 1
                if limit is not None and limit < (1 if reverse else 0):
                    continue
                for frame, _, _ in predictor.propagate_in_video(state, start, limit, reverse):
                    if frame in done:
                        continue
                    collector.finish_frame(state, frame, reverse)
                    pixels.update(source.frame(frame).tobytes())
                    done.add(frame)
                    bar.update()
    return pixels.hexdigest(), tuple(state["obj_ids"])


def hash_of_frames(source: VideoSource, frames: Sequence[int]) -> str | None:
    """Hash frames in the order in which they were tracked, as `track_and_collect` does; None where one is missing."""
    pixels = hashlib.sha256()
    try:
        for frame in frames:
            pixels.update(source.frame(frame).tobytes())
    except EndOfVideo:
        return None
    return pixels.hexdigest()


class _noting:
    """Tells the collector when a frame was encoded and when an object was tracked."""

    def __init__(self, predictor: Any, collector: Collector) -> None:
        self.predictor, self.collector = predictor, collector
        self.before = {
            name: predictor.__dict__.get(name)
            for name in ("_run_single_frame_inference", "_get_image_feature")
        }

    def __enter__(self) -> None:
        run, encode = self.before.values()
        collector = self.collector

        def track(*args: Any, **kwargs: Any) -> Any:
            state, results = kwargs["inference_state"], kwargs["output_dict"]
            found = run(*args, **kwargs)
            for index, known in state["output_dict_per_obj"].items():
                if known is results:
                    collector.note_object(kwargs["frame_idx"], state["obj_idx_to_id"][index])
            return found

        def features(inference_state: Any, frame_idx: int, batch_size: int) -> Any:
            found = encode(inference_state, frame_idx, batch_size)
            collector.note_features(frame_idx)
            return found

        self.predictor.__dict__.update(
            _run_single_frame_inference=track, _get_image_feature=features
        )

    def __exit__(self, *_: Any) -> None:
        self.predictor.__dict__.update(self.before)


def _give(prompts: Prompts, predictor: Any, state: dict[str, Any]) -> None:
    if callable(prompts):
        prompts(predictor, state)
        return
    for object_id, mask in prompts.items():
        predictor.add_new_mask(state, 0, object_id, np.asarray(mask, dtype=bool))
