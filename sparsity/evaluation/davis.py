"""Annotated clips in DAVIS layout: ``JPEGImages/480p/CLIP/*.jpg`` and ``Annotations/480p/CLIP/*.png``."""

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

FRAMES, ANNOTATIONS = Path("JPEGImages/480p"), Path("Annotations/480p")

FEWEST_FRAMES = 3
"""The first frame is the prompt and the last one is skipped."""


@dataclass(frozen=True)
class AnnotatedClip:
    """A video with the true masks of the objects that are on its first frame.

    Attributes
    ----------
    annotations
        A picture a frame.
    objects
        Their ids, ascending.
    """

    name: str
    video: VideoSource
    annotations: tuple[Path, ...]
    objects: tuple[int, ...]

    def truth(self, frame: int) -> Ids:
        """Return the true ids, uint8 ``[H, W]``; objects that come later are background.

        Raises
        ------
        InputError
            The annotation can't be read or has another size than the video.
        """
        path = self.annotations[frame]
        ids = read_mask(path)
        if ids.shape != (self.video.height, self.video.width):
            raise _wrong_size(path, ids.shape[::-1], (self.video.width, self.video.height))
        return np.where(np.isin(ids, self.objects), ids, 0).astype(np.uint8)

    def prompts(self) -> dict[int, NDArray[np.bool_]]:
        """Return the objects on the first frame, bool ``[H, W]`` by id."""
        first = self.truth(0)
        return {object_id: first == object_id for object_id in self.objects}


def clip_names(root: Path, listed: Path | None = None) -> list[str]:
    """Return the names of the clips under `root`, or of those that a file lists, one a line.

    Raises
    ------
    InputError
        `root` is not of DAVIS layout, or there is no such list, or no such clip.
    """
    for folder in (FRAMES, ANNOTATIONS):
        if not (root / folder).is_dir():
            raise InputError(
                f"{root} has no folder {folder}; expected DAVIS layout ({FRAMES}/CLIP/*.jpg and "
                f"{ANNOTATIONS}/CLIP/*.png); give the folder that holds both"
            )
    known = sorted(p.name for p in (root / FRAMES).iterdir() if p.is_dir())
    if listed is None:
        names = known
    else:
        names = list(dict.fromkeys(_lines(listed)))
    if not names:
        raise InputError(
            f"{listed or root / FRAMES} names no clip; expected one or more; check the path"
        )
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 3) or known[:3]
            raise InputError(
                f"clip {name!r} listed; {root} has {len(known)} others such as {', '.join(close)}; "
                "correct the list"
            )
    return names


def open_clip(root: Path, name: str) -> AnnotatedClip:
    """Open a clip and check that every frame has an annotation of its size.

    Raises
    ------
    InputError
        It is too short, an annotation is missing or of another size, or its first one is empty.
    """
    video = open_video(root / FRAMES / name)
    assert video.names is not None, "frames of a folder have names"
    if len(video.names) < FEWEST_FRAMES:
        raise InputError(
            f"clip {name} has {len(video.names)} frames; expected {FEWEST_FRAMES} or more, as the first "
            "and the last one don't count; leave it out"
        )
    annotations = tuple(root / ANNOTATIONS / name / f"{frame}.png" for frame in video.names)
    missing = [path for path in annotations if not path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]} is missing, one of {len(missing)} annotations of clip {name}; expected one for "
            "each of its frames; add them or leave the clip out"
        )
    for path in annotations:
        size = _size(path)
        if size != (video.width, video.height):
            raise _wrong_size(path, size, (video.width, video.height))
    objects = tuple(int(i) for i in np.unique(read_mask(annotations[0])) if i)
    if not objects:
        raise InputError(
            f"{annotations[0]} is empty; expected the objects to track; leave clip {name} out"
        )
    return AnnotatedClip(name, video, annotations, objects)


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


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"list of clips {path} can't be read; expected a text file with a name a line; check the path"
        ) from None
