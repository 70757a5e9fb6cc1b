"""The first hint of what to track: a mask picture, points or a box, checked against the video."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.errors import InputError
from probes.video import VideoSource
from sparsity.masks import read_mask


@dataclass(frozen=True)
class Prompt:
    """A prompt as given on a command line: a mask, or points and a box.

    Attributes
    ----------
    mask
        Picture with one value an object.
    points
        ``"x,y"`` or ``"x,y,label"``: pixels of the video; label 1 is the object, 0 the background.
    box
        ``"x0,y0,x1,y1"`` in pixels of the video.
    frame
        Index of the frame it is on.
    """

    mask: Path | None = None
    points: tuple[str, ...] = ()
    box: str | None = None
    frame: int = 0

    def check(self, source: VideoSource) -> CheckedPrompt:
        """Return it in numbers.

        Raises
        ------
        InputError
            There is no prompt or one too many, or it lies outside the video.
        """
        given = bool(self.mask) + bool(self.points or self.box)
        if given != 1:
            raise InputError(
                f"{'no' if not given else 'a mask and points or box as'} prompt given; expected a mask "
                "(--prompt), or points and a box (--points, --box); give one"
            )
        if source.num_frames is not None and not 0 <= self.frame < source.num_frames:
            raise InputError(
                f"prompt on frame {self.frame} given; the video has frames 0 to {source.num_frames - 1}; "
                "choose one of them"
            )
        if self.mask:
            return CheckedPrompt(self.frame, masks=self._masks(source))
        points = [self._point(text, source) for text in self.points]
        if points and not self.box and all(label == 0 for *_, label in points):
            raise InputError(
                f"{len(points)} points with label 0 given; expected at least one on the object; add x,y,1"
            )
        return CheckedPrompt(
            self.frame,
            points=np.array([p[:2] for p in points], dtype=np.float32).reshape(-1, 2),
            labels=np.array([p[2] for p in points], dtype=np.int32),
            box=self._box(self.box, source) if self.box else None,
        )

    def _masks(self, source: VideoSource) -> dict[int, NDArray[np.bool_]]:
        assert self.mask is not None, "only called with a mask"
        ids = read_mask(self.mask)
        if ids.shape != (source.height, source.width):
            raise InputError(
                f"prompt mask {self.mask} is {ids.shape[1]}x{ids.shape[0]}; the video is "
                f"{source.width}x{source.height}; give a mask of the video's size"
            )
        if not ids.any():
            raise InputError(
                f"prompt mask {self.mask} is empty; expected pixels above 0 on the object; draw it"
            )
        return {int(i): ids == i for i in np.unique(ids) if i}

    def _point(self, text: str, source: VideoSource) -> tuple[float, float, int]:
        numbers = _numbers(text, (2, 3), "point", "x,y or x,y,label")
        x, y, label = (*numbers, 1.0)[:3]
        if label not in (0, 1):
            raise InputError(
                f"point {text} has label {label:g}; expected 1 (object) or 0 (background); correct it"
            )
        if not (0 <= x < source.width and 0 <= y < source.height):
            raise InputError(
                f"point {text} lies outside; the video is {source.width}x{source.height}; choose "
                f"x in 0..{source.width - 1} and y in 0..{source.height - 1}"
            )
        return x, y, int(label)

    @staticmethod
    def _box(text: str, source: VideoSource) -> NDArray[np.float32]:
        x0, y0, x1, y1 = box = _numbers(text, (4,), "box", "x0,y0,x1,y1")
        if not (0 <= x0 < x1 <= source.width and 0 <= y0 < y1 <= source.height):
            raise InputError(
                f"box {text} is empty or lies outside; the video is {source.width}x{source.height}; "
                "choose 0 <= x0 < x1 and 0 <= y0 < y1 inside it"
            )
        return np.array(box, dtype=np.float32)


@dataclass(frozen=True)
class CheckedPrompt:
    """A prompt that fits its video: `masks` by object id, or `points`, `labels` and `box` of object 1."""

    frame: int
    masks: dict[int, NDArray[np.bool_]] | None = None
    points: NDArray[np.float32] | None = None
    labels: NDArray[np.int32] | None = None
    box: NDArray[np.float32] | None = None

    def give_to(self, predictor: Any, state: dict[str, Any]) -> None:
        """Add it to a video's state."""
        if self.masks is not None:
            for object_id, mask in self.masks.items():
                predictor.add_new_mask(state, self.frame, object_id, mask)
            return
        points, labels = self.points, self.labels
        if points is not None and not len(points):
            points, labels = None, None
        predictor.add_new_points_or_box(
            state, self.frame, 1, points=points, labels=labels, box=self.box
        )

    def digest(self) -> str:
        """Return a hash of what it says."""
        found = hashlib.sha256(str(self.frame).encode())
        for object_id, mask in (self.masks or {}).items():
            found.update(f"mask {object_id} {mask.shape}".encode() + np.packbits(mask).tobytes())
        for array in (self.points, self.labels, self.box):
            found.update(b"none" if array is None else array.tobytes())
        return found.hexdigest()


def _numbers(text: str, counts: tuple[int, ...], what: str, form: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts or not all(math.isfinite(n) for n in numbers):
        raise InputError(f"{what} {text!r} given; expected {form} in pixels; write it so")
    return numbers
