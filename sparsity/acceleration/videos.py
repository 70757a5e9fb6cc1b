"""Several videos at once: a frame of each in turn, those that are computed whole encoded in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from probes.errors import InputError
from probes.video import EndOfVideo
from sparsity.acceleration.camera import Tracker
from sparsity.acceleration.encode import encode_together
from sparsity.acceleration.session import alone

Tracked = tuple[int, int, list[int], Tensor]
"""Of which video, frame, object ids, mask logits ``[objects, 1, H, W]``."""


def track_all(predictor: Tracker, states: Sequence[dict[str, Any]]) -> Iterator[Tracked]:
    """Track all objects of several videos; see `EfficientSAM2VideoPredictor.track_videos`."""
    if len({id(state) for state in states}) < len(states):
        raise InputError(
            f"{len(states)} states were given and one of them twice; expected a video each; give each once"
        )
    for n, state in enumerate(states):
        if not state["obj_ids"]:
            raise InputError(
                f"video {n + 1} of {len(states)} has no object; expected one at least; prompt one, or leave it out"
            )
    return _tracked(predictor, states)


def _tracked(predictor: Tracker, states: Sequence[dict[str, Any]]) -> Iterator[Tracked]:
    frames, last = {}, {}
    for n, state in enumerate(states):
        with alone(predictor.session(state)), torch.inference_mode():
            predictor.propagate_in_video_preflight(state)
        prompted = [o["cond_frame_outputs"] for o in state["output_dict_per_obj"].values()]
        frames[n] = predictor.propagate_in_video(state)
        last[n] = min(t for results in prompted for t in results) - 1
    while frames:
        _encode_next(predictor, [(states[n], last[n] + 1) for n in frames])
        for n in list(frames):
            found = next(frames[n], None)
            if found is None:
                del frames[n]
                continue
            last[n] = found[0]
            yield (n, *found)


@torch.inference_mode()
def _encode_next(predictor: Tracker, those: list[tuple[dict[str, Any], int]]) -> None:
    """Encode the next frames of videos in one batch where they are tracked and computed whole."""
    videos = []
    for state, index in those:
        results = state["output_dict_per_obj"].values()
        if index < state["num_frames"] and not all(
            index in o["cond_frame_outputs"] for o in results
        ):
            try:
                state["images"][index]
            except EndOfVideo:  # of a stream, which its own tracking will find
                continue
            videos.append((predictor.session(state), state, index))
    encode_together(predictor.parts, videos, predictor.forward_image)
