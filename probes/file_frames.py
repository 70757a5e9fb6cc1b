"""Frames of a video file by index: by their time stamps, or counted where those don't tell them apart.

A file's packets are listed once when it is opened (nothing is decoded), so that the number of frames is exact and
each has its time. Some files have no time stamps, doubled ones, or wrong ones (raw streams, joined ones, AVI with
B-frames), and some are damaged. They are decoded once when they are opened: what can be read is read, in the
decoder's order, and `notes` says what is lost.
"""

from __future__ import annotations

import os
import struct
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from probes.container import OPEN, Listing, VideoFile, frames_between, stamp
from probes.errors import InputError
from probes.files import check_unchanged
from probes.frames import KEPT_FRAMES, Pixels, check_index, check_size
from probes.pictures import open_picture, reason_of

LOOKED_AT = 64
"""Decoded frames by which the time stamps of an AVI file are judged."""


def open_file(source: str | Path | bytes) -> FileVideo | CountedVideo:
    """Open a video file.

    Raises
    ------
    InputError
        It cannot be opened, has no video in it, holds fewer frames than its header promises, or none.
    """
    file = VideoFile(source)
    listing = file.list_packets()
    container, stream = file.open()
    with container:
        name = container.format.name
    if isinstance(source, (str, Path)) and (name == "image2" or name.endswith("_pipe")):
        with open_picture(Path(source), "a video, or a picture"):
            pass  # refuses one that holds several, of which FFmpeg would read the first
    avi = name == "avi"
    count = len(listing.times) + listing.unstamped
    if avi and listing.times and listing.promised > count:
        # a frame that was dropped when it was recorded leaves its place in the count
        dropped = listing.times[-1] + 1 - count
        if count + dropped >= listing.promised and not listing.empty:
            file.notes.append(
                f"{file.label}: {dropped} frames were dropped when it was recorded; {count} are read"
            )
        count += dropped
    if count < listing.promised:
        raise InputError(
            f"{file.label} is cut off or damaged: {count} frames can be read and its header "
            f"promises {listing.promised} frames; expected a whole file; copy or convert it again"
        )
    if not count + listing.broken:
        raise InputError(
            f"{file.label} holds 0 frames; expected at least one; check how it was made"
        )
    if 0 < listing.promised < count:
        file.notes.append(
            f"{file.label} holds {count} frames where its header promises {listing.promised}; all are read"
        )
    if listing.hidden:
        file.notes.append(
            f"{file.label} hides {listing.hidden} frames of {count + listing.hidden} by its edit list; left out, as in "
            "players"
        )
    if listing.doubled:
        file.notes.append(
            f"{file.label} holds {listing.doubled} frames with the time stamp of another, as joined or damaged videos "
            "do; all are read"
        )
    if listing.tells_apart and not (avi and _misleads(file, listing)):
        return FileVideo(file, listing)
    return CountedVideo(file, listing)


def _misleads(file: VideoFile, listing: Listing) -> bool:
    """Tell whether the first frames come out at other times than the packets say: AVI knows no order but that of storing."""
    container, stream = file.open()
    with container:
        try:
            found = [stamp(frame) for frame in islice(container.decode(stream), LOOKED_AT)]
        except FFmpegError:
            return True
    return found != listing.times[: len(found)]


def _opened_again(source: str | bytes, stamp: tuple[int, int] | None) -> FileVideo | CountedVideo:
    """Open a video file that was opened before."""
    if stamp is not None:
        check_unchanged(str(source), stamp)
    return open_file(source)


BACK = 2**28
"""Bytes of decoded frames that are held at most where a video is read backwards."""


class _Decoded(ABC):
    """What both kinds of reading have in common: the latest frames, upright and of one size; one thread reads at a time.

    Read backwards, frames are held as they are decoded, so that each group of pictures is decoded once.
    """

    reads_ahead = True

    def __init__(self, file: VideoFile, listing: Listing) -> None:
        self._file, self._label = file, file.label
        self.names: list[str] | None = None
        self._container, self._stream = file.open()
        self.fps = file.rate(self._stream, listing)
        self._kept: OrderedDict[int, Pixels] = OrderedDict()
        self._held: dict[int, av.VideoFrame] = {}
        self._asked = -1
        self._reading, self._scaler = threading.Lock(), VideoReformatter()
        self._process = os.getpid()
        self.height, self.width = -1, -1
        OPEN.add(self)

    def __reduce__(self) -> Any:
        """A copy opens the file for itself."""
        return _opened_again, (self._file.source, self._file.stamp)

    def _open_here(self) -> None:
        """Open the file anew in a process that was forked from the one that opened it."""
        if self._process != os.getpid():
            self.__dict__.update(_opened_again(self._file.source, self._file.stamp).__dict__)

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the file is left out, a line each."""
        return tuple(self._file.notes)

    @property
    @abstractmethod
    def num_frames(self) -> int:
        """Length of the video."""

    def frame(self, index: int) -> Pixels:
        """Return frame `index` as RGB, uint8 ``[H, W, 3]``.

        Reading on from the latest frame decodes each frame once, and so does reading backwards as far as memory allows.
        Otherwise going back, or far ahead, decodes from the key frame before it, where there are any.
        """
        self._open_here()
        with self._reading:
            check_index(index, self.num_frames)
            onward, self._asked = index == self._asked + 1, index
            if index in self._held:
                self._keep(index, self._held[index])
            if index not in self._kept:
                # what is decoded on the way to a frame that doesn't follow may be asked for backwards next
                room = 0 if onward else max(KEPT_FRAMES, BACK // (2 * self.height * self.width))
                self._held.clear()
                self._find(index, room)
            self._held = {i: f for i, f in self._held.items() if i < index and not onward}
            return self._kept[index]

    @abstractmethod
    def _find(self, index: int, room: int) -> None:
        """Decode until frame `index` is kept, and hold so many before it."""

    def _hold(self, position: int, frame: av.VideoFrame, index: int, room: int) -> None:
        """Take a frame on the way to frame `index`: keep it, hold it for later, or let it go."""
        if index - KEPT_FRAMES < position <= index and not room or position == index:
            self._keep(position, frame)
        elif index - room < position:
            self._held[position] = frame

    def _keep(self, position: int, frame: av.VideoFrame) -> None:
        try:
            pixels = upright_frame(frame, self._scaler)
        except (FFmpegError, ValueError, MemoryError) as error:
            raise InputError(
                f"frame {position} of {self._label} can't be shown as RGB ({reason_of(error)}); expected "
                "8 or 10 bits a channel; convert the file"
            ) from None
        if self.height > 0:
            check_size(pixels, self.height, self.width, f"frame {position} of {self._label}")
        self._kept[position] = pixels
        self._kept.move_to_end(position)
        while len(self._kept) > KEPT_FRAMES:
            self._kept.popitem(last=False)

    def _lost(self, index: int, count: int) -> InputError:
        return InputError(
            f"frame {index} of {self._label} can't be decoded; expected {count} whole frames; copy or "
            "convert the file again"
        )


class FileVideo(_Decoded):
    """Frames from a video file by their time stamps; see `probes.video.open_video`.

    Frames come out upright where the container says how the camera was held. A file that was cut out of
    another begins with its first key frame, as in any player: what comes before it can't be decoded.

    Raises
    ------
    InputError
        A frame of it cannot be decoded.
    """

    def __init__(self, file: VideoFile, listing: Listing) -> None:
        super().__init__(file, listing)
        self._times, self._keys = listing.times, listing.keys
        self._reopen()
        if self._keys and self._times[0] < self._keys[0]:
            self._leave_out_the_undecodable()
        if listing.promised <= 0 and (missing := frames_between(self._times)):
            file.notes.append(
                f"{file.label} has gaps between its frames, in which {missing} are missing; {len(self._times)} are read"
            )
        self._next: int | None = 0
        self.height, self.width = self.frame(0).shape[:2]

    @property
    def num_frames(self) -> int:
        return len(self._times)

    def _leave_out_the_undecodable(self) -> None:
        """Forget the frames at the start that the decoder drops because it waits for the first key frame."""
        try:
            first = stamp(next(self._decoder))
        except (FFmpegError, StopIteration):
            return
        if first is not None and first <= self._keys[0]:
            before = bisect_left(self._times, first)
            self._times = self._times[before:]
            if before:
                self._file.notes.append(
                    f"{self._label}: {before} frames before its first key frame can't be decoded, left out"
                )
        self._reopen()

    def _find(self, index: int, room: int) -> None:
        found = not self._seek_pays(index) and self._decode_up_to(index, room)
        found = found or (self._seek(index) and self._decode_up_to(index, room))
        if not found:
            self._reopen()  # a container whose seek misses can still be read from its start
            if not self._decode_up_to(index, room):
                self._next = None
                raise self._lost(index, len(self._times))

    def _key_before(self, index: int) -> int:
        """Return the time stamp of the key frame from which frame `index` can be decoded."""
        behind = bisect_right(self._keys, self._times[index]) - 1
        return self._keys[behind] if behind >= 0 else self._times[0]

    def _seek_pays(self, index: int) -> bool:
        """Tell whether frame `index` lies behind, or a key frame lies between it and the next frame."""
        if self._next is None or index < self._next:
            return True
        return self._key_before(index) > self._times[self._next]

    def _seek(self, index: int) -> bool:
        try:
            self._container.seek(self._key_before(index), stream=self._stream, backward=True)
        except FFmpegError:
            return False
        self._decoder = self._container.decode(self._stream)
        return True

    def _reopen(self) -> None:
        self._container.close()
        self._container, self._stream = self._file.open()
        self._stream.thread_type = "AUTO"
        self._decoder = self._container.decode(self._stream)

    def _decode_up_to(self, index: int, room: int) -> bool:
        """Decode forward until frame `index` is kept; False where that fails."""
        wanted = self._times[index]
        worth_keeping = self._times[max(0, index + 1 - max(room, KEPT_FRAMES))]
        try:
            for frame in self._decoder:
                time = stamp(frame)
                if time is None or time < worth_keeping:
                    continue
                if time > wanted or frame.is_corrupt:
                    return False
                self._hold(bisect_left(self._times, time), frame, index, room)
                if time == wanted:
                    self._next = index + 1 if index + 1 < len(self._times) else None
                    return True
        except FFmpegError:
            pass
        return False


class CountedVideo(_Decoded):
    """Frames from a video file as the decoder gives them, counted: it is decoded once when it is opened.

    Going back decodes it from its start.
    """

    def __init__(self, file: VideoFile, listing: Listing) -> None:
        super().__init__(file, listing)
        self._failed = 0
        self._count = 0
        self._reopen()
        times: list[int] = []
        damaged = fields = 0
        for frame in self._decoder:
            self._count += 1
            fields += frame.interlaced_frame
            damaged += frame.is_corrupt
            time = stamp(frame)
            times += [] if time is None else [time]
        if not self.num_frames:
            raise InputError(
                f"{self._label} is damaged: none of its frames can be decoded; expected a whole file; copy or "
                "convert it again"
            )
        self._say_what_is_lost(listing, damaged, fields, times)
        self._reopen()
        self.height, self.width = self.frame(0).shape[:2]

    @property
    def num_frames(self) -> int:
        return self._count

    def _say_what_is_lost(
        self, listing: Listing, damaged: int, fields: int, times: list[int]
    ) -> None:
        if listing.empty:
            self._file.notes.append(
                f"{self._label}: {listing.empty} frames were dropped when it was recorded; {self.num_frames} are read"
            )
        packets = len(listing.times) + listing.unstamped
        mute = 0  # a frame of two fields may be two packets
        if 2 * fields < self.num_frames:
            mute = max(0, packets - self._failed - self.num_frames)
        if not (listing.broken or damaged or self._failed or mute):
            return
        gaps = frames_between(times)
        self._file.notes.append(
            f"{self._label} is cut off or damaged: {listing.broken} broken packets, {self._failed + mute} that "
            f"give no frame, some {gaps} frames lost between others; {self.num_frames} frames are read, {damaged} of "
            "them known to be damaged"
        )

    def _reopen(self) -> None:
        self._container.close()
        self._container, self._stream = self._file.open()
        self._stream.thread_type = "SLICE"  # frames in parallel would be repaired from other ones
        self._decoder = self._decode()
        self._next = 0

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Decode all that can be, and count what can't."""
        self._failed = 0
        try:
            for packet in self._container.demux(self._stream):
                if packet.size == 0 and packet.dts is not None:
                    continue  # to the decoder it would be the end
                try:
                    yield from packet.decode()
                except FFmpegError:
                    self._failed += 1
        except (FFmpegError, ValueError):
            self._failed += 1

    def _find(self, index: int, room: int) -> None:
        if index < self._next:
            self._reopen()
        while self._next <= index:
            frame = next(self._decoder, None)
            if frame is None:
                self._reopen()
                raise self._lost(index, self.num_frames)
            self._hold(self._next, frame, index, room)
            self._next += 1


def upright_frame(frame: av.VideoFrame, scaler: VideoReformatter) -> Pixels:
    """Return a frame as RGB, turned and mirrored as its display matrix says: uint8 ``[H, W, 3]``.

    One scaler for all frames of a video spares each the tables and threads of its own. The matrix sends the picture's axis to
    the right to (a, b) and its axis down to (c, d) (ISO 14496-12, 6.2.2).
    """
    pixels = np.asarray(scaler.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside it lies data that PyAV has no name for, such as EXIF in MJPEG
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
    if matrix is None:
        return pixels
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    if abs(b) > abs(a):
        pixels = pixels.transpose(1, 0, 2)
        right, down = c, b
    else:
        right, down = a, d
    if right < 0:
        pixels = pixels[:, ::-1]
    if down < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
