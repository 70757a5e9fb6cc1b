"""Prompts: what to track, where on which frame, in Python and in JSON.

A list with an entry for each object and frame; an object that is prompted again is corrected there::

    [
      {"frame": 0,  "object": 1, "label": "dog", "box": [40, 30, 180, 160]},
      {"frame": 12, "object": 2, "points": [[310, 200], [330, 90, 0]]},
      {"frame": 20, "object": 3, "mask": {"size": [360, 640], "counts": "…"}},
      {"frame": 31, "object": 1, "points": [[170, 150, 0]]},
      {"frame": 40, "object": 2, "remove": true}
    ]

A point is ``[x, y]`` or ``[x, y, 0]`` for one that is not on the object, a box ``[left, top, right, bottom]``, all in pixels
of the video. A mask is COCO's run-length code (its counts compressed or as numbers), COCO's polygons ``[[x, y, x, y, …], …]``,
or the name of a picture beside the file, on which the object is bright. A
frame is an index, or in a folder of frames the name of one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from probes.errors import InputError
from probes.files import composed
from probes.pictures import open_picture, reason_of, upright
from probes.video import VideoSource


def _no_truth(given: Any) -> Any:
    if isinstance(given, bool):
        raise ValueError("true and false are no numbers")
    return given


Number = Annotated[float, BeforeValidator(_no_truth), Field(allow_inf_nan=False)]


def _numbers(what: str, given: Any, shape: tuple[int, ...], form: str) -> Any:
    """Numbers of a prompt in their form, float32; None of None."""
    if given is None:
        return None
    try:
        return np.array(given, np.float32).reshape(shape)
    except (TypeError, ValueError):
        raise InputError(
            f"{what} given as {str(given)[:60]}; expected {form}; write it so"
        ) from None


@dataclass(frozen=True, eq=False)
class Prompt:
    """One object on one frame.

    Attributes
    ----------
    frame
        Index of the frame.
    object
        Id, from 1; an object that is tracked already is corrected.
    points, labels
        ``[P, 2]`` in pixels, x first; ``[P]``: 1 on the object, 0 not on it; all are on it unless said otherwise.
    box
        ``[4]``: left, top, right, bottom, in pixels.
    mask
        Bool ``[H, W]``, in place of points and box.
    label
        What the object is, for people.
    remove
        In place of these: the object is not tracked from this frame on.
    """

    frame: int
    object: int = 1
    points: Any = None
    labels: Any = None
    box: Any = None
    mask: Any = None
    label: str = ""
    remove: bool = False

    def __post_init__(self) -> None:
        """Hold the fields as arrays of their types; points, labels and boxes that are none are refused."""
        points = _numbers(
            "points", self.points, (-1, 2), "x and y of each, such as [[170, 150]], in pixels"
        )
        on_it = np.ones(0 if points is None else len(points), np.int32)
        given = _numbers("labels", self.labels, (-1,), "1 or 0 of each point")
        given = on_it if given is None else given
        if wrong := [label for label in given.tolist() if label not in (0, 1)]:
            raise InputError(
                f"a point has label {wrong[0]:g}; expected 1 (object) or 0 (background); correct it"
            )
        labels = given.astype(np.int32)
        corners = "left, top, right and bottom, such as [40, 30, 180, 160], in pixels"
        box = _numbers("a box", self.box, (4,), corners)
        mask = None if self.mask is None else np.ascontiguousarray(self.mask) > 0
        for name, value in {"points": points, "labels": labels, "box": box, "mask": mask}.items():
            object.__setattr__(self, name, value)

    def give_to(self, predictor: Any, state: dict[str, Any]) -> Any:
        """Add it to a video's state, and return what sam2 does."""
        if self.remove:
            return predictor.remove_object(state, self.object, need_output=False)
        if self.mask is not None:
            return predictor.add_new_mask(state, self.frame, self.object, self.mask)
        return predictor.add_new_points_or_box(
            state, self.frame, self.object, points=self.points,
            labels=None if self.points is None else self.labels, box=self.box,
        )  # fmt: skip

    def digest(self) -> str:
        """Return a hash of what it says, the label apart."""
        found = hashlib.sha256(f"{self.frame} {self.object} {self.remove}".encode())
        for array in (self.points, self.labels, self.box, self.mask):
            found.update(b"none" if array is None else f"{array.shape}".encode() + array.tobytes())
        return found.hexdigest()


def digest_of_prompts(prompts: Iterable[Prompt]) -> str:
    """Return a hash of what prompts say."""
    return hashlib.sha256("".join(p.digest() for p in prompts).encode()).hexdigest()


def objects_of(prompts: Iterable[Prompt]) -> dict[int, int]:
    """Return by object id, ascending: the frame on which it is prompted first."""
    first: dict[int, int] = {}
    for prompt in prompts:
        first[prompt.object] = min(prompt.frame, first.get(prompt.object, prompt.frame))
    return dict(sorted(first.items()))


# ---------------------------------------------------------------------- reading


class _Entry(BaseModel):
    """A prompt as JSON holds it."""

    model_config = ConfigDict(extra="forbid")

    frame: Annotated[int | str, BeforeValidator(_no_truth)]
    object: Annotated[int, BeforeValidator(_no_truth), Field(ge=1)] = 1
    points: (
        Annotated[
            list[Annotated[list[Number], Field(min_length=2, max_length=3)]], Field(min_length=1)
        ]
        | None
    ) = None
    box: Annotated[list[Number], Field(min_length=4, max_length=4)] | None = None
    mask: dict[str, Any] | list[list[Number]] | str | None = None
    label: str = ""
    remove: bool = False


def read_prompts(given: str | Path | Sequence[Any], source: VideoSource) -> tuple[Prompt, ...]:
    """Read prompts and hold them against their video.

    Parameters
    ----------
    given
        A JSON file, or a list of such entries or of `Prompt`.
    source
        The video.

    Returns
    -------
    tuple
        Of at least one, by frame, ascending.

    Raises
    ------
    InputError
        The file can't be read, or a prompt says too little or too much, or doesn't fit the video; named by its number.
    """
    where, entries = "prompts", given
    folder = Path()
    if isinstance(given, (str, Path)):
        where, folder = str(given), Path(given).parent
        try:
            entries = json.loads(Path(given).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"prompts {given} can't be read ({reason_of(error)}); expected a JSON file with a list of prompts; check "
                "path and file"
            ) from None
    if not isinstance(entries, Sequence) or isinstance(entries, (str, bytes)):
        raise InputError(
            f"{where} given as {type(entries).__name__}; expected a list of prompts such "
            'as [{"frame": 0, "object": 1, "box": [40, 30, 180, 160]}]; write it so'
        )
    found = []
    for number, entry in enumerate(entries, 1):
        try:
            found.append(
                entry if isinstance(entry, Prompt) else _prompt(_entry(entry), source, folder)
            )
        except InputError as error:
            raise InputError(f"prompt {number} of {where}: {error}") from None
    return check_prompts(found, source, where)


def check_prompts(
    prompts: Sequence[Prompt], source: VideoSource, where: str = "prompts"
) -> tuple[Prompt, ...]:
    """Hold prompts against their video and each other; return them by frame, ascending.

    Raises
    ------
    InputError
        There are none, or one says too little or too much, doesn't fit the video, or comes twice.
    """
    if not prompts:
        raise InputError(
            f"no prompts were given in {where}; expected a mask, points or a box for one object at least; add one"
        )
    for prompt in prompts:
        try:
            _check(prompt, source)
        except InputError as error:
            at = f"object {prompt.object} on frame {prompt.frame}"
            raise InputError(f"{where}, {at}: {error}") from None
    ordered = sorted(prompts, key=lambda prompt: prompt.frame)
    there: dict[int, int] = {}
    labels: dict[int, str] = {}
    for prompt in ordered:
        frame, i = prompt.frame, prompt.object
        if prompt.label and labels.setdefault(i, prompt.label) != prompt.label:
            raise InputError(
                f"{where}: object {i} is {labels[i]!r} and, on frame {frame}, {prompt.label!r}; expected one label for an "
                "object; correct one of them"
            )
        if there.get(i) == frame:
            raise InputError(
                f"{where}: object {i} has two prompts on frame {frame}; expected one for each object and frame; put their "
                "points and box into one"
            )
        if i not in there and prompt.remove:
            raise InputError(
                f"{where}: object {i} is removed on frame {frame} and not tracked there; expected a prompt on a frame before; "
                "correct the object or the frame"
            )
        if (
            i not in there
            and prompt.points is not None
            and prompt.box is None
            and not prompt.labels.any()
        ):
            raise InputError(
                f"{where}: the first prompt of object {i} has points with label 0 alone; expected at least one on the object; "
                "add x,y,1"
            )
        there[i] = frame
        if prompt.remove:
            del there[i]
    return tuple(ordered)


def _entry(given: Any) -> _Entry:
    try:
        return _Entry.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][:1]) or "it"
        raise InputError(
            f"{place} given as {str(first['input'])[:60]!r}, {first['msg'][:1].lower()}{first['msg'][1:]}; expected "
            "frame, object, and points, box, mask or remove; correct it"
        ) from None


def _prompt(entry: _Entry, source: VideoSource, folder: Path) -> Prompt:
    points = labels = None
    if entry.points is not None:
        points = [point[:2] for point in entry.points]
        labels = [point[2] if len(point) == 3 else 1 for point in entry.points]
    mask = None if entry.mask is None else read_coco_mask(entry.mask, source, folder)
    frame = _frame(entry.frame, source)
    return Prompt(frame, entry.object, points, labels, entry.box, mask, entry.label, entry.remove)


def _frame(given: int | str, source: VideoSource) -> int:
    if isinstance(given, int):
        return given
    names = [composed(name) for name in source.names or ()]
    if composed(given) not in names:
        raise InputError(
            f"frame {given!r} given; expected {'the name of one, such as ' + names[0] if names else 'an index'}; correct it"
        )
    return names.index(composed(given))


def read_coco_mask(given: Any, source: VideoSource, folder: Path) -> NDArray[np.bool_]:
    """Read a mask, bool ``[H, W]``: COCO's run-length code or polygons, or a picture by its name in `folder`.

    Raises
    ------
    InputError
        It is none of these.
    """
    size = [source.height, source.width]
    if isinstance(given, str):
        with open_picture(folder / given, "a picture of the mask") as image:
            grey = np.asarray(upright(image).convert("LA")).astype(np.uint16).prod(-1)
        return grey > grey.max() // 2  # edges may be smooth
    if isinstance(given, list):
        short = [part for part in given if len(part) < 6 or len(part) % 2]
        if short or not given:
            raise InputError(
                f"a polygon of {len(short[0]) if short else 0} numbers given; expected x and y of three corners or more; "
                "correct it"
            )
        return _decode(coco.merge(coco.frPyObjects(given, *size)))
    counts = given.get("counts")
    try:
        if list(given.get("size") or size) != size:
            raise InputError(
                f"a mask of size {given['size']} given; expected {size}, height and width of the video; give masks of the "
                "video's size"
            )
        if isinstance(counts, list):
            if sum(counts) != size[0] * size[1] or min(counts) < 0:
                raise ValueError(counts)
            return _decode(coco.frPyObjects({"size": size, "counts": counts}, *size))
        code = counts.encode() if isinstance(counts, str) else bytes(counts)
        _check_runs(code, size[0] * size[1])
        return _decode({"size": size, "counts": code})
    except InputError:
        raise
    except (ValueError, TypeError, AttributeError):
        raise InputError(
            f"a run-length code that doesn't fill {size[0]}x{size[1]} pixels given; expected size and counts as COCO writes "
            "them; make it anew"
        ) from None


def _check_runs(code: bytes, pixels: int) -> None:
    """Hold that compressed counts fill a mask: pycocotools writes where they lead it (its maskApi.c, rleFrString)."""
    counts: list[int] = []
    value = shift = 0
    for byte in code:
        part = byte - 48
        if not 0 <= part < 64:
            raise ValueError(byte)
        value |= (part & 31) << shift
        shift += 5
        if part & 32:
            continue
        if part & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift or min(counts, default=-1) < 0 or sum(counts) != pixels:
        raise ValueError(counts)


def _decode(code: Any) -> NDArray[np.bool_]:
    decoded: NDArray[np.bool_] = coco.decode(code).astype(bool)
    return decoded


def _check(prompt: Prompt, source: VideoSource) -> None:
    """Hold one prompt against its video."""
    frames = source.num_frames
    kinds = [name for name in ("points", "box", "mask") if getattr(prompt, name) is not None]
    kinds += ["remove"] if prompt.remove else []
    if not kinds or len(kinds) > 1 and set(kinds) != {"points", "box"}:
        raise InputError(
            f"{' and '.join(kinds) or 'nothing'} given; expected points, a box or both, or a mask, or remove; give one of these"
        )
    if not 0 <= prompt.frame < (prompt.frame + 1 if frames is None else frames):
        raise InputError(
            f"prompt on frame {prompt.frame} given; the video has frames 0 to {(frames or 0) - 1}; choose one of them"
        )
    if not isinstance(prompt.object, (int, np.integer)) or prompt.object < 1:
        raise InputError(
            f"object {prompt.object!r} given; expected a whole number from 1; choose another id"
        )
    check_place(prompt, source.height, source.width)


def check_place(prompt: Prompt, height: int, width: int) -> None:
    """Hold a prompt's points, box or mask against the size of its video, in pixels.

    Raises
    ------
    InputError
        They are empty or lie outside, are shares instead of pixels, or are not of one number.
    """
    if prompt.mask is not None:
        if prompt.mask.shape != (height, width):
            raise InputError(
                f"a mask of shape {list(prompt.mask.shape)} given; expected {[height, width]}, as the video; resize it"
            )
        if not prompt.mask.any():
            raise InputError("the mask is empty; expected pixels on the object; draw it")
    points = np.zeros((0, 2)) if prompt.points is None else prompt.points
    for x, y in points.tolist():
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(
                f"point {x:g},{y:g} lies outside; the video is {width}x{height}; choose x in 0..{width - 1} and y in "
                f"0..{height - 1}"
            )
    if len(prompt.labels) != len(points):
        raise InputError(
            f"{len(points)} points and {len(prompt.labels)} labels given; expected one a point; add or remove some"
        )
    box = [] if prompt.box is None else prompt.box.tolist()
    if box:
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise InputError(
                f"box {','.join(f'{side:g}' for side in box)} is empty or lies outside; the video is {width}x{height}; "
                f"choose left < right and top < bottom inside it, such as 0,0,{width},{height}"
            )
    places = [*points.tolist(), box] if box else points.tolist()
    if places and max(max(place) for place in places) <= 1:
        sides = (width, height) * 2
        pixels = [
            ",".join(f"{share * side:g}" for share, side in zip(place, sides, strict=False))
            for place in places
        ]
        shares = [",".join(f"{share:g}" for share in place) for place in places]
        raise InputError(
            f"{' '.join(shares)} given, in 0..1; expected pixels of the video, which is {width}x{height}; as shares of it "
            f"write {' '.join(pixels)}"
        )
