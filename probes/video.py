"""Frames of a video, decoded when they are needed: from a folder, a video file, an array, a stream or a device.

Stock sam2 decodes a whole clip up front and holds 12 MiB a frame at 1024 x 1024 pixels. Here a frame is
decoded when it is asked for and only the latest few are kept.
"""

from __future__ import annotations

import operator
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image

from probes.errors import InputError, tell_left_out
from probes.file_frames import open_file
from probes.frames import KEPT_FRAMES, ArrayVideo, FolderVideo, Pixels, StreamVideo
from probes.frames import EndOfVideo as EndOfVideo
from probes.live import LiveVideo, is_live

MEAN = (0.485, 0.456, 0.406)
"""Mean of the pixels SAM 2 was trained with, in [0, 1] (sam2/utils/misc.py:178)."""

STD = (0.229, 0.224, 0.225)
"""Their standard deviation."""

AHEAD = 3
"""Frames that are read ahead."""

Resize = Literal["pillow", "torch"]
"""How pictures come to the model's size, bicubic and smoothed both: as stock does, or by torch, whose weights are rounded to 16
bits: 3 to 10 times as fast. Values differ by 2 of 255 at most; of pictures of 240p and more 1 in 150 or fewer do."""

COLUMNS_FIRST = int(PIL.__version__.partition(".")[0]) >= 13
"""Whether Pillow takes the columns of some upright pictures first, as it does from 13.0 on; between the passes values are rounded
and cut off at 0 and 255, so the other order may be tens of 255 off."""

THUMBNAIL = 16
"""Side of a frame's thumbnail, by which scene changes are noticed."""


Item = TypeVar("Item")


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


def open_video(source: Any, strict: bool = False) -> VideoSource:
    """Open anything that holds frames.

    What is left out of a folder or file (pictures that are no frames, what is damaged or lost) is named in a
    warning `probes.errors.LeftOut` each, and in the attribute `notes` of what is returned.

    Parameters
    ----------
    source
        A folder of JPEG or PNG frames, a video file (mp4, mov, webm, …; a path or its bytes), an array
        uint8 ``[T, H, W, 3]`` of numpy, torch or anything else that numpy reads, a sequence or an iterator
        of frames uint8 ``[H, W, 3]`` (an iterator is read forward only, so a camera works), or a
        `VideoSource`, which is returned as it is. A str may be the address of a stream (``rtsp://…``, ``rtmp://…``,
        ``udp://…``, ``tcp://…``, ``http://…``, ``srt://…``; what FFmpeg was built with) or a device (``/dev/video0``,
        ``avfoundation:0``, ``dshow:video=NAME``), which are read forward only too.
    strict
        Refuse where anything is left out.

    Raises
    ------
    InputError
        There is no such file, no answer from an address, it holds no frames, it is none of these things, or something is
        left out and `strict` is set.

    Notes
    -----
    Pictures come out upright as their EXIF says, videos as their display matrix does: as viewers, players and tools
    to draw masks show them. Stock sam2 doesn't turn pictures; those that need no turn are equal to stock's.
    """
    opened = _open(source)
    if strict or opened is not source:
        tell_left_out(notes_of(opened), strict)
    return opened


def notes_of(source: VideoSource) -> tuple[str, ...]:
    """What is left out of a video, a line each; none where its kind of source doesn't say."""
    return tuple(getattr(source, "notes", ()))


def _open(source: Any) -> VideoSource:
    if isinstance(source, VideoSource):
        return source
    if isinstance(source, (str, Path)):
        if is_live(source):
            return LiveVideo(source)
        path = Path(source)
        if path.is_dir():
            return FolderVideo(path)
        if not path.exists():
            raise InputError(
                f"{path} does not exist; expected a folder of JPEG or PNG frames or a video file; "
                "check the path"
            )
    if isinstance(source, (str, Path, bytes)):
        return open_file(source)
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


class ReadAhead(Generic[Item]):
    """Items by their index: what is asked for one after the other, forward or back, is made in a thread ahead.

    Whoever makes them is called by one thread at a time, but by another one than its caller's.

    Parameters
    ----------
    make
        From an index to its item. What it raises is raised where the item is asked for.
    ahead
        Items that are made ahead at most; 0: none.

    Attributes
    ----------
    seconds
        Spent in `make` so far.
    """

    def __init__(self, make: Callable[[int], Item], ahead: int) -> None:
        self._make, self._ahead = make, ahead
        self._last: int | None = None
        self._coming: dict[int, Future[Item]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """A copy has nothing made ahead."""
        return {**self.__dict__, "_coming": {}, "_pool": None, "_last": None}

    def read(self, index: int, count: int) -> Item:
        """Return an item, and begin to make those that come next among the first `count`."""
        if self._process != os.getpid():  # threads don't come with a fork
            self._coming, self._pool, self._process = {}, None, os.getpid()
        step = 0 if self._last is None else index - self._last
        self._last = index
        coming = self._coming.pop(index, None)
        wanted = (
            range(index + step, index + step * (self._ahead + 1), step) if abs(step) == 1 else []
        )
        for other in [i for i in self._coming if i not in wanted]:
            self._coming.pop(other).cancel()
        if coming is None and (wanted or self._coming or self._pool):
            coming = self._submit(index)
        for i in wanted:
            if 0 <= i < count and i not in self._coming:
                self._coming[i] = self._submit(i)
        return self._make(index) if coming is None else coming.result()

    def _submit(self, index: int) -> Future[Item]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="frames")
        return self._pool.submit(self._make, index)


class ModelFrames:
    """A video's frames as the model wants them: square, normalised, made when asked for.

    Stands in for the tensor of all frames that stock sam2 keeps, ``[T, 3, S, S]`` float32, and behaves like it: shape,
    indices and slices, frames that are written, and functions and methods of torch, which are given the whole tensor.
    ``frames[i]`` is equal to stock's for a folder of JPEG frames.

    Parameters
    ----------
    source
        The video.
    image_size
        Side S of the model's input, in pixels.
    device
        Where the tensors are to be.

    Attributes
    ----------
    resize
        How frames are resized that are asked for from now on, those that were read before included.
    seconds
        Spent so far on reading frames and making tensors of them, also in the thread that reads ahead where frames are
        asked for one after the other: of files, folders and arrays, and of sources that say ``reads_ahead``. An iterator is
        asked for a frame when it is needed, as one of somebody's camera may end where nothing waits.
    """

    def __init__(self, source: VideoSource, image_size: int, device: torch.device | str) -> None:
        self.source = source
        self.seconds = 0.0
        self.resize: Resize = "pillow"
        self.image_size = image_size
        self.device = torch.device(device)
        # of each channel and value; the division is in float64 and rounded once, as in stock
        values = (np.arange(256) / 255.0).astype(np.float32)
        mean, std = (np.array(given, np.float32)[:, None] for given in (MEAN, STD))
        self._values = (values - mean) / std
        on_cpu = self.device.type == "cpu"
        self._rows = None if on_cpu else torch.from_numpy(self._values).to(self.device)
        self._kept: OrderedDict[int, tuple[Pixels, torch.Tensor, Resize]] = OrderedDict()
        self._written: dict[int, torch.Tensor] = {}
        ahead = AHEAD if getattr(source, "reads_ahead", False) else 0
        self._reader = ReadAhead(self._load, ahead)

    dtype, ndim = torch.float32, 4

    @property
    def num_frames(self) -> int:
        """Length of the video; ``sys.maxsize`` for a stream that has not ended, as sam2's loops want a number."""
        return sys.maxsize if self.source.num_frames is None else self.source.num_frames

    @property
    def shape(self) -> torch.Size:
        """``[T, 3, S, S]``."""
        return torch.Size((len(self), 3, self.image_size, self.image_size))

    def whole(self) -> torch.Tensor:
        """All frames in one tensor ``[T, 3, S, S]``; a stream is read to its end."""
        found: list[torch.Tensor] = []
        while has_frame(self.source, len(found)):
            found.append(self[len(found)])
        return torch.stack(found)

    def __getattr__(self, name: str) -> Any:
        """What a tensor has besides: of the whole one."""
        if name.startswith("_") or not hasattr(torch.Tensor, name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.whole(), name)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch on whole tensors."""

        def whole(tree: Any) -> Any:
            if isinstance(tree, list | tuple):
                return type(tree)(map(whole, tree))
            return tree.whole() if isinstance(tree, cls) else tree

        return func(*whole(args), **{name: whole(item) for name, item in (kwargs or {}).items()})

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[index] for index in range(len(self)))

    def __len__(self) -> int:
        if self.source.num_frames is None:
            raise TypeError("a stream has no length before its end; read frames until EndOfVideo")
        return self.source.num_frames

    def _position(self, index: Any) -> int:
        """A frame's place, counted from the start."""
        place = operator.index(index)
        return place + len(self) if place < 0 else place

    def written(self, index: int) -> torch.Tensor | None:
        """The picture ``[3, S, S]`` that was put in a frame's place, if any."""
        return self._written.get(index)

    def __setitem__(self, index: Any, frame: Any) -> None:
        """Put another picture ``[3, S, S]`` in a frame's place."""
        place = self._position(index)
        self._written[place] = torch.as_tensor(frame, dtype=self.dtype, device=self.device)

    def __getitem__(self, index: Any) -> torch.Tensor:
        if isinstance(index, slice):
            frames = [self[i] for i in range(len(self))[index]]
            return torch.stack(frames) if frames else torch.empty((0, *self.shape[1:]))
        if isinstance(index, tuple) and index and isinstance(index[0], int):
            return self[index[0]][index[1:]]
        if not hasattr(index, "__index__") or getattr(index, "ndim", None):
            return self.whole()[index]
        index = self._position(index)
        return self._written[index] if index in self._written else self._read(index)[1]

    def pixels(self, index: int) -> Pixels:
        """Return frame `index` of the video as RGB, uint8 ``[H, W, 3]``; the latest ones without reading them again."""
        return self._read(index)[0]

    def _read(self, index: int) -> tuple[Pixels, torch.Tensor, Resize]:
        if index not in self._kept:
            self._kept[index] = self._reader.read(index, self.num_frames)
            if len(self._kept) > KEPT_FRAMES:
                self._kept.popitem(last=False)
        if self._kept[index][2] != self.resize:  # it was read before another way was wanted
            self._kept[index] = self._made(self._kept[index][0])
        return self._kept[index]

    def _load(self, index: int) -> tuple[Pixels, torch.Tensor, Resize]:
        """Read a frame and make of it what the model takes."""
        begun = time.perf_counter()
        made = self._made(self.source.frame(index))
        self.seconds += time.perf_counter() - begun
        return made

    def _made(self, pixels: Pixels) -> tuple[Pixels, torch.Tensor, Resize]:
        resize = self.resize
        square = resized(pixels, self.image_size, resize)
        if self._rows is None:
            planes = [np.take(row, square[..., c]) for c, row in enumerate(self._values)]
            frame = torch.from_numpy(np.stack(planes))
        else:  # a byte a value travels
            sent = torch.from_numpy(square).pin_memory().to(self.device, non_blocking=True)
            places = sent.permute(2, 0, 1).reshape(3, -1).long()
            frame = self._rows.gather(1, places).view(3, *square.shape[:2])
        return pixels, frame, resize


def resized(pixels: Pixels, side: int, how: Resize) -> Pixels:
    """Bring a picture, uint8 ``[H, W, 3]``, to ``[side, side, 3]``, bicubic and smoothed."""
    if how == "pillow":
        return np.asarray(Image.fromarray(pixels).resize((side, side)))
    # a view of channels that lie together: torch's fast path
    planes = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)[None]
    height, width = planes.shape[2:]
    if COLUMNS_FIRST and height > side and height + side > 2 * width:
        planes = F.interpolate(planes, (side, width), mode="bicubic", antialias=True)
    square = F.interpolate(planes, (side, side), mode="bicubic", antialias=True)
    found: Pixels = square[0].permute(1, 2, 0).numpy()
    return found


def thumbnail(frame: torch.Tensor) -> torch.Tensor:
    """Shrink a frame as the model takes it, ``[3, S, S]``, to ``[3, 16, 16]`` in units of full scale (their mean off)."""
    spread = frame.new_tensor(STD, dtype=torch.float32).view(3, 1, 1)
    return F.adaptive_avg_pool2d(frame[None].float(), THUMBNAIL)[0] * spread


def new_state(
    images: ModelFrames | torch.Tensor,
    num_frames: int,
    size: tuple[int, int],
    device: torch.device,
    storage: torch.device,
    frames_on_cpu: bool,
) -> dict[str, Any]:
    """Begin the dict in which sam2 keeps a video, as its ``init_state`` does (sam2 1.1.0).

    Parameters
    ----------
    images
        The frames as the model wants them, ``[T, 3, S, S]``.
    num_frames, size
        Of the video, ``sys.maxsize`` for a stream, and its height and width in pixels.
    device, storage
        Where the model is, and where results are kept.
    frames_on_cpu
        Whether decoded frames are kept in main memory.
    """
    state: dict[str, Any] = {
        "images": images,
        "num_frames": num_frames,
        "offload_video_to_cpu": frames_on_cpu,
        "offload_state_to_cpu": storage != device,
        "video_height": size[0],
        "video_width": size[1],
        "device": device,
        "storage_device": storage,
        "obj_id_to_idx": OrderedDict(),
        "obj_idx_to_id": OrderedDict(),
        "obj_ids": [],
    }
    per_object = (
        "point_inputs_per_obj",
        "mask_inputs_per_obj",
        "cached_features",
        "constants",
        "output_dict_per_obj",
        "temp_output_dict_per_obj",
        "frames_tracked_per_obj",
    )
    return state | {key: {} for key in per_object}
