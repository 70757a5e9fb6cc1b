"""Frames of a video file, through PyAV: exact by index, forward at the price of decoding, back by a seek."""

from __future__ import annotations

import io
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from probes.errors import InputError
from probes.frames import KEPT_FRAMES, Pixels, check_index, check_size

VP8_SHOWN = 0x10
"""Bit of a VP8 packet's first byte that says whether its frame is shown (RFC 6386, 9.1)."""


class FileVideo:
    """Frames from a video file; see `probes.video.open_video`.

    The file's packets are listed once when it is opened (nothing is decoded), so that the number of
    frames is exact and each frame has its time stamp. Frames come out upright where the container says
    how the camera was held. A file that was cut out of another begins with its first key frame, as in any
    player: what comes before it can't be decoded.

    Raises
    ------
    InputError
        It cannot be opened, has no video in it, holds fewer frames than its header promises, or a frame
        of it cannot be decoded.
    """

    def __init__(self, source: str | Path | bytes) -> None:
        # absolute: FFmpeg would take "12:30.mp4" for the address of something by the protocol "12"
        self._source = source if isinstance(source, bytes) else str(Path(source).absolute())
        self._label = "the video" if isinstance(source, bytes) else str(source)
        self.names: list[str] | None = None
        self._times, self._keys = self._list_packets()
        self._container = self._open()
        self._reopen()
        if self._keys and self._times[0] < self._keys[0]:
            self._leave_out_the_undecodable()
        rate = self._stream.average_rate
        self.fps: float | None = float(rate) if rate else None
        self._kept: OrderedDict[int, Pixels] = OrderedDict()
        self._next: int | None = 0
        self.height, self.width = -1, -1
        self.height, self.width = self.frame(0).shape[:2]

    @property
    def num_frames(self) -> int:
        return len(self._times)

    def _open(self) -> av.container.InputContainer:
        file = io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source
        try:
            container = av.open(file, "r")
        except (FFmpegError, OSError) as error:
            raise InputError(
                f"{self._label} can't be opened as a video ({_reason(error)}); expected a whole mp4, "
                "mov or webm file or a folder of frames; check the file"
            ) from None
        if not container.streams.video:
            container.close()
            raise InputError(
                f"{self._label} has no video stream; expected a video file or a folder of frames; "
                "check the file"
            )
        return container

    def _list_packets(self) -> tuple[list[int], list[int]]:
        """Return the time stamps of all frames in playing order, and those of the key frames."""
        times, keys, broken = [], [], 0
        with self._open() as container:
            stream = container.streams.video[0]
            promised = stream.frames
            vp8 = stream.codec_context.name in ("vp8", "libvpx")
            try:
                for packet in container.demux(stream):
                    if packet.size == 0:
                        continue
                    time = _stamp(packet)
                    if packet.is_corrupt or time is None:
                        broken += 1
                        continue
                    if vp8 and not memoryview(packet)[0] & VP8_SHOWN:
                        continue
                    if packet.is_discard:
                        promised -= 1
                        continue
                    times.append(time)
                    if packet.is_keyframe:
                        keys.append(time)
            except FFmpegError:
                broken += 1
        if broken or len(times) < promised:
            total = f"{promised} frames" if promised > 0 else "more"
            raise InputError(
                f"{self._label} is cut off or damaged: {len(times)} frames can be read and its header "
                f"promises {total}; expected a whole file; copy or convert it again"
            )
        if not times:
            raise InputError(
                f"{self._label} holds 0 frames; expected at least one; check how it was made"
            )
        if doubled := len(times) - len(set(times)):
            raise InputError(
                f"{self._label} holds {doubled} frames with the time stamp of another; expected one a frame; "
                "convert it anew"
            )
        return sorted(times), sorted(keys)

    def _leave_out_the_undecodable(self) -> None:
        """Forget the frames at the start that the decoder drops because it waits for the first key frame."""
        try:
            first = _stamp(next(self._decoder))
        except (FFmpegError, StopIteration):
            return
        if first is not None and first <= self._keys[0]:
            self._times = self._times[bisect_left(self._times, first) :]
        self._reopen()

    def frame(self, index: int) -> Pixels:
        """Return frame `index` as RGB, uint8 ``[H, W, 3]``.

        Reading on from the latest frame decodes each frame once; going back, or far ahead, seeks to the
        key frame before it.
        """
        check_index(index, len(self._times))
        if index not in self._kept:
            found = not self._seek_pays(index) and self._decode_up_to(index)
            found = found or (self._seek(index) and self._decode_up_to(index))
            if not found:
                self._reopen()  # a container whose seek misses can still be read from its start
                if not self._decode_up_to(index):
                    self._next = None
                    raise InputError(
                        f"frame {index} of {self._label} can't be decoded; expected "
                        f"{len(self._times)} whole frames; copy or convert the file again"
                    )
        return self._kept[index]

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
        self._container = self._open()
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._decoder = self._container.decode(self._stream)

    def _decode_up_to(self, index: int) -> bool:
        """Decode forward until frame `index` is kept; False where that fails."""
        wanted, worth_keeping = self._times[index], self._times[max(0, index + 1 - KEPT_FRAMES)]
        try:
            for frame in self._decoder:
                time = _stamp(frame)
                if time is None or time < worth_keeping:
                    continue
                if time > wanted or frame.is_corrupt:
                    return False
                self._keep(bisect_left(self._times, time), frame)
                if time == wanted:
                    self._next = index + 1 if index + 1 < len(self._times) else None
                    return True
        except FFmpegError:
            pass
        return False

    def _keep(self, position: int, frame: av.VideoFrame) -> None:
        pixels: Pixels = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
        if frame.rotation % 360:
            pixels = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
        if self.height > 0:
            check_size(pixels, self.height, self.width, f"frame {position} of {self._label}")
        self._kept[position] = pixels
        self._kept.move_to_end(position)
        while len(self._kept) > KEPT_FRAMES:
            self._kept.popitem(last=False)


def _stamp(timed: av.Packet | av.VideoFrame) -> int | None:
    return timed.pts if timed.pts is not None else timed.dts


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return str(text).splitlines()[0]
