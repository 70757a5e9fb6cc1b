"""Tracking and correcting in a notebook."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import traitlets

from figures.page import Answer, AnsweringWidget, joined, line_of
from figures.picker import Picking, entries_of, runs, script, style, title_of

if TYPE_CHECKING:  # they need torch
    from probes.correcting import Correcting, MasksByFrame
    from probes.prompts import Prompt

BETWEEN_PICTURES = 0.1
"""Seconds between two pictures that are sent without being asked for, at least."""


class Tracker(AnsweringWidget):
    """The widget; its `run` tells it what is tracked, and it tells the browser.

    A frame's picture and masks are sent with it while tracking is slow enough; else the browser asks for them.
    """

    _esm = script("tracker/tracker.js")
    _css = "\n".join((style(), joined("tracker/tracker.css")))
    meta = traitlets.Dict().tag(sync=True)

    def __init__(self, picking: Picking, run: Correcting, meta: dict[str, Any]) -> None:
        self._picking, self._run = picking, run
        self._telling = threading.Lock()
        self._pictured = 0.0
        super().__init__(
            {
                "begin": lambda _: (self._begun(), []),
                "frame": lambda index: ({}, [picking.frame(index)]),
                "masks": lambda frame: ({"runs": self._runs(frame)}, []),
                "give": self._given,
                "stop": lambda _: self._do(self._run.stop),
                "go": lambda _: self._do(self._run.go_on),
            },
            meta={**picking.meta, **meta},
        )
        run.tell = self._tell

    # ------------------------------------------------------------------ in Python

    @property
    def masks(self) -> MasksByFrame:
        """Masks bool ``[H, W]`` by object id, by frame, of all frames that are tracked with these prompts so far."""
        from probes.correcting import MasksByFrame

        return MasksByFrame(self._run.frames)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """What was pointed at, by frame: what `probes.record`, `figures.explore` and `sparsity.run_segment` take."""
        return self._run.prompts

    @property
    def report(self) -> Any:
        """An accelerated predictor's `Report` so far: windows, keys, reasons and scores, each frame's as it was tracked last.

        Raises
        ------
        InputError
            The predictor is stock, and has none.
        """
        return self._run.report()

    def give(self, prompts: Any) -> None:
        """Track with other prompts from now on, as `track` takes them; an empty list for none.

        Raises
        ------
        InputError
            One doesn't fit the video or the others; all stays as it was.
        """
        self._run.give(prompts)
        self.send({"kind": "prompts", "entries": entries_of(self._run.prompts)})

    def stop(self) -> None:
        """Stop after the frame under way, and return when it is done. `go_on`, `wait` and a correction go on."""
        self._run.stop()

    def go_on(self) -> None:
        """Track on in the background."""
        self._run.go_on()

    def wait(self) -> None:
        """Go on where it was stopped, and return when all frames are tracked.

        Clicks arrive when the kernel is idle, so not before it returns.

        Raises
        ------
        InputError
            There are no prompts.
        Exception
            What went wrong in the thread.
        """
        self._run.wait()

    def save(self, path: str | Path) -> None:
        """Write the prompts as JSON, which ``efficient-sam2 segment --prompts`` takes; whole or not at all.

        Raises
        ------
        InputError
            There are none.
        """
        self._picking.save(entries_of(self.prompts), path)

    def close(self) -> None:
        """Stop, and take the widget off the page."""
        self._run.stop()
        super().close()

    # ------------------------------------------------------------------ the browser

    def _do(self, act: Any) -> Answer:
        act()
        return {}, []

    def _given(self, entries: Any) -> Answer:
        self._run.give(self._picking.prompts(entries) if entries else [])
        return {}, []

    def _runs(self, frame: int) -> dict[int, list[int]]:
        """Masks of a frame as run lengths by object; none where it is to be tracked anew."""
        found = self._run.frames.get(frame)
        return {} if found is None else {i: runs(mask) for i, mask in found.masks().items()}

    def _begun(self) -> dict[str, Any]:
        """All there is, for a view that begins."""
        with self._telling:
            facts = [self._facts(frame, found) for frame, found in self._run.frames.items()]
            return {**self._state(), "entries": entries_of(self.prompts), "frames": facts}

    def _state(self) -> dict[str, Any]:
        error = self._run.error
        return {
            "phase": self._run.phase,
            "error": None if error is None else line_of(error),
            "rate": round(self._run.frames_per_second, 1),
        }

    def _tell(self, what: str, frame: int) -> None:
        """Tell the browser what happened; in the thread that tracks."""
        with self._telling:
            if what == "phase":
                self.send({"kind": "phase", **self._state()})
                return
            frames = self._run.frames
            if what == "back":
                self.send({"kind": "back", "kept": sorted(frames), **self._state()})
                return
            found = frames.get(frame)
            if found is None:  # prompts have changed meanwhile
                return
            told = {"kind": "tracked", **self._facts(frame, found), **self._state()}
            now = time.monotonic()
            if now - self._pictured < BETWEEN_PICTURES:
                self.send(told)
                return
            self._pictured = now
            self.send({**told, "runs": self._runs(frame)}, buffers=[self._picking.frame(frame)])

    def _facts(self, frame: int, found: Any) -> dict[str, Any]:
        """What is known of a tracked frame but its masks, plain JSON."""
        facts = {"frame": frame, "scores": found.scores}
        if (report := found.report) is not None:
            facts |= {
                "reason": report.reason,
                "windows": report.windows,
                "total": report.windows_total,
                "side": math.isqrt(report.windows_total),
                "trimmed": report.trimmed_to,
            }
        return facts


def track(predictor: Any, video: Any, prompts: Any = None) -> Tracker:
    """Track a video in the background, look on, and correct objects where they go wrong.

    Tracking begins at once, forward from the first prompt and then back from it, in a thread of its own: the kernel is
    free. A click on a frame corrects the object that is chosen, and tracking goes on from there. The masks are those
    that ``efficient-sam2 segment`` gives with the same prompts.

    Parameters
    ----------
    predictor
        Stock or accelerated. It runs with the profile and the number format (``torch.autocast``) that are in force here.
        Before others listen to it, as `probes.record` does, stop the session.
    video
        Anything `probes.open_video` takes whose end is known.
    prompts
        As `probes.record` takes them, but for a function: a list, a file of them, or masks of frame 0 by object id. None:
        the first click begins.

    Returns
    -------
    Tracker
        Its `masks`, `prompts` and `report` are of what is tracked so far; `wait`, `stop` and `go_on`; `save` writes the
        prompts.

    Raises
    ------
    InputError
        The video can't be opened, or is a stream, or a prompt doesn't fit it.
    """
    from probes import open_video
    from probes.correcting import Correcting

    source = open_video(video)
    run = Correcting(predictor, source, prompts)
    grid = predictor.parts.grid if run.has_report else None
    meta = {"fps": source.fps, "window": None if grid is None else grid.window / grid.tokens}
    session = Tracker(Picking(source, title_of(video)), run, meta)
    if session.prompts:
        session.go_on()
    return session
