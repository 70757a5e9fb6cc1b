"""Several videos at once: a frame of each in turn, those that are computed whole encoded in one batch."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from probes.errors import InputError
from probes.video import EndOfVideo
from sparsity.acceleration.camera import Tracker
from sparsity.acceleration.encode import encode_together
from sparsity.acceleration.session import alone

Tracked = tuple[int, int, list[int], Tensor]
"""Of which video, frame, object ids, mask logits ``[objects, 1, H, W]``."""


class Video(Protocol):
    """A video on its way.

    Attributes
    ----------
    state
        sam2's; empty before it is begun.
    frames
        What comes of it, frame by frame.
    upcoming
        The frame that is tracked next, going forward and unprompted, which may be encoded beforehand; None of another one.
    """

    state: dict[str, Any]
    frames: Generator[Any]
    upcoming: int | None


AVideo = TypeVar("AVideo", bound=Video)


def in_turn(
    predictor: Tracker, videos: Iterable[AVideo], at_once: int
) -> Iterator[tuple[AVideo, Any, int]]:
    """Yield a frame of each of some videos in turn, and how many are under way; where one ends the next one is begun.

    Parameters
    ----------
    at_once
        How many are under way at most. Upcoming frames of several are encoded in one batch as far as they are whole.
    """
    waiting, under_way = iter(videos), list[AVideo]()
    try:
        while True:
            under_way += islice(waiting, at_once - len(under_way))
            if not under_way:
                return
            _encode_next(predictor, under_way)
            for video in list(under_way):
                found = next(video.frames, None)
                if found is None:
                    under_way.remove(video)
                else:
                    yield video, found, len(under_way)
    finally:
        for video in under_way:
            video.frames.close()


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
    videos = (_Prompted(predictor, n, state) for n, state in enumerate(states))
    return ((video.number, *found) for video, found, _ in in_turn(predictor, videos, len(states)))


class _Prompted:
    """A video from its first prompt to its end."""

    def __init__(self, predictor: Tracker, number: int, state: dict[str, Any]) -> None:
        self.number, self.state = number, state
        with alone(predictor.session(state)), torch.inference_mode():
            predictor.propagate_in_video_preflight(state)
        results = state["output_dict_per_obj"].values()
        self.prompted = [set(outputs["cond_frame_outputs"]) for outputs in results]
        self.upcoming = self._unless_prompted(min(min(frames) for frames in self.prompted))
        self.frames = self._tracked(predictor)

    def _tracked(self, predictor: Tracker) -> Generator[tuple[int, list[int], Tensor]]:
        for found in predictor.propagate_in_video(self.state):
            self.upcoming = self._unless_prompted(found[0] + 1)
            yield found

    def _unless_prompted(self, frame: int) -> int | None:
        """A frame that some object is tracked into."""
        return None if all(frame in frames for frames in self.prompted) else frame


@torch.inference_mode()
def _encode_next(predictor: Tracker, videos: Sequence[Video]) -> None:
    """Encode the upcoming frames of videos in one batch where they are computed whole."""
    if len(videos) < 2:
        return
    those = []
    for video in videos:
        state, index = video.state, video.upcoming
        if index is None or index >= state["num_frames"]:
            continue
        try:
            state["images"][index]
        except (EndOfVideo, InputError):  # which its own tracking will find
            continue
        those.append((predictor.session(state), state, index))
    encode_together(predictor.parts, those, predictor.forward_image)
