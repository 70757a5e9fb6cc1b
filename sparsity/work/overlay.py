"""The overlay of a run: frames with their objects drawn over them, encoded in parts while tracking goes on.

A part is a video of adjacent frames, whole or absent, so that a run which goes on draws what it lacks and no more; at the end
the parts are joined without being encoded anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from av.error import FFmpegError

from probes.files import whole
from probes.frames import Pixels
from probes.pictures import reason_of
from sparsity.clips.drawn import Ids
from sparsity.clips.masks import VideoWriter, draw_over, frames_in, join_videos

LONGEST = 120
"""Frames of a part."""

HELD = 2**27
"""Bytes of frames that are held at most until a part is encoded which tracking reaches from its end."""


def parts_of(path: Path) -> Path:
    """Return the folder in which parts of an overlay lie until it is finished."""
    return path.with_name(f"{path.stem}.parts")


class Overlay:
    """Frames drawn and encoded, in the order of tracking.

    Parameters
    ----------
    path
        Of the finished video; parts lie in a folder beside it until then.
    fps
        Of the video.

    Attributes
    ----------
    failed
        Why it can't be encoded, such as frames too wide for the format; nothing more is drawn then.
    """

    def __init__(self, path: Path, fps: float | None) -> None:
        self.path, self.fps = path, fps
        self.parts = parts_of(path)
        self.failed = ""
        self._open: VideoWriter | None = None
        self._closing = ExitStack()
        self._next = self._left = -1
        self._held: list[tuple[int, Pixels]] = []

    def covered(self) -> dict[int, Path]:
        """Return the parts that are whole, by their first frame, ascending."""
        return {int(file.stem): file for file in sorted(self.parts.glob("[0-9]*.mp4"))}

    def keep(self, frames: Iterable[int]) -> None:
        """Remove parts with others than these frames."""
        wanted = set(frames)
        for start, file in self.covered().items():
            if not wanted.issuperset(range(start, start + frames_in(file))):
                file.unlink()

    def add(self, frame: int, pixels: Pixels, ids: Ids, reverse: bool) -> None:
        """Draw and encode a frame uint8 ``[H, W, 3]`` with its objects ``[H, W]``."""
        if not self.failed:
            self._try(lambda: self._add(frame, draw_over(pixels, ids), reverse))

    def _add(self, frame: int, drawn: Pixels, reverse: bool) -> None:
        if reverse:
            if self._open is not None:
                self._close()
            self._held.append((frame, drawn))
            if len(self._held) == LONGEST or len(self._held) * drawn.nbytes >= HELD:
                self._close()
            return
        if self._open is None or frame != self._next or not self._left:
            self._close()
            self._begin(frame)
        assert self._open is not None, "begun above"
        self._open.add(drawn)
        self._next, self._left = frame + 1, self._left - 1

    def _begin(self, frame: int) -> None:
        self.parts.mkdir(exist_ok=True)
        part = self._closing.enter_context(whole(self.parts / f"{frame:08d}.mp4"))
        self._open = self._closing.enter_context(VideoWriter(part, self.fps))
        self._left = LONGEST

    def _close(self) -> None:
        """Make the part under way a whole one."""
        if self._held:
            held, self._held = self._held[::-1], []
            self._begin(held[0][0])
            assert self._open is not None, "begun above"
            for _, drawn in held:
                self._open.add(drawn)
        self._open = None
        self._closing.close()

    def close(self) -> None:
        """End the part under way, as when the run is interrupted."""
        self._try(self._close)

    def finish(self, frames: Iterable[int], draw: Callable[[int], tuple[Pixels, Ids]]) -> None:
        """Draw the frames that no part has, and join all.

        Parameters
        ----------
        frames
            Ascending.
        draw
            Gives a frame's pixels and objects.
        """
        self.close()
        have = {
            frame
            for start, file in self.covered().items()
            for frame in range(start, start + frames_in(file))
        }
        for frame in frames:
            if frame not in have and not self.failed:
                self.add(frame, *draw(frame), reverse=False)
        self.close()
        if not self.failed:
            self._try(lambda: join_videos(self.path, list(self.covered().values())))
        shutil.rmtree(self.parts, ignore_errors=True)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (FFmpegError, ValueError, MemoryError) as error:
            self.failed, self._open = reason_of(error), None
            with suppress(FFmpegError, ValueError, MemoryError):
                self._closing.__exit__(type(error), error, error.__traceback__)
            self._closing = ExitStack()
