"""Run a predictor over a video: begin it, prompt it, track it forward and back while a collector listens."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sam2 import sam2_video_predictor
from tqdm import tqdm

from probes.collector import Collector
from probes.errors import InputError, tell_left_out
from probes.observing import listen, observe
from probes.prompts import Prompt, check_prompts, digest_of_prompts, read_prompts
from probes.transformers_model import TransformersPredictor
from probes.video import EndOfVideo, ModelFrames, VideoSource, new_state

Prompts = (
    Mapping[int, NDArray[Any]] | Callable[[Any, dict[str, Any]], Any] | Sequence[Any] | str | Path
)
"""Masks bool ``[H, W]`` of frame 0 by object id; what `probes.prompts.read_prompts` reads, its list or file; or a function
of predictor and state that gives prompts."""


@dataclass(frozen=True)
class Tracked:
    """What a run was of: hashes of the video's tracked frames and of the prompts, and the objects' ids."""

    video: str
    prompt: str
    objects: tuple[int, ...]


def is_accelerated(predictor: Any) -> bool:
    """Whether a predictor is one of ours, which listens to its parts through a seam of its own."""
    return "seam" in predictor.__dict__


def check_stock(predictor: Any) -> None:
    """Refuse an accelerated predictor.

    Raises
    ------
    InputError
        It is one.
    """
    if is_accelerated(predictor):
        raise InputError(
            "an accelerated predictor was given; ablation starts from a dense run; pass the stock predictor that it was "
            "made from"
        )


def tracked_object(
    predictor: Any, state: dict[str, Any], frame: int, object_id: int
) -> tuple[dict[str, Any], bool]:
    """An object's results, and whether it was tracked backwards there or comes next so, of a stock predictor.

    Raises
    ------
    InputError
        The predictor is accelerated, or the object is unknown or prompted on the frame.
    """
    check_stock(predictor)
    index = state["obj_id_to_idx"].get(object_id)
    known = None if index is None else state["output_dict_per_obj"][index]
    if known is None or frame in known["cond_frame_outputs"] or not known["cond_frame_outputs"]:
        raise InputError(
            f"object {object_id} on frame {frame} was given; expected an object that was tracked, on a frame "
            f"without a prompt; the video has objects {list(state['obj_ids'])}; choose another"
        )
    tracked = state["frames_tracked_per_obj"][index]
    return known, tracked.get(frame, tracked.get(frame + 1, {"reverse": False}))["reverse"]


def begin_video(predictor: Any, source: VideoSource) -> dict[str, Any]:
    """Begin a video like the predictor's ``init_state``, with frames decoded when they are needed; corrections will stay."""
    device = predictor.device
    frames = ModelFrames(source, predictor.image_size, device)
    size = source.height, source.width
    if isinstance(predictor, TransformersPredictor):
        return predictor.begin(frames, frames.num_frames, size)
    state = new_state(frames, frames.num_frames, size, device, device, frames_on_cpu=False)
    if is_accelerated(predictor):
        predictor.session(state).corrections = "keep"
    return state


def begin_kept(predictor: Any, source: VideoSource) -> dict[str, Any]:
    """Begin a video on any predictor, stock or accelerated, so that what is corrected stays."""
    if is_accelerated(predictor):
        state: dict[str, Any] = predictor.init_state(source, corrections="keep")
        return state
    return begin_video(predictor, source)


class Waiting(Protocol):
    """What is given to a video's state when tracking comes to its frame, such as a `probes.prompts.Prompt`."""

    @property
    def frame(self) -> int: ...

    @property
    def object(self) -> int: ...

    @property
    def remove(self) -> bool: ...

    def give_to(self, predictor: Any, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class _Begun:
    """A video that is begun: its state, what is given in it later, the first prompted frame, and a hash of the prompts."""

    state: dict[str, Any]
    waiting: Sequence[Waiting]
    start: int
    digest: str


def _begin_prompted(predictor: Any, source: VideoSource, prompts: Prompts) -> _Begun:
    """Begin a video and take its prompts.

    Raises
    ------
    InputError
        There are none, or one doesn't fit the video.
    """
    state = begin_video(predictor, source)
    if not callable(prompts):
        listed = prompts_of(prompts, source)
        return _Begun(state, listed, listed[0].frame, digest_of_prompts(listed))
    prompts(predictor, state)
    given = [o["cond_frame_outputs"] for o in state["temp_output_dict_per_obj"].values()]
    starts = [min(frames) for frames in given if frames]
    if not starts:
        raise InputError(
            "no prompts were given; expected a mask, points or a box for one object at least; add one"
        )
    digest = _digest_of_prompted(state)
    return _Begun(state, _hold_back(predictor, state, min(starts)), min(starts), digest)


def prompts_of(
    prompts: Mapping[int, NDArray[Any]] | Sequence[Any] | str | Path, source: VideoSource
) -> tuple[Prompt, ...]:
    """Return prompts that say by themselves what they are, held against their video.

    Raises
    ------
    InputError
        There are none, or one doesn't fit the video.
    """
    if isinstance(prompts, Mapping):
        masks = [Prompt(0, i, mask=np.asarray(mask) > 0) for i, mask in prompts.items()]
        return check_prompts(masks, source)
    return read_prompts(prompts, source)


@dataclass(frozen=True)
class _Held:
    """An object's inputs on a frame as they lie in sam2's state, at the model's size."""

    frame: int
    object: int
    kind: str
    given: Any
    remove: bool = False

    def give_to(self, predictor: Any, state: dict[str, Any]) -> None:
        """Add them to a video's state."""
        if self.kind == "mask_inputs_per_obj":
            predictor.add_new_mask(state, self.frame, self.object, self.given[0, 0])
            return
        points = self.given["point_coords"][0] / predictor.image_size
        predictor.add_new_points_or_box(
            state, self.frame, self.object, points, self.given["point_labels"][0], normalize_coords=False
        )  # fmt: skip


def _hold_back(predictor: Any, state: dict[str, Any], start: int) -> list[Waiting]:
    """Take objects out of a state whose first prompt comes after a frame, to be given when tracking gets there.

    Stock sam2 would track them before their prompt: in float32 it can't, as it has no pointer of them then.
    """
    later: list[Waiting] = []
    for index, object_id in state["obj_idx_to_id"].items():
        first = min(state["temp_output_dict_per_obj"][index]["cond_frame_outputs"], default=start)
        if first > start:
            for kind in ("point_inputs_per_obj", "mask_inputs_per_obj"):
                for frame, given in state[kind][index].items():
                    later.append(_Held(frame, object_id, kind, given))
    for object_id in {held.object for held in later}:
        predictor.remove_object(state, object_id, need_output=False)
    return sorted(later, key=lambda held: held.frame)


# ---------------------------------------------------------------------- from frame to frame

OnFrame = tuple[int, list[int], Any]
"""A frame's index, the ids of the objects that are tracked there, and their logits ``[objects, 1, H, W]``; None of none."""


def track_forward(
    predictor: Any,
    state: dict[str, Any],
    prompts: Iterable[Waiting],
    start: int,
    last: int | None = None,
) -> Iterator[OnFrame]:
    """Track forward from a frame, and give prompts when tracking comes to theirs.

    A prompt of an object that is tracked already corrects what was tracked on its frame, and stays: the frame is
    conditioning from then on. Frames before it are left as they are.

    Parameters
    ----------
    predictor
        Stock, or accelerated with a state whose corrections are kept.
    prompts
        By frame, ascending; those before `start` are in the state already.
    start, last
        First and last frame; None: to the end of the video.
    """
    at = start
    for frame, group in groupby(prompts, key=lambda prompt: prompt.frame):
        given = list(group)
        if frame < start or (last is not None and frame > last):
            continue
        corrects = any(p.object in state["obj_ids"] and not p.remove for p in given)
        for found in _tracked(predictor, state, at, frame if corrects else frame - 1):
            if found[0] < frame:
                yield found
        with _corrections_stay(predictor):
            for prompt in given:
                prompt.give_to(predictor, state)
        at = frame
    yield from _tracked(predictor, state, at, last)


def track_back(
    predictor: Any, state: dict[str, Any], prompts: Iterable[Waiting], first: int, frames: range
) -> Iterator[OnFrame]:
    """Track objects of the first prompted frame back from it.

    Parameters
    ----------
    prompts
        Of the video; those of an object that comes later take it out of the state.
    first
        The first prompted frame.
    frames
        Descending; the one after is done.
    """
    starts: dict[int, Waiting] = {}
    for prompt in prompts:
        starts.setdefault(prompt.object, prompt)
    for object_id, prompt in starts.items():
        if prompt.frame > first and object_id in state["obj_ids"]:
            predictor.remove_object(state, object_id, need_output=False)
        elif prompt.frame == first and object_id not in state["obj_ids"]:
            prompt.give_to(predictor, state)  # it was removed on a later frame
    # sam2 tracks nothing back from frame 0, and from a prompt it goes on without tracking it
    start = frames[0] if 0 < frames[0] < first - 1 else frames[0] + 1
    going_back = predictor.propagate_in_video(state, start, start - frames[-1], True)
    for found in without_bar(going_back):
        if found[0] in frames:
            yield found


def _tracked(
    predictor: Any, state: dict[str, Any], start: int, last: int | None
) -> Iterator[OnFrame]:
    """Track from frame to frame what is in the state."""
    if last is not None and last < start:
        return
    if state["obj_ids"]:
        limit = None if last is None else last - start
        yield from without_bar(predictor.propagate_in_video(state, start, limit))
        return
    frame, end = start, state["num_frames"] - 1 if last is None else last
    while frame <= end:
        state["images"][frame]  # a stream says so where it ended
        yield frame, [], None
        frame += 1


AFrame = TypeVar("AFrame")


def without_bar(frames: Iterator[AFrame]) -> Iterator[AFrame]:
    """Yield what ``propagate_in_video`` does, without the bar that sam2 shows and has no setting for."""
    with _bar.hidden():  # it would begin with the first frame
        found = next(frames, None)
    while found is not None:
        yield found
        found = next(frames, None)


class _Bar:
    """Stands in for sam2's bar while a loop begins that is to have none; those of other threads have theirs."""

    def __init__(self) -> None:
        self.own: Any = None
        self.here = threading.local()
        self.lock, self.beginning = threading.Lock(), 0

    def __call__(self, *given: Any, **options: Any) -> Any:
        hides = getattr(self.here, "hides", False)
        return self.own(*given, **options, **({"disable": True} if hides else {}))

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Hide what begins in this thread; sam2 is as it was when all threads are through."""
        with self.lock:
            self.beginning += 1
            if self.beginning == 1:
                self.own, sam2_video_predictor.tqdm = sam2_video_predictor.tqdm, self
        self.here.hides = True
        try:
            yield
        finally:
            self.here.hides = False
            with self.lock:
                self.beginning -= 1
                if not self.beginning:
                    sam2_video_predictor.tqdm = self.own


_bar = _Bar()


@contextmanager
def _corrections_stay(predictor: Any) -> Iterator[None]:
    """Have stock sam2 make a tracked frame that is prompted now a conditioning one."""
    if is_accelerated(predictor):  # its states say so
        yield
        return
    before = predictor.add_all_frames_to_correct_as_cond
    predictor.add_all_frames_to_correct_as_cond = True
    try:
        yield
    finally:
        predictor.add_all_frames_to_correct_as_cond = before


def _track(
    predictor: Any, source: VideoSource, begun: _Begun, max_frames: int | None
) -> Iterator[tuple[int, bool, list[int]]]:
    """Track forward from the first prompt and then, unless the video is a stream, back from it.

    Yields
    ------
    tuple
        Each frame on which there are objects once, when its results are in the state, whether it was reached going
        back, and the objects.
    """
    state, waiting, start, done = begun.state, begun.waiting, begun.start, 0
    last = None if max_frames is None else start + max_frames - 1
    stream = source.num_frames is None  # at its end it has a number
    with suppress(EndOfVideo):  # a stream says where it ends when it does
        for frame, ids, _ in track_forward(predictor, state, waiting, start, last):
            done += 1
            if ids:
                yield frame, False, ids
    left = start if max_frames is None else min(start, max_frames - done)
    if left > 0 and not stream:
        back = range(start - 1, start - 1 - left, -1)
        for frame, ids, _ in track_back(predictor, state, waiting, start, back):
            yield frame, True, ids


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
    """Run the model over a clip while a collector listens; see `track`."""
    precision = torch.autocast(predictor.device.type, torch.bfloat16) if autocast else nullcontext()
    pixels = hashlib.sha256()
    bar = tqdm(total=max_frames or source.num_frames, desc=clip, unit="frame", disable=not progress)
    with (
        torch.inference_mode(),
        precision,
        bar,
        observe(predictor, collector.add, "*"),
        listen(predictor, decoded=collector.note_heads),
    ):
        begun = _begin_prompted(predictor, source, prompts)
        objects: dict[int, None] = {}
        for frame, reverse, ids in _track(predictor, source, begun, max_frames):
            collector.finish_frame(begun.state, frame, reverse)
            pixels.update(source.frame(frame).tobytes())
            objects.update(dict.fromkeys(ids))
            bar.update()
    if missing := sorted({str(p.object) for p in begun.waiting if p.object not in objects}):
        note = f"{clip}: objects {', '.join(missing)} come after the last frame that is tracked, left out"
        tell_left_out([note], strict=False)
    return Tracked(pixels.hexdigest(), begun.digest, tuple(objects))


# ---------------------------------------------------------------------- which clip it was


def hash_of_frames(source: VideoSource, frames: Sequence[int]) -> str | None:
    """Hash frames in the order in which they were tracked, as `track_and_collect` does; None where one is missing."""
    pixels = hashlib.sha256()
    try:
        for frame in frames:
            pixels.update(source.frame(frame).tobytes())
    except EndOfVideo:
        return None
    return pixels.hexdigest()


def digest_of(predictor: Any, source: VideoSource, prompts: Prompts) -> str:
    """Hash prompts as `track_and_collect` does, by giving them where they don't say what they are."""
    if not callable(prompts):
        return digest_of_prompts(prompts_of(prompts, source))
    with torch.inference_mode():
        return _begin_prompted(predictor, source, prompts).digest


def _digest_of_prompted(state: dict[str, Any]) -> str:
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
