"""Masks that some tool wrote for the clips of a data set, found and checked before anything is done with them.

======================================  ===========================================================================
files                                   written by
======================================  ===========================================================================
``FOLDER/CLIP/NAME.png``                most tools: indexed, an id an object, as the annotations are
``FOLDER/CLIP/masks/NAME.png``          ``efficient-sam2 segment`` over a data set
``FOLDER/CLIP/masks/ID/NAME.png``       the same with ``--format layers``
``FOLDER/CLIP/OBJECT/NAME.png``         tools for SA-V: a folder an object, called as its annotations' are
======================================  ===========================================================================

Where objects may overlap but the masks are indexed, a pixel has one object alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from probes.errors import InputError
from probes.files import composed, named
from sparsity.clips.layouts import Annotations, Masks
from sparsity.clips.sources import Clip

Pictures = dict[int, dict[int, Path]]


class Layers(Mapping[int, Masks]):
    """Indexed masks as a layer an object, bool ``[O, H, W]``."""

    def __init__(self, indexed: Annotations) -> None:
        self.indexed = indexed

    def __getitem__(self, frame: int) -> NDArray[np.bool_]:
        ids = self.indexed[frame]
        return np.stack([ids == i for i in self.indexed.objects])

    def __iter__(self) -> Iterator[int]:
        return iter(self.indexed)

    def __len__(self) -> int:
        return len(self.indexed)


def predicted(
    folder: Path, clip: Clip, needed: Mapping[int, frozenset[int]]
) -> Mapping[int, Masks]:
    """Find a tool's masks of a clip.

    Parameters
    ----------
    folder
        With a folder a clip.
    needed
        By object: annotated frames that there must be a mask of. Masks of other annotated frames are taken where they are.

    Returns
    -------
    Mapping
        By the index of their frame, read when they are asked for, in the form of the clip's true masks.

    Raises
    ------
    InputError
        There is no folder of the clip, a mask is missing, or one is no picture or of another size than the video.
    """
    home = named(folder, clip.name)
    if not home.is_dir():
        raise InputError(
            f"{folder} has no folder {clip.name}; expected masks of every clip that is scored; add it, or leave the "
            "clip out with --clips"
        )
    ours = (home / "masks").is_dir()  # layers are called by their objects' ids there
    home = home / "masks" if ours else home
    assert clip.truth is not None, "clips that are scored have true masks"
    folders = {
        int(p.name) + (not ours): p
        for p in sorted(home.iterdir())
        if p.is_dir() and p.name.isdigit()
    }
    if clip.layered and folders:
        missing = str if ours else "{:03d}".format
        by_object = {i: folders.get(i, home / missing(i - (not ours))) for i in clip.objects}
        pictures = _pictures(clip, by_object, needed)
        return Annotations(pictures, clip.objects, clip.video, layered=True)
    any_of = frozenset[int]().union(*needed.values())
    pictures = _pictures(clip, {0: home}, {0: any_of})
    indexed = Annotations(pictures, clip.objects, clip.video)
    return Layers(indexed) if clip.layered else indexed


def _pictures(
    clip: Clip, folders: Mapping[int, Path], needed: Mapping[int, frozenset[int]]
) -> Pictures:
    """Return the picture of each annotated frame and folder; one that isn't there may be left out or is refused."""
    assert clip.truth is not None and clip.video.names is not None
    found: Pictures = {}
    missing = []
    for key, folder in folders.items():
        there = {composed(p.stem): p for p in folder.glob("[!.]*.png")} if folder.is_dir() else {}
        for frame in clip.truth:
            name = clip.video.names[frame]
            path = there.get(composed(name))
            if path is not None:
                found.setdefault(frame, {})[key] = path
            elif frame in needed.get(key, ()):
                missing.append(folder / f"{name}.png")
    if missing:
        raise InputError(
            f"{missing[0]} is missing, one of {len(missing)} masks of clip {clip.name}; expected one for each annotated "
            "frame that counts; add them, or leave the clip out with --clips"
        )
    return dict(sorted(found.items()))
