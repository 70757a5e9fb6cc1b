"""Annotated clips as data sets lay them out: DAVIS, YouTube-VOS and MOSE, and SA-V.

========================  ========================  ============================  ==========================
layout                    frames                    annotations                   objects
========================  ========================  ============================  ==========================
DAVIS                     JPEGImages/480p/CLIP      Annotations/480p/CLIP/*.png   on the first frame
YouTube-VOS, MOSE         JPEGImages/CLIP           Annotations/CLIP/*.png        may come later
SA-V                      JPEGImages_24fps/CLIP     Annotations_6fps/CLIP/ID/…    may come later, may overlap
========================  ========================  ============================  ==========================

DAVIS annotates every frame; the others may leave frames out. An object that comes later is prompted on the
first frame that shows it, as sam2's own evaluation does with ``--track_object_appearing_later_in_video``.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from probes.errors import InputError
from probes.video import VideoSource, open_video
from sparsity.masks import Ids, read_mask

FEWEST_FRAMES = 3
"""The first frame is the prompt and the last one is skipped."""

Masks = Ids | NDArray[np.bool_]
"""Masks of one frame: ids ``[H, W]``, or where objects may overlap one layer an object, bool ``[O, H, W]``."""


@dataclass(frozen=True)
class Layout:
    """How a data set is laid out.

    Attributes
    ----------
    frames, annotations
        Folders that hold a folder a clip.
    every_frame
        Whether every frame must have its annotation, and objects that come later don't count.
    layered
        Whether each object has a folder of binary pictures of its own.
    """

    name: str
    frames: Path
    annotations: Path
    every_frame: bool = False
    layered: bool = False


LAYOUTS = (
    Layout("DAVIS", Path("JPEGImages/480p"), Path("Annotations/480p"), every_frame=True),
    Layout("SA-V", Path("JPEGImages_24fps"), Path("Annotations_6fps"), layered=True),
    Layout("YouTube-VOS or MOSE", Path("JPEGImages"), Path("Annotations")),
)


@dataclass(frozen=True)
class AnnotatedClip:
    """A video with true masks.

    Attributes
    ----------
    annotations
        Pictures by the index of the frame they are of, ascending: one a frame, or one an object where
        objects may overlap.
    starts
        By object id, ascending: index of the frame it is prompted on.
    layered
        Whether objects may overlap.
    """

    name: str
    video: VideoSource
    annotations: dict[int, dict[int, Path]]
    starts: dict[int, int]
    layered: bool = False

    @property
    def objects(self) -> tuple[int, ...]:
        """Ids of the objects that count, ascending."""
        return tuple(self.starts)

    @property
    def num_frames(self) -> int:
        """Length of the video."""
        assert self.video.num_frames is not None, "frames of a folder can be counted"
        return self.video.num_frames

    def truth(self, frame: int) -> Masks:
        """Return the true masks of an annotated frame; objects that don't count are background.

        Raises
        ------
        InputError
            The annotation can't be read or has another size than the video.
        """
        pictures = {i: self._read(path) for i, path in self.annotations[frame].items()}
        if self.layered:
            empty = np.zeros((self.video.height, self.video.width), np.uint8)
            return np.stack([pictures.get(i, empty) > 0 for i in self.objects])
        (ids,) = pictures.values()
        return np.where(np.isin(ids, self.objects), ids, 0).astype(np.uint8)

    def prompts(self, frame: int = 0) -> dict[int, NDArray[np.bool_]]:
        """Return the objects that are prompted on a frame, bool ``[H, W]`` by id."""
        first = self.truth(frame)
        return {
            i: first[self.objects.index(i)].astype(bool) if self.layered else first == i
            for i, start in self.starts.items()
            if start == frame
        }

    def _read(self, path: Path) -> Ids:
        ids = read_mask(path)
        if ids.shape != (self.video.height, self.video.width):
            raise _wrong_size(path, ids.shape[::-1], (self.video.width, self.video.height))
        return ids


def find_layout(root: Path) -> Layout:
    """Tell how a folder is laid out.

    Raises
    ------
    InputError
        It is of none of `LAYOUTS`.
    """
    for layout in LAYOUTS:
        if (root / layout.frames).is_dir() and (root / layout.annotations).is_dir():
            return layout
    known = "; ".join(f"{x.name}: {x.frames} and {x.annotations}" for x in LAYOUTS)
    raise InputError(
        f"{root} is of no known layout; expected the folders of one of them ({known}), each with a folder "
        "a clip; give the folder that holds both"
    )


def clip_names(root: Path, listed: Path | None = None) -> list[str]:
    """Return the names of the clips under `root`, or of those that a file lists, one a line.

    Raises
    ------
    InputError
        `root` is of no known layout, or there is no such list, or no such clip.
    """
    frames = root / find_layout(root).frames
    known = sorted(p.name for p in frames.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not known:
        raise InputError(f"{frames} holds no clip; expected one or more; check the path")
    names = known if listed is None else listed_names(listed)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 3) or known[:3]
            raise InputError(
                f"clip {name!r} listed; {root} has {len(known)} others such as {', '.join(close)}; "
                "correct the list"
            )
    return names


def open_clip(root: Path, name: str) -> AnnotatedClip:
    """Open a clip and check that its annotations are there and of its size.

    Raises
    ------
    InputError
        It is too short, an annotation is missing, of another size or of no frame, or there is no object.
    """
    layout = find_layout(root)
    video = open_video(root / layout.frames / name)
    assert video.names is not None, "frames of a folder have names"
    if len(video.names) < FEWEST_FRAMES:
        raise InputError(
            f"clip {name} has {len(video.names)} frames; expected {FEWEST_FRAMES} or more, as the first "
            "and the last one don't count; leave it out"
        )
    annotations = _annotations(root / layout.annotations / name, video.names, layout)
    if len(annotations) < FEWEST_FRAMES:
        raise InputError(
            f"clip {name} has {len(annotations)} annotated frames; expected {FEWEST_FRAMES} or more, as the "
            "first and the last one don't count; leave it out"
        )
    for path in (path for pictures in annotations.values() for path in pictures.values()):
        size = _size(path)
        if size != (video.width, video.height):
            raise _wrong_size(path, size, (video.width, video.height))
    starts = _starts(annotations, layout)
    if not starts:
        first = next(iter(annotations[min(annotations)].values()))
        raise InputError(
            f"{first} is empty{'' if layout.every_frame else ', and so are the others'}; expected the "
            f"objects to track; leave clip {name} out"
        )
    return AnnotatedClip(name, video, annotations, starts, layout.layered)


def _annotations(folder: Path, names: list[str], layout: Layout) -> dict[int, dict[int, Path]]:
    """Find the pictures of each annotated frame, by object id; id 0 stands for all objects in one picture."""
    frames = {name: index for index, name in enumerate(names)}
    if layout.layered:
        folders = {int(p.name) + 1: p for p in sorted(folder.glob("*")) if p.name.isdigit()}
    else:
        folders = {0: folder}
    found: dict[int, dict[int, Path]] = {}
    for object_id, pictures in folders.items():
        for path in sorted(pictures.glob("[!.]*.png")):
            if path.stem not in frames:
                raise InputError(
                    f"{path} is of no frame of clip {folder.name}; expected names of its frames such as "
                    f"{names[0]}.png; remove it"
                )
            found.setdefault(frames[path.stem], {})[object_id] = path
    missing = [name for name, index in frames.items() if index not in found]
    if missing and (layout.every_frame or not found):
        raise InputError(
            f"{folder / missing[0]}.png is missing, one of {len(missing)} annotations of clip "
            f"{folder.name}; expected {'one for each of its frames' if layout.every_frame else 'some'}; "
            "add them or leave the clip out"
        )
    return dict(sorted(found.items()))


def _starts(annotations: dict[int, dict[int, Path]], layout: Layout) -> dict[int, int]:
    """Find the frame that shows each object first, among those that leave a frame to count."""
    starts: dict[int, int] = {}
    frames = list(annotations)
    for frame in frames[:1] if layout.every_frame else frames[:-2]:
        for key, path in annotations[frame].items():
            ids = np.unique(read_mask(path))
            for value in ids[ids > 0].tolist():
                starts.setdefault(key if layout.layered else int(value), frame)
    return dict(sorted(starts.items()))


def _size(path: Path) -> tuple[int, int]:
    """Return a picture's width and height without decoding it."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError):
        raise InputError(
            f"annotation {path} can't be read as a picture; expected an indexed PNG; replace it"
        ) from None


def _wrong_size(path: Path, found: tuple[int, ...], wanted: tuple[int, int]) -> InputError:
    return InputError(
        f"annotation {path} is {found[0]}x{found[1]}; its frame is {wanted[0]}x{wanted[1]}; give "
        "annotations of the video's size"
    )


def clip_folders(root: Path, name: str) -> tuple[Path, ...]:
    """Return where the frames and the annotations of a clip lie, the frames first."""
    layout = find_layout(root)
    annotations = root / layout.annotations / name
    each = sorted(p for p in annotations.glob("*") if p.is_dir()) if layout.layered else []
    return root / layout.frames / name, annotations, *each


def listed_names(path: Path) -> list[str]:
    """Read the names of clips, one a line, each taken once.

    Raises
    ------
    InputError
        The file can't be read, or names no clip.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"list of clips {path} can't be read; expected a text file with a name a line; check the path"
        ) from None
    names = list(dict.fromkeys(filter(None, lines)))
    if not names:
        raise InputError(f"{path} names no clip; expected one a line; add them, or leave it out")
    return names
