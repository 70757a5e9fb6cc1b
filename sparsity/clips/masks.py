"""Masks in files: indexed PNG in the DAVIS palette, one value an object; and drawn over frames."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor

from probes.container import RATES
from probes.errors import InputError
from probes.files import whole
from probes.pictures import open_picture
from sparsity.clips.drawn import LAST_ID, Ids
from sparsity.clips.drawn import read_mask as read_mask

HASH_FIELD = "efficient-sam2"
"""Text field of a written PNG that holds the hash of the run's settings."""


def davis_palette() -> Ids:
    """Return the palette of the DAVIS annotations, uint8 ``[256, 3]``.

    The first 22 colours are those of PASCAL VOC with 191 for 192, the others greys.

    >>> davis_palette()[[1, 2, 9, 22]].tolist()
    [[128, 0, 0], [0, 128, 0], [191, 0, 0], [22, 22, 22]]
    """
    ids = np.arange(256)
    palette = np.repeat(ids[:, None], 3, axis=1)
    for channel in range(3):
        high, low = (ids >> channel) & 1, (ids >> (channel + 3)) & 1
        palette[:22, channel] = np.minimum(128 * high + 64 * low, 191)[:22]
    return palette.astype(np.uint8)


PALETTE = davis_palette()


def merge_objects(logits: Tensor, object_ids: Sequence[int], size: tuple[int, int]) -> Ids:
    """Return one id a pixel ``[H, W]``: of the object with the highest logit above 0, of equal ones the first; else 0.

    Parameters
    ----------
    logits
        ``[objects, H, W]``, on whatever device; what is moved to the host are the ids.
    object_ids
        In the same order; uint8 where they fit.
    size
        H and W, where there may be no object.
    """
    if not len(object_ids):
        return np.zeros(size, np.uint8)
    kind = torch.uint8 if max(object_ids) <= 255 else torch.int32
    best, ids = logits[0], (logits[0] > 0).to(kind).mul_(object_ids[0])
    for logit, number in zip(logits[1:], object_ids[1:], strict=True):
        ids.masked_fill_((logit > best) & (logit > 0), number)
        best = torch.maximum(best, logit)
    merged: Ids = ids.cpu().numpy()
    return merged


def write_mask(path: Path, ids: Ids, settings_hash: str) -> None:
    """Write an indexed PNG that carries `settings_hash`; the file is whole or absent."""
    image = Image.fromarray(ids)
    image.putpalette(PALETTE.tobytes())
    _write(path, image, settings_hash)


def write_layer(path: Path, layer: NDArray[np.bool_], settings_hash: str) -> None:
    """Write one object's mask, bool ``[H, W]``, as a black and white PNG; see `write_mask`."""
    _write(path, Image.fromarray(layer), settings_hash)


def _write(path: Path, image: Image.Image, settings_hash: str) -> None:
    note = PngImagePlugin.PngInfo()
    note.add_text(HASH_FIELD, settings_hash)
    with whole(path) as part:
        image.save(part, format="PNG", pnginfo=note, compress_level=1, compress_type=zlib.Z_RLE)


def written_by(path: Path, settings_hash: str) -> bool:
    """Tell whether `path` is a mask that a run with these settings wrote."""
    try:
        with open_picture(path, "a mask") as image:
            return image.info.get(HASH_FIELD) == settings_hash
    except InputError:
        return False


def draw_over(frame: Ids, ids: Ids) -> Ids:
    """Return the frame with each object tinted and outlined in its colour.

    Parameters
    ----------
    frame
        RGB, uint8 ``[H, W, 3]``.
    ids
        ``[H, W]``.
    """
    drawn = frame.copy()
    rows, columns = np.flatnonzero(ids.any(1)), np.flatnonzero(ids.any(0))
    if not len(rows):
        return drawn
    # one row and one column of background with them, as edges are told by what is above and to the left
    box = (
        slice(max(0, rows[0] - 1), rows[-1] + 1), slice(max(0, columns[0] - 1), columns[-1] + 1),
    )  # fmt: skip
    ids, part = ids[box], drawn[box]
    edge = np.zeros(ids.shape, bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    if ids.dtype != np.uint8:
        ids = np.where(ids > 0, 1 + (ids - 1) % LAST_ID, 0).astype(np.uint8)
    colours: Ids = cv2.merge([cv2.LUT(ids, PALETTE[:, c].copy()) for c in range(3)]).astype(
        np.uint8
    )
    half = np.bitwise_xor(part, colours)
    half >>= 1
    half += part & colours  # their mean, rounded down
    cv2.copyTo(half, ids, part)
    cv2.copyTo(colours, ids * edge, part)
    return drawn


Pixels = NDArray[np.uint8]

FRAMES_PER_SECOND = 24.0
"""Where the source doesn't say, or says what can't be."""


THREADS = 1
"""Of the encoder: the model wants the cores."""


class VideoWriter:
    """Frames uint8 ``[H, W, 3]``, one by one, as an H.264 mp4.

    A side of odd length loses its last pixel row or column, because the format wants even sides.

    Parameters
    ----------
    path
        Written to at once; give a name of `probes.files.whole`.
    fps
        Frames a second; None or what can't be: 24.
    """

    def __init__(self, path: Path, fps: float | None) -> None:
        believed = fps is not None and RATES[0] <= fps <= RATES[1]
        self.rate = Fraction(fps if fps and believed else FRAMES_PER_SECOND).limit_denominator(1001)
        self._container: Any = av.open(str(path), "w", format="mp4")
        self._stream: Any = None

    def add(self, pixels: Pixels) -> None:
        """Encode a frame."""
        height, width = (max(2, side // 2 * 2) for side in pixels.shape[:2])
        if self._stream is None:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            self._stream = stream = self._container.add_stream(codec, rate=self.rate)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.thread_count = THREADS
            if codec == "libx264":
                stream.options = {"qp": "20", "preset": "ultrafast"}
        even: Any = np.ascontiguousarray(pixels[:height, :width])
        if even.shape[:2] != (height, width):  # a side of one pixel
            even = cv2.resize(even, (width, height))
        # ITU-R BT.601, as swscale does by default, in a fifth of its time
        planes: Any = cv2.cvtColor(even, cv2.COLOR_RGB2YUV_I420)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is None and self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()


def write_video(path: Path, frames: Iterable[Pixels], fps: float | None) -> None:
    """Write frames as `VideoWriter` does; the file is whole or absent."""
    with whole(path) as part, VideoWriter(part, fps) as writer:
        for pixels in frames:
            writer.add(pixels)


def join_videos(path: Path, parts: Sequence[Path]) -> None:
    """Write the frames of parts of `VideoWriter` one after the other, without encoding them anew; whole or absent."""
    with whole(path) as part, av.open(str(part), "w", format="mp4") as out:
        stream: Any = None
        before = 0
        for file in parts:
            with av.open(str(file.absolute())) as container:
                (given,) = container.streams.video
                if stream is None:
                    stream = out.add_stream_from_template(given)
                ticks = round(
                    1 / (Fraction(given.average_rate or 1) * Fraction(given.time_base or 1))
                )
                for packet in container.demux(given):
                    if packet.pts is None or packet.dts is None:  # the end
                        continue
                    packet.pts += before * ticks
                    packet.dts += before * ticks
                    packet.stream = stream
                    out.mux(packet)
                before += given.frames


def frames_in(path: Path) -> int:
    """Return how many frames a video of `VideoWriter` has."""
    with av.open(str(path.absolute())) as container:
        count: int = container.streams.video[0].frames
        return count
