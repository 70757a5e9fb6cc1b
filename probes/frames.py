"""Frames of videos by index: from a folder of pictures, an array, or a stream that is read forward only."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.errors import InputError, some_of
from probes.files import check_unchanged, stamp_of
from probes.pictures import (
    IMAGE_SUFFIXES,
    JPEG_SUFFIXES,
    OTHER_IMAGE_SUFFIXES,
    open_picture,
    upright,
)

Pixels = NDArray[np.uint8]

KEPT_FRAMES = 5
"""Decoded frames that are kept for a second look: the latest ones, where some are read ahead."""

KEPT_OF_STREAM = 16
"""Frames of a forward-only stream that stay available; older ones are gone."""


class EndOfVideo(IndexError):
    """A frame after the last one was asked for."""


def natural_key(name: str) -> tuple[Any, ...]:
    """Sort key under which ``frame10`` follows ``frame9``.

    >>> sorted(["f10", "f9", "f1"], key=natural_key)
    ['f1', 'f9', 'f10']
    """
    parts = re.split(r"(\d+)", name)
    return tuple((int(p), p) if i % 2 else p.lower() for i, p in enumerate(parts)), name


class FolderVideo:
    """Frames from a folder of JPEG or PNG files; see `probes.video.open_video`.

    Where there is a JPEG, JPEG files alone are frames, as in stock sam2. `notes` says what is left out.
    """

    reads_ahead = True

    def __init__(self, folder: Path) -> None:
        self._files, self.notes = _frame_files(folder)
        self._stamps = [stamp_of(p) for p in self._files]
        self.fps: float | None = None
        self.names: list[str] | None = [p.stem for p in self._files]
        self.height, self.width = self._read(0).shape[:2]

    @property
    def num_frames(self) -> int:
        return len(self._files)

    def _read(self, index: int) -> Pixels:
        path = self._files[index]
        check_unchanged(path, self._stamps[index])
        with open_picture(path, "a whole JPEG or PNG file") as image:
            if image.mode.startswith(("I", "F")):  # which Pillow would clip to 255
                raise InputError(
                    f"{path} has 16 bits or more a pixel; expected 8 bits a channel; scale it to 0..255"
                )
            return np.array(upright(image.convert("RGB")))

    def frame(self, index: int) -> Pixels:
        """Return frame `index` as RGB, uint8 ``[H, W, 3]``."""
        check_index(index, len(self._files))
        pixels = self._read(index)
        check_size(pixels, self.height, self.width, str(self._files[index]))
        return pixels


def _frame_files(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Return the picture files of `folder` in playing order, as numbers where all names are numbers; and notes."""
    shown = sorted(p for p in folder.iterdir() if not p.name.startswith("."))  # not ._00000.jpg
    dangling = [p for p in shown if p.suffix.lower() in IMAGE_SUFFIXES and not p.exists()]
    found = [p for p in shown if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    others = [p for p in shown if p.suffix.lower() in OTHER_IMAGE_SUFFIXES and not p.is_dir()]
    files = [p for p in found if p.suffix.lower() in JPEG_SUFFIXES] or found
    notes = {
        "links lead nowhere": dangling,
        "pictures are PNG, where JPEG files are the frames": [p for p in found if p not in files],
        f"pictures end in other than {', '.join(IMAGE_SUFFIXES)}": others,
    }
    left_out = tuple(
        f"{folder}: {len(paths)} {what} ({some_of([p.name for p in paths])}), left out"
        for what, paths in notes.items()
        if paths
    )
    if not files:
        instead = [p.name for p in (*dangling, *others)]
        found_instead = f" but {len(instead)} others such as {instead[0]}" if instead else ""
        raise InputError(
            f"{folder} holds no frames{found_instead}; expected files that end in "
            f"{', '.join(IMAGE_SUFFIXES)}; give the folder that holds the frames themselves"
        )
    if all(re.fullmatch(r"\d+", p.stem) for p in files):
        files.sort(key=lambda p: (int(p.stem), p.name))
    else:
        files.sort(key=lambda p: natural_key(p.stem))
    for one, next_one in zip(files, files[1:], strict=False):
        if one.stem == next_one.stem:
            raise InputError(
                f"{folder} holds both {one.name} and {next_one.name}; expected one file a frame; "
                "remove one of them"
            )
    return files, left_out


class ArrayVideo:
    """Frames from an array or a sequence of arrays; see `probes.video.open_video`."""

    reads_ahead = True

    def __init__(self, frames: Pixels | Sequence[Pixels]) -> None:
        if len(frames) == 0:
            raise InputError("0 frames given; expected at least one; check how the array was made")
        self._frames = frames
        self.fps: float | None = None
        self.names: list[str] | None = None
        self.height, self.width = _as_frame(frames[0], "frame 0").shape[:2]

    @property
    def num_frames(self) -> int:
        return len(self._frames)

    def frame(self, index: int) -> Pixels:
        """Return frame `index` as RGB, uint8 ``[H, W, 3]``."""
        check_index(index, len(self._frames))
        pixels = _as_frame(self._frames[index], f"frame {index}")
        check_size(pixels, self.height, self.width, f"frame {index}")
        return pixels


class StreamVideo:
    """Frames from an iterator, read forward only; the latest few stay available; see `probes.video.open_video`."""

    def __init__(self, frames: Iterable[Pixels]) -> None:
        self._iterator: Iterator[Pixels] | None = iter(frames)
        self._held: OrderedDict[int, Pixels] = OrderedDict()
        self._read = 0
        self._reading = threading.Lock()
        self._ended = False
        self.fps: float | None = None
        self.names: list[str] | None = None
        self.height, self.width = -1, -1
        try:
            self.height, self.width = self.frame(0).shape[:2]
        except EndOfVideo:
            raise InputError(
                "the stream ended before its first frame; expected at least one; check its source"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: the frames that are held; nobody else may read the stream on."""
        return {**self.__dict__, "_iterator": None, "_reading": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _reading=threading.Lock())

    @property
    def num_frames(self) -> int | None:
        return self._read if self._ended else None

    def frame(self, index: int) -> Pixels:
        """Return frame `index` as RGB, uint8 ``[H, W, 3]``; reads the stream up to it.

        Raises
        ------
        EndOfVideo
            The stream ended before it.
        InputError
            The frame has gone by and is no longer held.
        """
        if index < 0:
            raise InputError(f"frame {index} asked for; expected 0 or more; count frames from 0")
        held = self._held.get(index)
        if held is not None:
            return held
        with self._reading:
            self._read_up_to(index)
        if index not in self._held:
            raise InputError(
                f"frame {index} of a stream asked for; it has gone by, only frames "
                f"{next(iter(self._held))} to {self._read - 1} are held; use a file or an array to go back"
            )
        return self._held[index]

    def _read_up_to(self, index: int) -> None:
        while self._read <= index:
            if self._iterator is None:
                raise InputError(
                    f"frame {index} of a copied stream asked for, of which frames {next(iter(self._held))} to "
                    f"{self._read - 1} were copied; a stream goes on where it was begun; go on there"
                )
            pixels = next(islice(self._iterator, 1), None)
            if pixels is None:
                self._ended = True
                raise EndOfVideo(
                    f"frame {index} asked for; the stream ended after {self._read} frames"
                )
            pixels = _as_frame(pixels, f"frame {self._read}")
            if self._read:
                check_size(pixels, self.height, self.width, f"frame {self._read}")
            self._held[self._read] = pixels.copy()  # a camera may reuse its buffer
            self._read += 1
            if len(self._held) > KEPT_OF_STREAM:
                self._held.popitem(last=False)


def _as_frame(frame: Any, what: str) -> Pixels:
    """Return `frame` as an array uint8 ``[H, W, 3]``, or say what it is instead."""
    pixels = np.asarray(frame)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InputError(
            f"{what} is {pixels.dtype} {list(pixels.shape)}; expected uint8 [H, W, 3], RGB in 0..255; "
            "convert it"
        )
    return pixels


def check_index(index: int, count: int) -> None:
    """Refuse a frame index outside ``0 … count - 1``."""
    if index < 0:
        raise InputError(f"frame {index} asked for; expected 0 or more; count frames from 0")
    if index >= count:
        raise EndOfVideo(f"frame {index} asked for; the video has {count} frames, 0 to {count - 1}")


def check_size(pixels: Pixels, height: int, width: int, what: str) -> None:
    """Refuse a frame of another size than the first."""
    if pixels.shape[:2] != (height, width):
        raise InputError(
            f"{what} is {pixels.shape[1]}x{pixels.shape[0]}; expected {width}x{height} like the first "
            "frame; bring all frames to one size"
        )
