"""Tracking in a thread of its own while a person looks on and corrects.

The masks of every frame are those of the prompts as they are now: where prompts change, tracking goes back to the first frame
that they change, and on from there. So they are the masks that a run gives which had all of the prompts from the start.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco

from probes.errors import InputError
from probes.prompts import Prompt, check_prompts
from probes.rewind import END, Past
from probes.tracking import (
    OnFrame,
    Prompts,
    begin_kept,
    is_accelerated,
    prompts_of,
    track_back,
    track_forward,
)
from probes.video import VideoSource

RATED = 10
"""Frames, the latest, whose mean time is the frame rate."""

Tell = Callable[[str, int], None]
"""Is told in the thread that tracks: ``("frame", t)``, that frame t is tracked; ``("back", t)``, that frame t and those that
come after it are to be tracked anew; ``("phase", 0)``, that it began, or ended, or failed."""


@dataclass(frozen=True)
class TrackedFrame:
    """What came of a frame.

    Attributes
    ----------
    codes
        Masks by object id, as COCO's compressed run-length codes.
    scores
        Object-score logits by object id; above 0 the object is present.
    report
        The accelerated predictor's `FrameReport`: windows and the reason of its routing; None of a stock one.
    """

    codes: dict[int, Any]
    scores: dict[int, float]
    report: Any = None

    def masks(self) -> dict[int, NDArray[np.bool_]]:
        """Masks by object id, bool ``[H, W]``."""
        return {i: coco.decode(code).astype(bool) for i, code in self.codes.items()}


class MasksByFrame(Mapping[int, dict[int, NDArray[np.bool_]]]):
    """Masks bool ``[H, W]`` by object id, by frame: kept as run-length codes, decoded when they are asked for."""

    def __init__(self, frames: dict[int, TrackedFrame]) -> None:
        self._frames = frames

    def __getitem__(self, frame: int) -> dict[int, NDArray[np.bool_]]:
        return self._frames[frame].masks()

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._frames))

    def __len__(self) -> int:
        return len(self._frames)


class Correcting:
    """A video that is tracked while its prompts change.

    A thread tracks forward from the first prompt to the end and then back from the first prompt, as
    `sparsity.run_segment` does. It runs in the number format (``torch.autocast``) and with the profile that are in force
    where this is made, and ends where there is nothing left to do.

    Parameters
    ----------
    predictor
        Stock, or accelerated: then `corrections` of its state are ``"keep"``.
    source
        The video; no stream.
    prompts
        As `probes.record` takes them, but for a function; None: there are none yet.

    Attributes
    ----------
    tell
        Is told what happens; see `Tell`.

    Raises
    ------
    InputError
        The video is a stream, or a prompt doesn't fit it.
    """

    def __init__(self, predictor: Any, source: VideoSource, prompts: Prompts | None = None) -> None:
        if source.num_frames is None:
            raise InputError(
                "a stream given to track and correct; expected a video one can go back in; record some of it and give the file"
            )
        if callable(prompts):
            raise InputError(
                "a function given as prompts; expected masks by object id, a list or a file; give the prompts themselves"
            )
        self._wanted = () if prompts is None else prompts_of(prompts, source)
        self._predictor, self._source = predictor, source
        self.tell: Tell = lambda what, frame: None
        self._kind = predictor.device.type
        self._autocast = (
            torch.get_autocast_dtype(self._kind) if torch.is_autocast_enabled(self._kind) else None
        )
        self._profile = predictor.profile if is_accelerated(predictor) else None
        with self._conditions():
            self._state = begin_kept(predictor, source)
        self._given: tuple[Prompt, ...] = ()
        self._past = Past()
        self._steps: Generator[OnFrame, None, None] | None = None
        self._at = -1
        """The frame to which was tracked forward."""
        self._frames: dict[int, TrackedFrame] = {}
        self._reports: dict[int, Any] = {}
        """Of frames as they were tracked last, also before tracking went back."""
        self._seconds: deque[float] = deque(maxlen=RATED)
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = self._broken = False
        self._error: Exception | None = None

    # ------------------------------------------------------------------ what there is

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """As they are now, by frame."""
        return self._wanted

    @property
    def frames(self) -> dict[int, TrackedFrame]:
        """What came of each frame that is tracked with these prompts, by frame."""
        with self._change:
            return dict(self._frames) if self._given is self._wanted else self._unchanged()

    @property
    def has_report(self) -> bool:
        """Whether the predictor is accelerated, and says which windows it computed and why."""
        return self._profile is not None

    @property
    def phase(self) -> str:
        """``tracking``, ``done``, ``stopped``, ``failed``, or ``waiting`` for a first prompt."""
        with self._change:
            if self._error is not None:
                return "failed"
            if self._thread is not None:
                return "tracking"
            if not self._wanted:
                return "waiting"
            return "stopped" if self._is_left() else "done"

    @property
    def error(self) -> Exception | None:
        """What went wrong in the thread, if something did."""
        return self._error

    @property
    def frames_per_second(self) -> float:
        """Of the latest frames; 0 before the first one."""
        seconds = list(self._seconds)
        return len(seconds) / sum(seconds) if seconds else 0.0

    def report(self) -> Any:
        """The accelerated predictor's `Report`, each frame's as it was tracked last.

        Raises
        ------
        InputError
            The predictor is stock.
        """
        if self._profile is None:
            raise InputError(
                "the report of a stock predictor's run was asked for; expected an accelerated one, which has windows and "
                "reasons; track with accelerate(predictor, 'dense')"
            )
        whole = copy(self._predictor.report(self._state))
        whole.frames = [frame.report for _, frame in sorted(self.frames.items()) if frame.report]
        return whole

    # ------------------------------------------------------------------ what one does

    def give(self, prompts: Any) -> None:
        """Track with other prompts from now on: a list of `Prompt`, or what else this class takes; an empty list for none.

        Raises
        ------
        InputError
            One doesn't fit the video or the others; all stays as it was.
        """
        empty = isinstance(prompts, (list, tuple)) and not prompts
        checked = () if empty else prompts_of(prompts, self._source)
        with self._change:
            self._wanted, self._error, self._stopped = checked, None, False
            self._begin()

    def go_on(self) -> None:
        """Track on where it was stopped, or anew where it failed."""
        with self._change:
            self._stopped, self._error = False, None
            self._begin()

    def stop(self) -> None:
        """Stop after the frame under way, and return when that is done."""
        with self._change:
            self._stopped = True
            self._change.wait_for(lambda: self._thread is None)

    def wait(self) -> None:
        """Go on where it was stopped, and return when all frames are tracked.

        Raises
        ------
        InputError
            There are no prompts.
        Exception
            What went wrong in the thread.
        """
        check_prompts(self._wanted, self._source)
        if self._error is None:
            self.go_on()
        with self._change:
            self._change.wait_for(lambda: self._thread is None)
        if self._error is not None:
            raise self._error

    # ------------------------------------------------------------------ the thread

    def _is_left(self) -> bool:
        """Whether something is left to do."""
        return self._broken or self._steps is not None or self._given is not self._wanted

    def _begin(self) -> None:
        """Begin a thread where there is none and something to do."""
        if self._thread is None and self._is_left():
            self._thread = threading.Thread(target=self._work, name="track", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """Track until nothing is left to do or it is to stop."""
        self.tell("phase", 0)
        try:
            with self._conditions():
                while self._may_go_on():
                    self._step()
        except Exception as error:  # whoever waits is told, and the person who looks on
            with self._change:
                # nobody knows how much of the step was done: the next one begins anew
                self._error, self._thread, self._broken = error, None, True
                self._change.notify_all()
        self.tell("phase", 0)

    def _may_go_on(self) -> bool:
        with self._change:
            if self._is_left() and not self._stopped:
                return True
            self._thread = None
            self._change.notify_all()
            return False

    def _step(self) -> None:
        """Take over changed prompts, and track one frame."""
        wanted = self._wanted
        if self._broken or self._given is not wanted:
            self._take_over(wanted)
        begun = time.perf_counter()
        found = None if self._steps is None else next(self._steps, None)
        if found is None:
            self._steps = None
            return
        frame, ids, logits = found
        self._at = max(self._at, frame)
        made = self._made(frame, ids, logits)
        with self._change:
            self._frames[frame] = made
            self._seconds.append(time.perf_counter() - begun)
        if self._given is self._wanted:  # else it is tracked anew at once
            self.tell("frame", frame)

    def _take_over(self, wanted: tuple[Prompt, ...]) -> None:
        """Go back to the first frame whose prompts changed."""
        start, first = _first_change(self._given, wanted), _first(self._given)
        if start == END and not self._broken:  # names alone changed
            self._given = wanted
            return
        if self._steps is not None:
            self._steps.close()
        keeps = first < start and not self._broken
        if not keeps:
            self._predictor.reset_state(self._state)
            self._past.forget()
            self._reports.clear()
            self._at, start, self._broken = -1, _first(wanted), False
        elif start <= self._at:
            self._past.go_back(self._state, first, start)
            self._at = start
        else:
            start = self._at + 1
        with self._change:
            self._frames = self._until(first, start) if keeps else {}
            self._given = wanted
            self._steps = self._steps_from(start, wanted) if wanted else None
        self.tell("back", start)

    def _until(self, first: int, frame: int) -> dict[int, TrackedFrame]:
        return {t: found for t, found in self._frames.items() if first <= t < frame}

    def _unchanged(self) -> dict[int, TrackedFrame]:
        """Frames of whose prompts none has changed since they were tracked."""
        return self._until(_first(self._given), _first_change(self._given, self._wanted))

    def _steps_from(
        self, start: int, prompts: tuple[Prompt, ...]
    ) -> Generator[OnFrame, None, None]:
        """Track forward from a frame to the end, and back from the first prompt."""
        first = _first(prompts)
        yield from track_forward(self._predictor, self._state, self._past.noting(prompts), start)
        self._past.note(self._state, END)
        if first > 0:
            back = range(first - 1, -1, -1)
            yield from track_back(self._predictor, self._state, prompts, first, back)

    def _made(self, frame: int, ids: list[int], logits: Any) -> TrackedFrame:
        """Bring a frame's masks to the host."""
        codes: dict[int, Any] = {}
        if ids:
            layers = (logits[:, 0] > 0).cpu().numpy().astype(np.uint8)
            codes = {i: coco.encode(np.asfortranarray(m)) for i, m in zip(ids, layers, strict=True)}
        scores = {i: self._score(i, frame) for i in ids}
        report = None
        if self._profile is not None:
            report = self._predictor.report(self._state).frames[-1] if ids else None
            if report is not None and report.reason == "unchanged":
                report = self._reports.get(frame, report)  # it says what was computed
            elif report is not None and report.reason != "prompt":
                self._reports[frame] = report
        return TrackedFrame(codes, scores, report)

    def _score(self, object_id: int, frame: int) -> float:
        results = self._state["output_dict_per_obj"][self._state["obj_id_to_idx"][object_id]]
        prompted = results["cond_frame_outputs"]
        found = prompted if frame in prompted else results["non_cond_frame_outputs"]
        return float(found[frame]["object_score_logits"].max())

    @contextmanager
    def _conditions(self) -> Iterator[None]:
        """Have the profile and number format in use, which belong to a thread."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self._autocast is not None:
                stack.enter_context(torch.autocast(self._kind, self._autocast))
            if self._profile is not None:
                stack.enter_context(self._predictor.use(self._profile, force=True))
            yield


def _first(prompts: tuple[Prompt, ...]) -> int:
    """The first prompted frame, or beyond the last one."""
    return prompts[0].frame if prompts else END


def _first_change(before: tuple[Prompt, ...], after: tuple[Prompt, ...]) -> int:
    """The first frame whose prompts differ, or beyond the last one."""
    old, new = ({(p.frame, p.digest()) for p in prompts} for prompts in (before, after))
    return min((frame for frame, _ in old ^ new), default=END)
