"""Frames of a stream by its address, or of a device: what a camera, a server or another program sends.

Frames are decoded one by one as they arrive and can't be revisited. What is lost on the way is lost: damaged packets are
passed over and counted in `LiveVideo.notes`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
from av.error import EOFError as EndOfFile
from av.error import ExitError, FFmpegError, InvalidDataError
from av.video.reformatter import VideoReformatter

from probes.container import OPEN, said_rate, shown_stream
from probes.errors import InputError
from probes.file_frames import upright_frame
from probes.frames import Pixels, StreamVideo
from probes.pictures import reason_of

PATIENCE = 10.0
"""Seconds without a packet after which a stream counts as broken."""

BROKEN = 100
"""Packets in a row that can't be read before a stream counts as broken."""

ADDRESS = re.compile(r"[a-z][a-z0-9+.\-]+://", re.IGNORECASE)

SQUEEZED = re.compile(r"(rtsps?|rtmps?|rtp|udp|tcp|srt|https?):/(?!/)", re.IGNORECASE)
"""How an address begins that was made a path, which has no empty parts."""

DEVICES = {
    "v4l2": re.compile(r"(?:v4l2:)?(/dev/video\d+)"),
    "avfoundation": re.compile(r"avfoundation:(.+)", re.DOTALL),
    "dshow": re.compile(r"dshow:(video=.+)", re.DOTALL),
}
"""By the format of FFmpeg that reads it: how a device is named, and what FFmpeg calls it."""

OPTIONS = {"rtsp": {"rtsp_flags": "prefer_tcp"}}
"""Of FFmpeg, by protocol: over UDP packets are lost."""


def is_live(source: Any) -> bool:
    """Whether a source is the address of a stream or the name of a device.

    >>> is_live("rtsp://camera.local/1"), is_live("/dev/video0"), is_live("clips/12:30.mp4")
    (True, True, False)

    Raises
    ------
    InputError
        It is a path that was made of an address.
    """
    text = str(source)
    if isinstance(source, Path) and SQUEEZED.match(text):
        raise InputError(
            f"{shown(text)} given as a Path, which drops a slash of an address; expected a str; pass the address as it is"
        )
    if isinstance(source, str) and ADDRESS.match(source):
        return True
    return _device(text) is not None and (text.startswith("/dev/") or not Path(text).exists())


def shown(address: str) -> str:
    """An address as it may be shown: without user, password and what follows a question mark, such as a token.

    >>> shown("rtsp://me:secret@camera.local:554/1?token=2")
    'rtsp://camera.local:554/1?…'
    """
    if not (ADDRESS.match(address) or SQUEEZED.match(address)):
        return address
    # up to the last @, as passwords may hold others
    bare = re.sub(r"(?s)^([^/]*//?).*@", r"\1", address)
    return re.sub(r"(?s)[?#].*", "?…", bare)


def _device(name: str) -> tuple[str, str] | None:
    """Return the format of FFmpeg that reads a device, and what it is called there; None for what is none."""
    for kind, pattern in DEVICES.items():
        found = pattern.fullmatch(name)
        if found:
            return kind, found[1]
    return None


class LiveVideo(StreamVideo):
    """Frames of a stream or device, read forward only; the latest few stay available; see `probes.video.open_video`.

    Parameters
    ----------
    address
        As `is_live` knows them.
    patience
        Seconds without a packet, or until there is an answer, after which it is given up.

    Raises
    ------
    InputError
        There is no answer, no video or no frame; while frames are read: the connection broke, nothing came for too long,
        or a frame is of another size.
    """

    reads_ahead = True

    def __init__(self, address: str | Path, patience: float = PATIENCE) -> None:
        self.label = shown(str(address))
        self._lost = Lost()
        container = opened(str(address), patience)
        stream = shown_stream(container, self.label)
        rate = said_rate(stream)
        super().__init__(frames_of(container, stream, self.label, self._lost, patience))
        OPEN.add(self)
        self.fps = rate

    @property
    def notes(self) -> tuple[str, ...]:
        """What was lost until now, a line; none where nothing was."""
        lost = self._lost
        if not lost.packets + lost.damaged:
            return ()
        return (
            f"{self.label}: {lost.packets} packets could not be read and are left out, {lost.damaged} frames are known to "
            "be damaged",
        )


class Lost:
    """Counts of packets that could not be read, and of frames that are damaged."""

    packets = damaged = 0


def opened(address: str, patience: float) -> av.container.InputContainer:
    """Connect to a stream or open a device.

    Raises
    ------
    InputError
        That fails, or takes longer than `patience`, in seconds.
    """
    kind, name = _device(address) or (None, address)
    options = OPTIONS.get(address.partition(":")[0].lower(), {})
    try:
        return av.open(
            name, "r", format=kind, options=options, timeout=patience, metadata_errors="replace"
        )
    except (FFmpegError, OSError, ValueError, MemoryError) as error:
        late = isinstance(error, ExitError)
        why = f"no answer in {patience:g} s" if late else reason_of(error)
        raise InputError(
            f"{shown(address)} can't be opened as a video ({why}); expected a stream or device that sends a video; "
            "check address, network and access"
        ) from None


def frames_of(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    label: str,
    lost: Lost,
    patience: float,
) -> Iterator[Pixels]:
    """Decode frames as they arrive, upright, RGB, uint8 ``[H, W, 3]``; the container is closed behind the last one.

    Raises
    ------
    InputError
        The connection broke, or nothing came for longer than `patience`, in seconds.
    """
    stream.thread_type = "SLICE"  # frames in parallel would come late
    broken: InputError | None = None
    scaler = VideoReformatter()
    with container:
        packets = packets_of(container, stream, label, lost, patience)
        while True:
            packet = None
            try:
                packet = next(packets, None)
            except InputError as error:
                broken = error
            try:  # without a packet what the decoder holds
                frames = stream.codec_context.decode(packet)
            except FFmpegError:
                frames = []
                lost.packets += packet is not None
            for frame in frames:
                lost.damaged += frame.is_corrupt
                yield _pixels(frame, scaler, label)
            if packet is None:
                break
    if broken is not None:
        raise broken


def _pixels(frame: av.VideoFrame, scaler: VideoReformatter, label: str) -> Pixels:
    try:
        return upright_frame(frame, scaler)
    except (FFmpegError, ValueError, MemoryError) as error:
        raise InputError(
            f"a frame of {label} can't be shown as RGB ({reason_of(error)}); expected 8 or 10 bits a channel; have it "
            "sent in another format"
        ) from None


def packets_of(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    label: str,
    lost: Lost,
    patience: float,
) -> Iterator[av.Packet]:
    """Packets of a stream until it ends, those that can't be read passed over."""
    failed = 0
    while True:
        try:
            for packet in container.demux(stream):
                failed = 0
                if packet.size:  # an empty one is the end, to the decoder
                    yield packet
            return
        except EndOfFile:
            return
        except InvalidDataError as error:
            lost.packets += 1
            failed += 1
            if failed >= BROKEN:
                raise _broken(label, reason_of(error)) from None
        except ExitError:
            raise _broken(label, f"nothing came for {patience:g} s") from None
        except (FFmpegError, OSError) as error:
            if error.errno == errno.EIO and label.startswith("http") and container.size <= 0:
                return  # so FFmpeg says that an answer ended whose length wasn't known
            raise _broken(label, reason_of(error)) from None


def _broken(label: str, why: str) -> InputError:
    return InputError(
        f"{label} broke off ({why}); expected a stream that goes on or is ended by its sender; check the connection and "
        "open it again"
    )
