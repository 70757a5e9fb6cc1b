"""A video file before its frames are read: which of its streams is the video, what its packets say, what it lacks."""

from __future__ import annotations

import gc
import io
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO
from weakref import WeakSet

import av
from av.error import FFmpegError
from av.stream import Disposition

from probes.errors import InputError
from probes.files import check_unchanged, stamp_of
from probes.pictures import reason_of

VP8_SHOWN = 0x10
"""Bit of a VP8 packet's first byte that says whether its frame is shown (RFC 6386, 9.1)."""

STILL = Disposition.attached_pic | Disposition.timed_thumbnails
"""Streams that are pictures about the video, such as a cover."""

EVEN = 0.75
"""Share of frames at the usual distance from the one before from which on a video counts as evenly spaced."""

LONGEST_STILL = 10
"""Seconds for which the last frame of a video that isn't evenly spaced may stand."""

RATES = (0.05, 300)
"""Frames a second that are believed."""

NO_VIDEO = ("tty", "image2")
"""Formats of FFmpeg in which texts and single pictures are videos."""


COPYRIGHT = 0xA9
"""First letter of some kinds of boxes."""

SYNC = b"G"
"""With which packets of MPEG transport streams begin (ISO 13818-1, 2.4.3.2)."""

TS_PACKETS = {188: 0, 192: 4, 204: 0}
"""Where that mark lies in packets of each size, in bytes: Blu-ray puts a time before it."""

TABLE = 0x80
"""Bit of a GIF's flags that says whether a table of colours follows, whose size the lowest three bits tell."""


@dataclass
class Listing:
    """What a file's packets say.

    Attributes
    ----------
    times, keys
        Time stamps of all frames in playing order, and those of the key frames.
    broken, unstamped, empty, hidden
        Packets that are damaged, that have no time stamp, that are a frame left out when it was recorded, and that are
        not to be shown.
    promised
        Frames that the header promises; 0 where it doesn't.
    end, last_byte, bytes
        End of the last frame, in the stream's time base, and of the last packet in the file; bytes of all packets.
    cut
        Whether the file ends too early.
    """

    times: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    broken: int = 0
    unstamped: int = 0
    empty: int = 0
    hidden: int = 0
    promised: int = 0
    end: int = 0
    last_byte: int = 0
    bytes: int = 0
    cut: bool = False

    @property
    def doubled(self) -> int:
        """Frames that have the time stamp of another."""
        return len(self.times) - len(set(self.times))

    @property
    def tells_apart(self) -> bool:
        """Whether each frame is whole and has a time of its own."""
        return not (self.broken or self.unstamped or self.empty or self.cut or self.doubled)


OPEN: WeakSet[Any] = WeakSet()
"""Videos that hold an open container."""

_INHERITED: list[dict[str, Any]] = []
"""What those of another process held."""


def _keep_what_was_open() -> None:
    """Free nothing of a forked process that decoded in the other one: FFmpeg would wait for threads that don't come along.

    Frames stand in cycles with their side data, so the collector may come upon them at any time: it leaves alone what was
    there before.
    """
    _INHERITED.extend(dict(vars(video)) for video in OPEN)
    gc.freeze()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_what_was_open)


class VideoFile:
    """A video file, a path or its bytes, before its frames are read: opened as often as it is wanted."""

    def __init__(self, source: str | Path | bytes) -> None:
        # absolute: FFmpeg would take "12:30.mp4" for the address of something by the protocol "12"
        self.source = source if isinstance(source, bytes) else str(Path(source).absolute())
        self.label = "the video" if isinstance(source, bytes) else str(source)
        self.notes: list[str] = []
        self.stamp = None if isinstance(self.source, bytes) else stamp_of(self.source)

    def open(self) -> tuple[av.container.InputContainer, av.VideoStream]:
        """Open the file; return it and the stream that players show."""
        if self.stamp is not None:
            check_unchanged(str(self.source), self.stamp)
        file = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        try:
            container = av.open(file, "r", metadata_errors="replace")
        except (FFmpegError, OSError, ValueError, MemoryError, OverflowError) as error:
            raise InputError(
                f"{self.label} can't be opened as a video ({reason_of(error)}); expected a whole mp4, "
                "mov or webm file or a folder of frames; check the file"
            ) from None
        return container, shown_stream(container, self.label)

    def list_packets(self) -> Listing:
        """List what is in it; say what is not of the stream that is read, and where it ends too early."""
        found = Listing()
        container, stream = self.open()
        with container:
            found.promised = stream.frames
            vp8 = stream.codec_context.name in ("vp8", "libvpx")
            try:
                for packet in container.demux(stream):
                    if packet.size == 0:
                        found.empty += packet.dts is not None
                        continue
                    if packet.is_corrupt:
                        found.broken += 1
                        continue
                    if vp8 and not memoryview(packet)[0] & VP8_SHOWN:
                        continue
                    if packet.is_discard:
                        found.promised -= 1
                        found.hidden += 1
                        continue
                    found.bytes += packet.size
                    found.last_byte = max(found.last_byte, (packet.pos or 0) + packet.size)
                    time = stamp(packet)
                    if time is None:
                        found.unstamped += 1
                        continue
                    found.times.append(time)
                    found.end = max(found.end, time + (packet.duration or 0))
                    if packet.is_keyframe:
                        found.keys.append(time)
            except (FFmpegError, ValueError):
                found.broken += 1
            found.times.sort()
            found.keys.sort()
            self._note_others(container, found)
            found.cut = self._is_cut(container, stream, found)
        return found

    def _note_others(self, container: av.container.InputContainer, found: Listing) -> None:
        """Say which videos of a file are not read."""
        others = len(_moving(container)) - 1
        if others:
            self.notes.append(
                f"{self.label} holds {others} more video streams than its default one; they are left out"
            )

    def _is_cut(
        self, container: av.container.InputContainer, stream: av.VideoStream, found: Listing
    ) -> bool:
        """Tell whether a file ends before it should or has damage in its structure, and say so."""
        name, unit = container.format.name, stream.time_base
        alone = len(container.streams) == 1
        whole, films = self._structure(name, found, alone)
        if films > 1:
            self.notes.append(
                f"{self.label} has another video joined to its end; {len(found.times)} frames of the first are "
                "read, the rest is left out"
            )
        cut, missing = not whole, Fraction(0)
        if found.promised <= 0 and found.times and alone and container.duration and unit:
            usual = Fraction(usual_step(found.times))
            end = max(Fraction(found.end), found.times[-1] + usual)
            missing = Fraction(container.duration, av.time_base) - end * unit
            bearable = Fraction(3, 4) * usual * unit
            if (
                not usual
            ):  # where frames come when there is something new, the last one may stand for long
                span = (found.times[-1] - found.times[0]) * unit
                bearable = min(max(span, Fraction(1, 10)), Fraction(LONGEST_STILL))
            cut = cut or missing > bearable
        if cut:
            before = f" {float(missing):.2f} s before the end that its header promises" * (
                missing > 0
            )
            self.notes.append(
                f"{self.label} is cut off{before} or damaged; frames at its end are left out or damaged"
            )
        return cut

    def _structure(self, name: str, found: Listing, alone: bool) -> tuple[bool, int]:
        """Return whether a file of that format is whole, and how many videos are joined in it."""
        with self._bytes() as file:
            if "mov" in name:
                boxes, filled = boxes_of(file)
                kinds = [kind for kind, _ in boxes]
                data = sum(size - 16 for kind, size in boxes if kind == b"mdat")  # or 8 less
                # of others the header says how many frames there are, and cameras append data of their own
                in_pieces = b"moof" in kinds or found.promised <= 0
                crashed = in_pieces and (not filled or (alone and found.bytes < data))
                return not crashed, kinds.count(b"moov")
            if name == "yuv4mpegpipe":
                return found.last_byte == file.seek(0, io.SEEK_END), 1
            check = {"gif": gif_is_whole, "mpegts": ts_is_whole}.get(name)
            return check is None or check(file), 1

    def _bytes(self) -> BinaryIO:
        if isinstance(self.source, bytes):
            return io.BytesIO(self.source)
        return Path(self.source).open("rb")

    def rate(self, stream: av.VideoStream, listing: Listing) -> float | None:
        """Frames a second: what the file says where it can be believed, else what its time stamps say."""
        said = said_rate(stream)
        if said is not None:
            return said
        if len(set(listing.times)) < 2 or not stream.time_base:
            return None
        span = float((listing.times[-1] - listing.times[0]) * stream.time_base)
        found = (len(listing.times) - 1) / span
        return found if RATES[0] <= found <= RATES[1] else None


def shown_stream(container: av.container.InputContainer, label: str) -> av.VideoStream:
    """Return the stream that players show; the container is closed where there is none.

    Raises
    ------
    InputError
        There is no video in it, or one of an unknown codec.
    """
    shown = _moving(container)
    if not shown:
        container.close()
        raise InputError(
            f"{label} has no video stream; expected a video file or a folder of frames; check the file"
        )
    best = container.streams.best("video")  # of several, as ffplay chooses
    chosen = next((s for s in shown if s is best), shown[0])
    if chosen.codec_context is None:
        container.close()
        raise InputError(
            f"{label} is of a codec that is not known here; expected one such as H.264, VP9 or AV1; convert it"
        )
    return chosen


def said_rate(stream: av.VideoStream) -> float | None:
    """Frames a second as a container says, where it can be believed."""
    for said in (stream.average_rate, stream.guessed_rate):
        if said and RATES[0] <= said <= RATES[1]:
            return float(said)
    return None


def usual_step(times: Sequence[int]) -> float:
    """Return the distance of time stamps where most of them are evenly spaced, else 0."""
    steps = [b - a for a, b in zip(times, times[1:], strict=False) if b > a]
    usual = median(steps) if steps else 0
    even = sum(abs(step - usual) <= 0.15 * usual for step in steps)
    return usual if even >= EVEN * len(steps) else 0


def frames_between(times: Sequence[int]) -> int:
    """Count the frames that are missing between others, where most time stamps are evenly spaced.

    >>> frames_between([0, 40, 80, 120, 160, 280, 320, 360]), frames_between([0, 7, 50, 51, 90])
    (2, 0)
    """
    usual = usual_step(times)
    pairs = zip(times, times[1:], strict=False)
    return sum(round((b - a) / usual) - 1 for a, b in pairs if b - a > 1.5 * usual) if usual else 0


def holds_video(path: Path) -> bool:
    """Whether FFmpeg finds a video in a file, not a text that it would show as one."""
    try:
        with av.open(str(path.absolute()), "r", metadata_errors="replace") as container:
            return container.format.name not in NO_VIDEO and bool(_moving(container))
    except (FFmpegError, OSError, ValueError):
        return False


def _moving(container: av.container.InputContainer) -> list[av.VideoStream]:
    """Return the streams of a container that are videos, not pictures about it."""
    videos = [stream for stream in container.streams.video if not stream.disposition & STILL]
    return [stream for stream in videos if stream.frames != 1] or videos


def stamp(timed: av.Packet | av.VideoFrame) -> int | None:
    return timed.pts if timed.pts is not None else timed.dts


# ---------------------------------------------------------------------- whether a file is whole, by its structure


def boxes_of(file: BinaryIO) -> tuple[list[tuple[bytes, int]], bool]:
    """Return kind and size of the boxes that an mp4 or mov file is made of, and whether they fill it without a gap.

    Parameters
    ----------
    file
        At any place.
    """
    size = file.seek(0, io.SEEK_END)
    place, found = 0, []
    while place + 8 <= size:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        elif length == 0:  # to the end
            length = size - place
        if length < 8 or not all(32 <= letter < 127 or letter == COPYRIGHT for letter in kind):
            break
        found.append((kind, length))
        place += length
    return found, place == size


def ts_is_whole(file: BinaryIO) -> bool:
    """Whether an MPEG transport stream is made of packets that begin with their mark, and none is cut."""
    for length, mark in TS_PACKETS.items():
        file.seek(0)
        if all(file.read(length)[mark : mark + 1] == SYNC for _ in range(2)):
            break
    file.seek(0)
    while piece := file.read(4096 * length):
        if len(piece) % length or set(piece[mark::length]) != set(SYNC):
            return False
    return True


def gif_is_whole(file: BinaryIO) -> bool:
    """Whether a GIF is made of blocks that follow each other up to its end mark."""
    file.seek(0)
    head = file.read(13)
    if len(head) < 13:
        return False
    file.seek(_table(head[10]), 1)
    while (mark := file.read(1)) in (b"!", b","):
        begin = file.read(1 if mark == b"!" else 9)
        if mark == b",":
            file.seek(_table(begin[-1] if begin else 0) + 1, 1)
        while (length := file.read(1)) not in (b"\0", b""):
            file.seek(length[0], 1)
    return mark == b";" and not file.read().strip(b"\0")


def _table(flags: int) -> int:
    """Return the bytes of a GIF's table of colours."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & TABLE else 0
