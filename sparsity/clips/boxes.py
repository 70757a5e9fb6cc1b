"""Clips whose truth is a box a frame, as LaSOT, GOT-10k and OTB lay them out, and the boxes that a tool found.

=========  ==========================  ==================================  =======================================
set        frames                      truth, a line ``x,y,w,h`` a frame   frames without the object
=========  ==========================  ==================================  =======================================
LaSOT      CLASS/CLIP/img/*.jpg        CLIP/groundtruth.txt                full_occlusion.txt, out_of_view.txt
GOT-10k    CLIP/*.jpg                  CLIP/groundtruth.txt                not read: its own score is another
OTB        CLIP/img/*.jpg              CLIP/groundtruth_rect.txt           boxes without area
=========  ==========================  ==================================  =======================================

The folders of clips may lie in those of classes or in a subset's. Numbers may be parted by commas, tabs or spaces. A clip
is prompted by its first box. Boxes here are ``x, y, w, h`` in pixels: the left upper corner and the size, so that a mask of
one pixel at the corner of a frame has the box 0, 0, 1, 1.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from probes.errors import InputError, some_of
from probes.files import composed, named
from probes.video import open_video
from sparsity.clips.drawn import check_mask_size, read_mask

Boxes = NDArray[np.float64]

TRUTH_FILES = ("groundtruth.txt", "groundtruth_rect.txt")

ABSENT_FILES = ("full_occlusion.txt", "out_of_view.txt")
"""LaSOT's: a flag a frame, 1 where the object isn't seen."""

COLUMNS = ("frame", "name", "object", "x0", "y0", "x1", "y1")
"""Of a table of boxes: the frame's index and name, the object's id, left upper corner, and where the box ends."""


@dataclass(frozen=True, eq=False)
class BoxClip:
    """A clip with true boxes.

    Attributes
    ----------
    frames
        Names of the frames.
    size
        Height and width of a frame.
    boxes
        ``[frames, 4]``: x, y, w, h in pixels; NaN where there is none.
    seen
        Whether the object is seen, bool ``[frames]``.
    flagged
        Whether the set says so frame by frame, as LaSOT does.
    """

    name: str
    frames: list[str]
    size: tuple[int, int]
    boxes: Boxes
    seen: NDArray[np.bool_]
    flagged: bool = False


def box_folders(root: Path) -> dict[str, Path]:
    """Return the folders of clips with true boxes under a root, by name; none where it isn't laid out so.

    Raises
    ------
    InputError
        Two clips have one name.
    """
    shown = _folders(root)
    found: dict[str, Path] = {}
    for folder in [p for one in shown for p in (one, *([] if _truth(one) else _folders(one)))]:
        if _truth(folder) is None:
            continue
        if folder.name in found:
            raise InputError(
                f"{root} holds {found[folder.name]} and {folder}; expected clips of different names; give one of the "
                "folders that they lie in"
            )
        found[folder.name] = folder
    return dict(sorted(found.items()))


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _truth(folder: Path) -> Path | None:
    return next((folder / name for name in TRUTH_FILES if (folder / name).is_file()), None)


def open_box_clip(folder: Path) -> BoxClip:
    """Open a clip with true boxes.

    Raises
    ------
    InputError
        It holds no frames, or there isn't a box for each.
    """
    video = open_video(folder / "img" if (folder / "img").is_dir() else folder)
    assert video.names is not None, "frames of a folder have names"
    truth = _truth(folder)
    assert truth is not None, "asked where there is a file of boxes"
    boxes = _numbers(truth, 4, len(video.names))
    seen = np.asarray(np.isfinite(boxes).all(1) & (boxes[:, 2:] > 0).all(1))
    flags = [path for name in ABSENT_FILES if (path := folder / name).is_file()]
    for path in flags:
        seen &= _numbers(path, 1, len(video.names))[:, 0] == 0
    if not np.isfinite(boxes[0]).all() or not (boxes[0, 2:] > 0).all():
        raise InputError(
            f"{truth} begins with {boxes[0].tolist()}; expected the box that prompts the clip; leave the clip out"
        )
    size = (video.height, video.width)
    return BoxClip(folder.name, video.names, size, boxes, seen, bool(flags))


def _numbers(path: Path, columns: int, frames: int) -> Boxes:
    """Read numbers ``[frames, columns]``; flags may stand in one line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = [
            [float(x) for x in re.split(r"[,\s]+", line.strip())]
            for line in text.split("\n")
            if line.strip()
        ]
    except (OSError, ValueError):
        raise InputError(
            f"{path} can't be read as numbers; expected {columns} a line, one line a frame; mend it"
        ) from None
    if columns == 1 and len(rows) == 1:
        rows = [[value] for value in rows[0]]
    other = next((n for n, row in enumerate(rows) if len(row) != columns), None)
    if other is not None:
        raise InputError(
            f"{path} has {len(rows[other])} numbers in line {other + 1}; expected {columns}"
            f"{' (x,y,w,h)' if columns == 4 else ''}; mend it, or leave the clip out"
        )
    if len(rows) != frames:
        raise InputError(
            f"{path} has {len(rows)} lines; its clip has {frames} frames; expected a line for each; mend it, or leave "
            "the clip out"
        )
    return np.array(rows, np.float64).reshape(frames, columns)


def box_of(mask: NDArray[np.bool_]) -> Boxes:
    """Return the box ``[4]`` of a mask bool ``[H, W]``; of an empty one it has no area.

    >>> box_of(np.array([[False, True, True]])).tolist()
    [1.0, 0.0, 2.0, 1.0]
    """
    if not mask.any():
        return np.zeros(4)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = columns[0], rows[0]
    return np.array([x, y, columns[-1] + 1 - x, rows[-1] + 1 - y], np.float64)


def predicted_boxes(folder: Path, clip: BoxClip) -> Boxes | dict[int, Path]:
    """Find what a tool found of a clip: ``CLIP.csv``, ``CLIP/boxes.csv``, or masks as `sparsity.clips.predicted` has them.

    Returns
    -------
    Boxes or dict
        ``[frames, 4]``, NaN where the table has no line; or by frame: a mask, checked for its size.

    Raises
    ------
    InputError
        There is neither, the table is of another form, a mask is missing or of another size.
    """
    home = named(folder, clip.name)
    for table in (named(folder, f"{clip.name}.csv"), home / "boxes.csv"):
        if table.is_file():
            return read_boxes(table, clip)
    if not home.is_dir():
        raise InputError(
            f"{folder} has neither {clip.name}.csv nor a folder {clip.name}; expected boxes or masks of every clip that is "
            "scored; add them, or leave the clip out with --clips"
        )
    home = home / "masks" if (home / "masks").is_dir() else home
    there = {composed(p.stem): p for p in home.glob("[!.]*.png")}
    found = {t: there[composed(n)] for t, n in enumerate(clip.frames) if composed(n) in there}
    missing = [home / f"{n}.png" for t, n in enumerate(clip.frames) if t and t not in found]
    if missing:
        raise InputError(
            f"{missing[0]} is missing, one of {len(missing)} masks of clip {clip.name}; expected one for each frame after "
            "the first; add them, or leave the clip out with --clips"
        )
    for path in found.values():
        check_mask_size(path, clip.size)
    return found


def read_boxes(path: Path, clip: BoxClip) -> Boxes:
    """Read a table of boxes with the columns `COLUMNS`, by frame names or indices; NaN where a frame has no line.

    Raises
    ------
    InputError
        A column or a number is missing, a frame isn't of the clip, or there are several objects.
    """
    found = np.full((len(clip.frames), 4), np.nan)
    place = {composed(name): t for t, name in enumerate(clip.frames)}
    objects = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            x0, y0, x1, y1 = (float(row[key]) for key in COLUMNS[3:])
            t = place[composed(row["name"])] if row.get("name") else int(row["frame"])
            if t < 0:
                raise IndexError(f"frame {t}")
            found[t] = x0, y0, x1 - x0, y1 - y0
            objects.add(row.get("object"))
    except (OSError, ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
        raise InputError(
            f"{path} can't be read as boxes of clip {clip.name} ({type(error).__name__}: {error}); expected the columns "
            f"{','.join(COLUMNS)} and frames such as {clip.frames[0]}; mend it"
        ) from None
    if len(objects) > 1:
        raise InputError(
            f"{path} has boxes of objects {some_of(sorted(str(i) for i in objects))}; expected one object, as the truth "
            "has; keep one"
        )
    return found


def boxes_of(found: Boxes | dict[int, Path], frames: int) -> Boxes:
    """Return a tool's boxes ``[frames, 4]``: those given, or those of its masks; without area where there is none."""
    if isinstance(found, dict):
        nothing = np.zeros(4)
        boxes = [box_of(read_mask(found[t]) > 0) if t in found else nothing for t in range(frames)]
        return np.stack(boxes)
    return np.nan_to_num(found)
