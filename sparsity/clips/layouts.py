"""Annotated clips as data sets lay them out: DAVIS, YouTube-VOS, MOSE and LVOS, SA-V, and VOST.

========================  ========================  ============================  ==========================
layout                    frames                    annotations                   objects
========================  ========================  ============================  ==========================
DAVIS                     JPEGImages/480p/CLIP      Annotations/480p/CLIP/*.png   on the first frame
the same, full size       JPEGImages/Full-Resol…    Annotations/Full-Resol…       on the first frame
SA-V                      JPEGImages_24fps/CLIP     Annotations_6fps/CLIP/ID/…    may come later, may overlap
VOST (ImageSets/val.txt)  JPEGImages/CLIP           Annotations/CLIP/*.png        on the first frame
YouTube-VOS, MOSE, LVOS   JPEGImages/CLIP           Annotations/CLIP/*.png        may come later
========================  ========================  ============================  ==========================

The folders may lie in a subset's, such as ``valid/JPEGImages``; a root with several subsets is refused, and one with
both sizes of DAVIS is read at 480p, at which its scores are published. DAVIS annotates every frame; the others may
leave frames out. An object that comes later is prompted on the first frame that shows it, as sam2's own evaluation does
with ``--track_object_appearing_later_in_video``; in VOST it doesn't count, as in its own evaluation
(github.com/TRI-ML/VOST, ``evaluation/source/dataset.py``). Value 255 is background in scores, in VOST's own, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from probes.errors import InputError, some_of
from probes.files import composed, named
from probes.video import VideoSource, open_video
from sparsity.clips.drawn import Ids, check_mask_size, read_mask

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
        Whether every frame must have its annotation.
    first_only
        Whether objects that come after the first annotated frame don't count.
    layered
        Whether each object has a folder of binary pictures of its own.
    mark
        A file that there must be, too.
    subset
        Folder of the root that all this lies in.
    """

    name: str
    frames: Path
    annotations: Path
    every_frame: bool = False
    first_only: bool = False
    layered: bool = False
    mark: Path | None = None
    subset: Path = Path()

    def fits(self, root: Path) -> bool:
        """Whether a folder is laid out so."""
        marked = self.mark is None or (root / self.mark).is_file()
        return marked and (root / self.frames).is_dir() and (root / self.annotations).is_dir()

    def inside(self, subset: Path) -> Layout:
        """Return the layout of a folder whose subfolder `subset` is laid out so."""
        frames, annotations = subset / self.frames, subset / self.annotations
        return replace(self, frames=frames, annotations=annotations, subset=subset)


LAYOUTS = (
    Layout("DAVIS", Path("JPEGImages/480p"), Path("Annotations/480p"), True, True),
    Layout(
        "DAVIS at full resolution",
        Path("JPEGImages/Full-Resolution"),
        Path("Annotations/Full-Resolution"),
        True,
        True,
    ),
    Layout("SA-V", Path("JPEGImages_24fps"), Path("Annotations_6fps"), layered=True),
    Layout(
        "VOST",
        Path("JPEGImages"),
        Path("Annotations"),
        first_only=True,
        mark=Path("ImageSets/val.txt"),
    ),
    Layout("YouTube-VOS, MOSE or LVOS", Path("JPEGImages"), Path("Annotations")),
)


class Annotations(Mapping[int, Masks]):
    """True masks of a video by the index of their frame, ascending, read from pictures when they are asked for.

    Parameters
    ----------
    pictures
        By frame: one picture of all objects (under id 0), or one an object where objects may overlap.
    objects
        Ids that count, ascending; others are background.
    layered
        Whether objects may overlap.

    Raises
    ------
    InputError
        A picture can't be read, which may be seen only when it is asked for, or has another size than the video.
    """

    def __init__(
        self,
        pictures: Mapping[int, Mapping[int, Path]],
        objects: tuple[int, ...],
        video: VideoSource,
        layered: bool = False,
    ) -> None:
        self.pictures, self.objects, self.layered = pictures, objects, layered
        self.size = video.height, video.width
        for path in (path for of_frame in pictures.values() for path in of_frame.values()):
            check_mask_size(path, self.size)

    def __getitem__(self, frame: int) -> Masks:
        ids = {i: read_mask(path) for i, path in self.pictures[frame].items()}
        if self.layered:
            empty = np.zeros(self.size, np.uint8)
            return np.stack([ids.get(i, empty) > 0 for i in self.objects])
        (all_ids,) = ids.values()
        return np.where(np.isin(all_ids, self.objects), all_ids, 0).astype(np.uint8)

    def until(self, frame: int, objects: tuple[int, ...]) -> Annotations:
        """The same of the frames before one, and of some of the objects."""
        cut = copy(self)
        cut.pictures = {t: paths for t, paths in self.pictures.items() if t < frame}
        cut.objects = objects
        return cut

    def __iter__(self) -> Iterator[int]:
        return iter(self.pictures)

    def __len__(self) -> int:
        return len(self.pictures)


def find_layout(root: Path) -> Layout:
    """Tell how a folder is laid out, or the one folder in it that is a data set.

    Raises
    ------
    InputError
        It is of none of `LAYOUTS`, or holds several data sets.
    """
    for layout in LAYOUTS:
        if layout.fits(root):
            return layout
    subsets = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    inside = {p: next((x for x in LAYOUTS if x.fits(p)), None) for p in subsets}
    found = {Path(p.name): layout for p, layout in inside.items() if layout is not None}
    if len(found) > 1:
        raise InputError(
            f"{root} holds {len(found)} data sets ({some_of([str(p) for p in found])}); expected one; give one of "
            f"them, such as {root / next(iter(found))}"
        )
    for subset, layout in found.items():
        return layout.inside(subset)
    known = "; ".join(f"{x.name}: {x.frames} and {x.annotations}" for x in LAYOUTS)
    raise InputError(
        f"{root} is of no known layout; expected the folders of one of them ({known}), each with a folder "
        "a clip; give the folder that holds both"
    )


def has_layout(root: Path) -> bool:
    """Whether a folder is one of a data set."""
    try:
        find_layout(root)
    except InputError:
        return False
    return True


def clip_names(root: Path, only: list[str] | None = None) -> list[str]:
    """Return the names of the clips under `root`, or of those that are wanted.

    Raises
    ------
    InputError
        `root` is of no known layout, or there is no such clip.
    """
    frames = root / find_layout(root).frames
    known = sorted(p.name for p in frames.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not known:
        raise InputError(f"{frames} holds no clip; expected one or more; check the path")
    names = known if only is None else only
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 3) or known[:3]
            raise InputError(
                f"clip {name!r} listed; {root} has {len(known)} others such as {', '.join(close)}; "
                "correct the list"
            )
    return names


def first_mask_alone(root: Path, name: str) -> bool:
    """Whether the first frame's annotation is all that a clip has, so that there is no truth."""
    layout = find_layout(root)
    names = open_video(root / layout.frames / name).names
    assert names is not None, "frames of a folder have names"
    folder = named(root / layout.annotations, name)
    long_enough = len(names) >= FEWEST_FRAMES
    return long_enough and [*_annotations(folder, names, layout, labelled=False)] == [0]


def open_annotated(
    root: Path, name: str, labelled: bool = True, strict: bool = False
) -> tuple[VideoSource, Annotations, dict[int, int]]:
    """Open a clip and check that its annotations are there and of its size.

    Parameters
    ----------
    labelled
        Whether the annotations are the truth; otherwise those that prompt are enough, as in sets for tests.
    strict
        Whether frames that are left out are refused.

    Returns
    -------
    tuple
        Video, annotations, and by object, ascending: the frame that shows it first and so prompts it.

    Raises
    ------
    InputError
        It is too short, an annotation is missing, of another size or of no frame, or there is no object.
    """
    layout = find_layout(root)
    video = open_video(root / layout.frames / name, strict)
    assert video.names is not None, "frames of a folder have names"
    if labelled and len(video.names) < FEWEST_FRAMES:
        raise InputError(
            f"clip {name} has {len(video.names)} frames; expected {FEWEST_FRAMES} or more, as the first "
            "and the last one don't count; leave it out"
        )
    pictures = _annotations(named(root / layout.annotations, name), video.names, layout, labelled)
    if labelled and len(pictures) < FEWEST_FRAMES:
        raise InputError(
            f"clip {name} has {len(pictures)} annotated frames; expected {FEWEST_FRAMES} or more, as the "
            "first and the last one don't count; leave it out"
        )
    starts = _starts(pictures, layout, labelled)
    if not starts:
        first = next(iter(pictures[min(pictures)].values()))
        raise InputError(
            f"{first} is empty{'' if layout.first_only else ', and so are the others'}; expected the "
            f"objects to track; leave clip {name} out"
        )
    return video, Annotations(pictures, tuple(starts), video, layout.layered), starts


def _annotations(
    folder: Path, names: list[str], layout: Layout, labelled: bool
) -> dict[int, dict[int, Path]]:
    """Find the pictures of each annotated frame, by object id; id 0 stands for all objects in one picture."""
    frames = {composed(name): index for index, name in enumerate(names)}
    if layout.layered:
        folders = {int(p.name) + 1: p for p in sorted(folder.glob("*")) if p.name.isdigit()}
    else:
        folders = {0: folder}
    found: dict[int, dict[int, Path]] = {}
    for object_id, pictures in folders.items():
        for path in sorted(pictures.glob("[!.]*.png")):
            if composed(path.stem) not in frames:
                raise InputError(
                    f"{path} is of no frame of clip {folder.name}; expected names of its frames such as "
                    f"{names[0]}.png; remove it"
                )
            found.setdefault(frames[composed(path.stem)], {})[object_id] = path
    missing = [name for name, index in frames.items() if index not in found]
    if missing and (layout.every_frame and labelled or not found):
        raise InputError(
            f"{folder / missing[0]}.png is missing, one of {len(missing)} annotations of clip "
            f"{folder.name}; expected {'one for each of its frames' if layout.every_frame and labelled else 'some'}; "
            "add them or leave the clip out"
        )
    return dict(sorted(found.items()))


def _starts(
    annotations: dict[int, dict[int, Path]], layout: Layout, labelled: bool
) -> dict[int, int]:
    """Find the frame that shows each object first, among those that leave a frame to count where that is wanted."""
    starts: dict[int, int] = {}
    frames = list(annotations)
    if labelled:
        frames = frames[:1] if layout.first_only else frames[:-2]
    for frame in frames:
        for key, path in annotations[frame].items():
            ids = np.unique(read_mask(path))
            for value in ids[ids > 0].tolist():
                starts.setdefault(key if layout.layered else int(value), frame)
    return dict(sorted(starts.items()))


def clip_folders(root: Path, name: str) -> tuple[Path, ...]:
    """Return where the frames and the annotations of a clip lie, the frames first."""
    layout = find_layout(root)
    annotations = named(root / layout.annotations, name)
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
