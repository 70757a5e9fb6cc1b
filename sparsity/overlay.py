"""A video of frames with masks drawn over them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

FRAMES_PER_SECOND = 24.0
"""Where the source doesn't say."""


def write_video(path: Path, frames: Iterable[Pixels], fps: float | None) -> None:
    """Write frames uint8 ``[H, W, 3]`` as an H.264 mp4; the file is whole or absent.

    A side of odd length loses its last pixel row or column, because the format wants even sides.
    """
    # absolute: FFmpeg would take "tiny:exact/overlay.mp4" for an address
    part = path.absolute().with_name(f".{path.name}.part")
    rate = Fraction(fps or FRAMES_PER_SECOND).limit_denominator(1001)
    try:
        with av.open(str(part), "w", format="mp4") as container:
            stream: Any = None
            for pixels in frames:
                height, width = (max(2, side // 2 * 2) for side in pixels.shape[:2])
                if stream is None:
                    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
                    stream = container.add_stream(codec, rate=rate)
                    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                    if codec == "libx264":
                        stream.options = {"crf": "20", "preset": "veryfast"}
                even = np.ascontiguousarray(pixels[:height, :width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
            if stream is not None:
                container.mux(stream.encode())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
