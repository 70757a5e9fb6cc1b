"""Frames of a video, decoded when they are needed: from a folder, a video file, an array or a stream.

Stock sam2 decodes a whole clip up front and holds 12 MiB a frame at 1024 x 1024 pixels. Here a frame is
decoded when it is asked for and only the latest few are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image

from probes.errors import InputError
from probes.frames import KEPT_FRAMES, ArrayVideo, FolderVideo, Pixels, StreamVideo
from probes.frames import EndOfVideo as EndOfVideo

MEAN = (0.485, 0.456, 0.406)
"""Mean of the pixels SAM 2 was trained with, in [0, 1] (sam2/utils/misc.py:178)."""

STD = (0.229, 0.224, 0.225)
"""Their standard deviation."""


@runtime_checkable
class VideoSource(Protocol):
    """A video whose frames are read by index.

    Attributes
    ----------
    height, width
        Size of a frame in pixels.
    num_frames
        Number of frames; None while the end of a stream has not been seen.
    fps
        Frames a second, or None where the source does not say.
    names
        One name a frame (file names without suffix), or None.
    """

    height: int
    width: int
    fps: float | None
    names: list[str] | None

    @property
    def num_frames(self) -> int | None: ...

    def frame(self, index: int) -> Pixels:
        """Return frame `index` as RGB, uint8 ``[H, W, 3]``."""
        ...


def open_video(source: Any) -> VideoSource:
    """Open anything that holds frames.

    Parameters
    ----------
    source
        A folder of JPEG or PNG frames, a video file (mp4, mov, webm, …; a path or its bytes), an array
        uint8 ``[T, H, W, 3]`` of numpy, torch or anything else that numpy reads, a sequence or an iterator
        of frames uint8 ``[H, W, 3]`` (an iterator is read forward only, so a camera works), or a
        `VideoSource`, which is returned as it is.

    Raises
    ------
    InputError
        There is no such file, it holds no frames, or it is none of these things.
    """
    if isinstance(source, VideoSource):
        return source
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.is_dir():
            return FolderVideo(path)
        if not path.exists():
            raise InputError(
                f"{path} does not exist; expected a folder of JPEG or PNG frames or a video file; "
                "check the path"
            )
    if isinstance(source, (str, Path, bytes)):
        from probes.videofile import FileVideo

        return FileVideo(source)
    if isinstance(source, Sequence) or hasattr(source, "__array__"):
        return ArrayVideo(source)
    if isinstance(source, Iterable):
        return StreamVideo(source)
    raise InputError(
        f"{type(source).__name__} given as video; expected a folder, a video file, an array uint8 "
        "[T, H, W, 3] or an iterator of frames; pass one of these"
    )


def has_frame(source: VideoSource, index: int) -> bool:
    """Whether a video has frame `index`; a stream is read up to it."""
    try:
        source.frame(index)
    except EndOfVideo:
        return False
    return True


class ModelFrames:
    """A video's frames as the model wants them: square, normalised, made when asked for.

    Stands in for the tensor of all frames that stock sam2 keeps. ``frames[i]`` is a float32 tensor
    ``[3, S, S]``, equal to stock's for a folder of JPEG frames.

    Parameters
    ----------
    source
        The video.
    image_size
        Side S of the model's input, in pixels.
    device
        Where the tensors are to be.
    """

    def __init__(self, source: VideoSource, image_size: int, device: torch.device | str) -> None:
        self.source = source
        self.image_size = image_size
        self.device = torch.device(device)
        self._mean = torch.tensor(MEAN, device=self.device)[:, None, None]
        self._std = torch.tensor(STD, device=self.device)[:, None, None]
        self._kept: OrderedDict[int, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        if self.source.num_frames is None:
            raise TypeError("a stream has no length before its end; read frames until EndOfVideo")
        return self.source.num_frames

    def __getitem__(self, index: int) -> torch.Tensor:
        if index not in self._kept:
            self._kept[index] = self._make(self.source.frame(index))
            if len(self._kept) > KEPT_FRAMES:
                self._kept.popitem(last=False)
        return self._kept[index]

    def _make(self, pixels: Pixels) -> torch.Tensor:
        square = Image.fromarray(pixels).resize((self.image_size, self.image_size))
        # the division is in float64 and rounded once, as in stock
        values = torch.from_numpy(np.asarray(square) / 255.0).permute(2, 0, 1)
        frame = values.to(torch.float32).contiguous().to(self.device)
        return frame.sub_(self._mean).div_(self._std)
