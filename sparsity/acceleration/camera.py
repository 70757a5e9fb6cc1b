"""A camera: frames are pushed as they come, objects are prompted at any time, and nothing is kept that memory doesn't need."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from probes.errors import InputError
from probes.frames import Pixels
from probes.prompts import Prompt, check_place
from sparsity.acceleration.encode import encode_together
from sparsity.acceleration.parts import Parts
from sparsity.acceleration.report import Report
from sparsity.acceleration.session import Session, check_size

Masks = dict[Hashable, Tensor]
"""By object id, bool ``[H, W]``."""


class Tracker(Protocol):
    """What a camera asks of the predictor that it belongs to."""

    def init_state(self, video_path: Any, **options: Any) -> dict[str, Any]:
        """Begin a video."""

    def track_into(self, inference_state: dict[str, Any], frame_idx: int) -> Tensor:
        """Track all objects into one frame."""

    def report(self, inference_state: dict[str, Any]) -> Report:
        """Say what was done."""

    def session(self, state: dict[str, Any]) -> Session:
        """What is kept of a video."""

    def forward_image(self, img_batch: Tensor) -> dict[str, Any]:
        """Encode pictures."""

    parts: Parts
    propagate_in_video_preflight: Callable[..., Any]
    propagate_in_video: Callable[..., Iterator[tuple[int, list[int], Tensor]]]
    add_new_mask: Callable[..., Any]
    add_new_points_or_box: Callable[..., Any]
    remove_object: Callable[..., Any]


class Camera:
    """Frames that are pushed one by one, and what is tracked in them.

    Made by `EfficientSAM2VideoPredictor.camera`. Several cameras may take turns on one predictor, be used in a thread
    each, or be given their frames together: `EfficientSAM2VideoPredictor.track_cameras`.

    Parameters
    ----------
    size
        Height and width of the frames, in pixels.
    options
        Of ``init_state``.

    Raises
    ------
    InputError
        `size` is no such pair.
    """

    def __init__(self, predictor: Tracker, size: tuple[int, int], **options: Any) -> None:
        check_size(size)
        self._predictor, self._options = predictor, options
        self.size = size
        self.frame = -1
        """Index of the frame that was pushed last."""
        self._pushed: deque[Pixels] = deque()
        self._waiting: list[Prompt] = []
        self._state: dict[str, Any] | None = None
        self._at_work = threading.RLock()

    @property
    def objects(self) -> list[Hashable]:
        """Ids of the objects that are tracked, those that wait for the first frame included."""
        waiting: list[Hashable] = list(dict.fromkeys(prompt.object for prompt in self._waiting))
        return waiting if self._state is None else list(self._state["obj_ids"])

    @torch.inference_mode()
    def prompt(
        self,
        object_id: Hashable,
        *,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Masks:
        """Say where an object is on the frame that was pushed last, or before the first one, on that.

        Parameters
        ----------
        object_id
            Of a new object, or of one that is tracked and corrected.
        points, labels
            ``[n, 2]`` (x, y) in pixels, and for each 1 on the object or 0 beside it; all on it unless said otherwise.
        box
            ``[4]``: left, top, right, bottom, in pixels.
        mask
            Bool ``[H, W]``, in place of points and box.

        Returns
        -------
        dict
            Masks of all objects on that frame, as `track` gives them; none before the first frame.

        Raises
        ------
        InputError
            Neither a mask nor points nor a box is given, or a mask beside others, or one of another size, or what is no points
            or box, is empty or lies outside the frames.
        """
        if (mask is None) == (points is None and box is None):
            raise InputError(
                f"a prompt of object {object_id} was given with {'nothing' if mask is None else 'a mask and more'}; expected "
                "a mask, or points, a box or both; give one of these"
            )
        name: Any = object_id
        given = Prompt(max(0, self.frame), name, points, labels, box, mask)
        check_place(given, *self.size)
        with self._alone():
            if self._state is None:
                self._waiting.append(given)
                return {}
            return self._give(self._state, given)

    def _give(self, state: dict[str, Any], given: Prompt) -> Masks:
        known = list(state["obj_ids"])
        try:
            _, ids, logits = given.give_to(self._predictor, state)
        except BaseException:
            if given.object not in known:  # it would be there without a prompt
                self._predictor.remove_object(state, given.object)
            raise
        return {i: logits[k, 0] > 0 for k, i in enumerate(ids)}

    @torch.inference_mode()
    def track(self, frame: Pixels) -> Masks:
        """Push a frame and track all objects into it.

        Parameters
        ----------
        frame
            RGB, uint8 ``[H, W, 3]``; copied, so the caller may use its buffer again.

        Returns
        -------
        dict
            Masks by object id, bool ``[H, W]``; empty where there is no object yet.

        Raises
        ------
        InputError
            The frame is of another size or kind, or another thread is at work on the camera.
        """
        picture = self._checked(frame)
        with self._alone():
            state = self._pushed_to(picture)
            return self._tracked(state)

    def _checked(self, frame: Pixels) -> Pixels:
        picture = np.array(frame)
        if picture.dtype != np.uint8 or picture.shape != (*self.size, 3):
            raise InputError(
                f"a frame {picture.dtype} {list(picture.shape)} was pushed; expected uint8 {[*self.size, 3]}, RGB; "
                "convert it"
            )
        return picture

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold that no other thread is at work on the camera; where its first frame fails, begin anew with the next one."""
        if not self._at_work.acquire(blocking=False):
            raise InputError(
                "this camera is in use in another thread; expected one thread at a time on a camera; wait for it"
            )
        try:
            yield
        except BaseException:
            if self._state is None or self._waiting:
                self._state, self.frame = None, -1
                self._pushed.clear()
            raise
        finally:
            self._at_work.release()

    def _pushed_to(self, picture: Pixels) -> dict[str, Any]:
        """Take a frame; the first one begins the video, whose state is returned."""
        self._pushed.append(picture)
        self.frame += 1
        if self._state is None:
            self._state = self._predictor.init_state(self._frames(), **self._options)
        return self._state

    def _tracked(self, state: dict[str, Any]) -> Masks:
        """Track all objects into the frame that was pushed last; the first one takes the prompts that wait for it."""
        if self.frame == 0:
            masks: Masks = {}
            for given in self._waiting:
                masks = self._give(state, given)
            self._waiting.clear()
            return masks
        if not state["obj_ids"]:
            state["images"][self.frame]
            return {}
        logits = self._predictor.track_into(state, self.frame)
        return {i: logits[k, 0] > 0 for k, i in enumerate(state["obj_ids"])}

    def _frames(self) -> Iterator[Pixels]:
        """What was pushed and not read yet."""
        while self._pushed:
            yield self._pushed.popleft()

    def forget(self, object_id: Hashable) -> None:
        """Track an object no longer.

        Raises
        ------
        InputError
            There is none of that id.
        """
        if object_id not in self.objects:
            raise InputError(
                f"object {object_id} was to be forgotten; tracked are {', '.join(map(str, self.objects)) or 'none'}; "
                "name one of these"
            )
        with self._alone():
            if self._state is None:
                self._waiting = [one for one in self._waiting if one.object != object_id]
            else:
                self._predictor.remove_object(self._state, object_id)

    def report(self) -> Report | None:
        """What was done so far, the latest 10,000 frames of it; None before the first frame."""
        return None if self._state is None else self._predictor.report(self._state)


@torch.inference_mode()
def track_together(predictor: Tracker, frames: Mapping[Camera, Pixels]) -> dict[Camera, Masks]:
    """Push a frame to each camera and track its objects; see `EfficientSAM2VideoPredictor.track_cameras`."""
    if not isinstance(frames, Mapping):
        raise InputError(
            f"a {type(frames).__name__} of frames given; expected a dict of one frame by camera, so that none is there "
            "twice; write {camera: frame}"
        )
    pictures = {}
    for nth, (camera, frame) in enumerate(frames.items(), 1):
        if not isinstance(camera, Camera) or camera._predictor is not predictor:
            what = type(camera).__name__ if not isinstance(camera, Camera) else "of another one"
            raise InputError(
                f"camera {nth} of {len(frames)} is {what}; expected cameras that this predictor's camera(size) made; "
                "give each predictor its own"
            )
        pictures[camera] = camera._checked(frame)
    with ExitStack() as held:
        for camera in pictures:
            held.enter_context(camera._alone())
        for camera in pictures:
            if camera._state is not None and camera.objects:
                predictor.propagate_in_video_preflight(camera._state)
        with predictor.parts.gathering():
            states = {camera: camera._pushed_to(picture) for camera, picture in pictures.items()}
        videos = [
            (predictor.session(state), state, camera.frame)
            for camera, state in states.items()
            if camera.objects or camera._waiting
        ]
        encode_together(predictor.parts, videos, predictor.forward_image)
        return {camera: camera._tracked(state) for camera, state in states.items()}
