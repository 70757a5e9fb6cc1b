"""Prompts as commands take them: mask pictures, a file of prompts, points or boxes, checked against the video."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from probes.errors import InputError, some_of, tell_left_out
from probes.files import composed
from probes.frames import natural_key
from probes.pictures import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES
from probes.prompts import Prompt, check_prompts, read_prompts
from probes.video import VideoSource
from sparsity.clips.drawn import check_mask_size, read_mask


@dataclass(frozen=True)
class PromptOptions:
    """A prompt as given on a command line: masks, a file of prompts, or points and boxes.

    Attributes
    ----------
    file
        Picture with one value an object; a folder of them, each named after its frame; or a JSON file of prompts.
    points
        ``"x,y"`` or ``"x,y,label"``: pixels of the video; label 1 is the object, 0 the background; with ``@object``
        of that object, else of object 1.
    boxes
        ``"x0,y0,x1,y1"`` in pixels of the video; with ``@object`` of that object, else the first of object 1, and so on.
    frame
        Index of the frame it is on; None: the frame that a mask is named after, else the first.
    """

    file: Path | None = None
    points: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    frame: int | None = None

    def check(self, source: VideoSource, strict: bool = False) -> tuple[Prompt, ...]:
        """Return prompts that fit the video, by frame, ascending.

        Parameters
        ----------
        strict
            Refuse a folder of masks that holds other pictures.

        Raises
        ------
        InputError
            There is no prompt or one too many, or it lies outside the video.
        """
        given = bool(self.file) + bool(self.points or self.boxes)
        if given != 1:
            raise InputError(
                f"{'no' if not given else 'masks or a file and points or boxes as'} prompt given; expected a mask or a file "
                "of prompts (--prompt), or points and boxes (--points, --box); give one"
            )
        if self.file and (self.file.is_dir() or self.file.suffix.lower() == ".json"):
            if self.frame:
                raise InputError(
                    f"frame {self.frame} and {self.file} given; expected prompts that say their frames alone; leave the "
                    "frame out"
                )
            if not self.file.is_dir():
                return read_prompts(self.file, source)
            return prompts_of_masks(masks_by_frame(mask_files(self.file, strict), source), source)
        frame = self.frame
        if frame is None:
            frame = _frame_named(self.file, source) if self.file else 0
        if self.file:
            masks = _masks(self.file, source)
            return check_prompts([Prompt(frame, i, mask=m) for i, m in masks.items()], source)
        return check_prompts(self._placed(frame), source, "--points and --box")

    def _placed(self, frame: int) -> list[Prompt]:
        """Return the points and boxes by object."""
        boxes: dict[int, list[float]] = {}
        for number, text in enumerate(self.boxes, 1):
            place, named = _object_of(text)
            if named is None and any("@" in other for other in self.boxes):
                raise InputError(
                    f"box {text!r} and boxes with @object given; expected @object with all of them or with none; add it"
                )
            if (named or number) in boxes:
                raise InputError(
                    f"two boxes of object {named} given; expected one an object; give the other one another @object"
                )
            boxes[named or number] = _numbers(place, (4,), "box", "x0,y0,x1,y1")
        points: dict[int, list[list[float]]] = {}
        for text in self.points:
            place, named = _object_of(text)
            x, y, label = (*_numbers(place, (2, 3), "point", "x,y or x,y,label"), 1.0)[:3]
            if label not in (0, 1):
                raise InputError(
                    f"point {text} has label {label:g}; expected 1 (object) or 0 (background); correct it"
                )
            points.setdefault(named or 1, []).append([x, y, label])
        if len(boxes) > 1 and any("@" not in text for text in self.points):
            raise InputError(
                f"points and {len(boxes)} boxes given; expected points that say of which object they are; add @object "
                "to each, or leave one of them out"
            )
        return [
            Prompt(
                frame, i, [p[:2] for p in points[i]] if i in points else None,
                [int(p[2]) for p in points[i]] if i in points else None, boxes.get(i),
            )
            for i in sorted({*points, *boxes})
        ]  # fmt: skip


# ---------------------------------------------------------------------- masks and the frames they are of


def mask_files(folder: Path, strict: bool = False) -> list[Path]:
    """Return the masks of a folder in playing order; say which pictures are none, or refuse them.

    Raises
    ------
    InputError
        There is none, or something is left out and `strict` is set.
    """
    shown = [p for p in folder.iterdir() if not p.name.startswith(".") and not p.is_dir()]
    masks = [p for p in shown if p.suffix.lower() == ".png" and p.is_file()]
    pictures = (*IMAGE_SUFFIXES, *OTHER_IMAGE_SUFFIXES)
    others = sorted(p.name for p in shown if p.suffix.lower() in pictures and p not in masks)
    if not masks:
        raise InputError(
            f"{folder} holds no masks; expected PNG files named after the video's frames; check the path"
        )
    if others:
        tell_left_out(
            [f"{folder}: {len(others)} pictures are no PNG masks ({some_of(others)}), left out"],
            strict,
        )
    return sorted(masks, key=lambda p: natural_key(p.stem))


def masks_by_frame(files: Sequence[Path], source: VideoSource) -> dict[int, Path]:
    """Match masks with frames by their names: whole names, else the last number in them.

    A video file's frames are called by their index; as many masks as it has frames may begin with any number.

    Raises
    ------
    InputError
        One has the name of no frame, or two of the same.
    """
    names = source.names or []
    stems = [composed(file.stem) for file in files]
    frames: Sequence[int | None]
    if set(stems) <= {composed(name) for name in names}:
        by_name = {composed(name): index for index, name in enumerate(names)}
        frames = [by_name[stem] for stem in stems]
    else:
        numbers = [_last_number(stem) for stem in stems]
        by_number = _frames_by_number(numbers, source)
        frames = [by_number.get(number) for number in numbers]
    found: dict[int, Path] = {}
    for file, frame in zip(files, frames, strict=True):
        if frame is None:
            usual = f"{names[0]}.png" if names else "00000.png, the index of the frame"
            raise InputError(
                f"mask {file} is named after no frame; expected names of the video's frames such as {usual}; rename "
                "or remove it"
            )
        if frame in found:
            raise InputError(
                f"masks {found[frame]} and {file.name} are named after the same frame; expected one a frame; remove one "
                "of them"
            )
        found[frame] = file
    return dict(sorted(found.items()))


def _frames_by_number(numbers: Sequence[int | None], source: VideoSource) -> dict[int | None, int]:
    """Return the frames by the numbers that masks may have; none where the names of frames don't tell."""
    if source.names is None:
        count, first = source.num_frames or 0, numbers[0] or 0
        in_order = list(numbers) == list(range(first, first + count))
        return {index + (first if in_order else 0): index for index in range(count)}
    found = {_last_number(name): index for index, name in enumerate(source.names)}
    return found if len(found) == len(source.names) and None not in found else {}


def prompts_of_masks(masks: Mapping[int, Path], source: VideoSource) -> tuple[Prompt, ...]:
    """Prompt each object on the first frame whose mask shows it.

    Raises
    ------
    InputError
        A mask can't be read or is of another size than the video, or all are empty.
    """
    for path in masks.values():
        check_mask_size(path, (source.height, source.width))
    prompts: list[Prompt] = []
    seen: set[int] = set()
    for frame, path in masks.items():
        ids = read_mask(path)
        new = {int(i): ids == i for i in np.unique(ids) if i and int(i) not in seen}
        seen |= set(new)
        prompts += [Prompt(frame, i, mask=mask) for i, mask in new.items()]
    if not prompts:
        first = next(iter(masks.values()))
        raise InputError(
            f"{first} is empty{', and so are the others' if len(masks) > 1 else ''}; expected the objects to track; "
            "draw them, or leave the video out"
        )
    return tuple(prompts)


def _masks(path: Path, source: VideoSource) -> dict[int, NDArray[np.bool_]]:
    ids = read_mask(path)
    if ids.shape != (source.height, source.width):
        raise InputError(
            f"prompt mask {path} is {ids.shape[1]}x{ids.shape[0]}; the video is "
            f"{source.width}x{source.height}; give a mask of the video's size"
        )
    if not ids.any():
        raise InputError(
            f"prompt mask {path} is empty; expected pixels above 0 on the object; draw it"
        )
    return {int(i): ids == i for i in np.unique(ids) if i}


def _frame_named(mask: Path, source: VideoSource) -> int:
    """Return the frame of a folder that a mask has the name of, else the first."""
    names = [composed(name) for name in source.names or ()]
    return names.index(composed(mask.stem)) if composed(mask.stem) in names else 0


def _last_number(name: str) -> int | None:
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


# ---------------------------------------------------------------------- points and boxes


def _object_of(text: str) -> tuple[str, int | None]:
    """Split ``PLACE@OBJECT``; None where no object is named."""
    place, at, named = " ".join(text.split()).partition("@")
    if at and not (named.isascii() and named.isdigit() and int(named)):
        raise InputError(
            f"{text!r} given; expected an object's number after @, from 1; write such as {place}@2"
        )
    return place, int(named) if at else None


def _numbers(text: str, counts: tuple[int, ...], what: str, form: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts or not all(math.isfinite(n) for n in numbers):
        raise InputError(f"{what} {text!r} given; expected {form} in pixels; write it so")
    return numbers
