"""Videos: how one is begun; and several at once, a frame of each in turn, those computed whole encoded in one batch."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from probes.errors import InputError
from probes.video import EndOfVideo, ModelFrames, new_state, open_video
from sparsity.acceleration.camera import Tracker
from sparsity.acceleration.encode import encode_together
from sparsity.acceleration.report import Report
from sparsity.acceleration.session import (
    LAST_REPORTED,
    Corrections,
    History,
    Session,
    alone,
    check_kept,
    check_size,
)
from sparsity.acceleration.sharing import Shared
from sparsity.techniques import KEY

Tracked = tuple[int, int, list[int], Tensor]
"""Of which video, frame, object ids, mask logits ``[objects, 1, H, W]``."""


class Begun(Shared):
    """A predictor that begins videos, in sam2's states with an entry of ours."""

    @torch.inference_mode()
    def init_state(
        self,
        video_path: Any,
        offload_video_to_cpu: bool = False,
        offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False,
        *,
        history: History = "full",
        corrections: Corrections = "stock",
        eager: bool = False,
    ) -> dict[str, Any]:
        """Begin a video.

        Parameters
        ----------
        video_path
            Whatever `probes.video.open_video` opens: a folder of frames, a video file, an array
            ``[T, H, W, 3]``, or an iterator of frames.
        offload_video_to_cpu
            Keep decoded frames in main memory.
        offload_state_to_cpu
            Keep results there, as in sam2.
        async_loading_frames
            Accepted for sam2's sake; frames are always decoded when they are needed.
        history
            ``"full"`` keeps every result, as stock does; ``"bounded"`` drops those that no future frame
            reads, so that memory stays flat however long the video is, but for a line a frame in the report, of
            which a stream keeps the latest 10,000.
        corrections
            ``"stock"``: a correction of a tracked frame is tracked over when one propagates on, as in sam2. ``"keep"``: a
            corrected frame is conditioning, so it stays and other frames follow it; frames that read none of it, or
            nothing else that changed, are given out as they are and not computed again.
        eager
            Decode all frames now, as stock does: for a source that may change or go away meanwhile.

        Raises
        ------
        InputError
            The video can't be opened, or `history` or `corrections` is none of these.
        """
        check_kept(history, corrections)
        source = open_video(video_path)
        place = torch.device("cpu") if offload_video_to_cpu else self.device
        frames = ModelFrames(source, self.image_size, place)
        images = frames.whole() if eager else frames
        count = len(images) if eager else frames.num_frames
        storage = torch.device("cpu") if offload_state_to_cpu else self.device
        size = source.height, source.width
        state = new_state(images, count, size, self.device, storage, offload_video_to_cpu)
        return self._begun(state, history, corrections)

    @torch.inference_mode()
    def new_state(
        self,
        images: Tensor,
        size: tuple[int, int],
        *,
        history: History = "full",
        corrections: Corrections = "stock",
    ) -> dict[str, Any]:
        """Begin a video of pictures that one already has.

        Parameters
        ----------
        images
            As the model takes them, normalised, float ``[T, 3, S, S]``. More may be put into ``state["images"]`` later
            (set ``state["num_frames"]`` too).
        size
            Height and width of the video in pixels: masks are given out so.
        history, corrections
            As `init_state` takes them.

        Raises
        ------
        InputError
            The pictures are of another shape, `size` is no such pair, or `history` or `corrections` is none of these.
        """
        check_kept(history, corrections)
        check_size(size)
        side = self.image_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side) or not len(images):
            raise InputError(
                f"pictures of shape {list(images.shape)} given; expected [T, 3, {side}, {side}], at least one; resize and "
                "normalise them as the model takes them"
            )
        at = images.device
        state = new_state(images, len(images), size, self.device, self.device, at != self.device)
        return self._begun(state, history, corrections)

    def _begun(
        self, state: dict[str, Any], history: History, corrections: Corrections
    ) -> dict[str, Any]:
        """Enter how a new state is kept, and warm up on its first frame as stock does."""
        endless = history == "bounded" and state["num_frames"] == sys.maxsize
        state[KEY] = Session(
            Report(**self.parts.here.used.reported),
            history,
            corrections,
            last_reported=LAST_REPORTED if endless else None,
        )
        if not self.parts.here.gathers:
            self._get_image_feature(state, frame_idx=0, batch_size=1)
        return state


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
    if isinstance(states, dict):
        raise InputError("one state given; expected a list of them, a video each; write [state]")
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
