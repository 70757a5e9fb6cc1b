"""Run the stock predictor over a video while a collector listens."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from probes.collector import Collector
from probes.errors import InputError
from probes.observing import observe
from probes.prompts import Prompts, digest_of_prompted, digest_of_prompts, give_prompts
from probes.video import EndOfVideo, ModelFrames, VideoSource


@dataclass(frozen=True)
class Tracked:
    """What a run was of: hashes of the video's tracked frames and of the prompts, and the objects' ids."""

    video: str
    prompt: str
    objects: tuple[int, ...]


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
) -> Tracked:
    """Run the model, forward from the first prompt and then, unless the video is a stream, back."""
    precision = torch.autocast(predictor.device.type, torch.bfloat16) if autocast else nullcontext()
    pixels = hashlib.sha256()
    done: set[int] = set()
    stream = source.num_frames is None
    bar = tqdm(total=max_frames or source.num_frames, desc=clip, unit="frame", disable=not progress)
    with torch.inference_mode(), precision, collector.listening(), bar:
        with observe(predictor, collector.add, "*"), _noting(predictor, collector):
            state = begin_video(predictor, source)
            start = give_prompts(prompts, predictor, source, state)
            for reverse in (False, True):
                if reverse and (stream or start == 0):
                    continue
                # going back begins on a frame that is done
                left = None if max_frames is None else max_frames - len(done)
                limit = left if left is None or reverse else left - 1
                if limit is not None and limit < (1 if reverse else 0):
                    continue
                with suppress(EndOfVideo):  # a stream says where it ends when it does
                    for frame, _, _ in predictor.propagate_in_video(state, start, limit, reverse):
                        if frame in done:
                            continue
                        collector.finish_frame(state, frame, reverse)
                        pixels.update(source.frame(frame).tobytes())
                        done.add(frame)
                        bar.update()
    prompt = digest_of_prompts(prompts) or digest_of_prompted(state)
    return Tracked(pixels.hexdigest(), prompt, tuple(state["obj_ids"]))


def digest_of(predictor: Any, source: VideoSource, prompts: Prompts) -> str:
    """Hash prompts as `track_and_collect` does, by giving them where they don't say what they are."""
    found = digest_of_prompts(prompts)
    if found is None:
        state = begin_video(predictor, source)
        with torch.inference_mode():
            give_prompts(prompts, predictor, source, state)
        found = digest_of_prompted(state)
    return found


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
