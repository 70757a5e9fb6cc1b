"""Masks as people and their tools draw them, read as object ids: indexed, grey, smooth at the edges, or refused.

======================  ==========================================================================
picture                 objects
======================  ==========================================================================
indexed, coloured       an index an object; 0 is background and 255 is left out (void), as in DAVIS
indexed, greys          the same where each grey is drawn for itself; as grey where index and grey agree
grey (also as RGB, LA)  a value an object; white is object 1, whether alone or among other greys
grey, smooth edges      one object where half of its grey is reached; several greys are refused
======================  ==========================================================================

An id means the same in every picture of a clip, so it depends on values alone, never on which others are there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from probes.errors import InputError
from probes.pictures import open_picture, upright, upright_size

Ids = NDArray[np.uint8]

VOID = 255
"""Value of indexed masks for pixels that are to be left out."""

LAST_ID = 254
"""Largest id of an object that a mask file holds."""

MOST_OBJECTS = 100
"""More in one picture are taken for a smooth one: data sets have some twenty."""

WHITE = 255

SMALL_ID = 16
"""Grey values below are ids that somebody gave, those from it on greys that somebody drew."""

FAINTEST = 32
"""Grey from which on an object may have a smooth edge."""

PLATEAU = 26
"""So near to background or object, in greys, a wide smooth edge is flat: a tenth of the range."""

ALMOST = 6
"""So near to white, in greys, is white with the noise of a codec."""

FEW_COLOURS = 4
"""Objects in colours of their own, of which some may well lie between others."""

DAVIS_RED = (128, 0, 0)
"""Colour of object 1 in the palettes of PASCAL VOC and DAVIS, whose 255 is void."""

EXPECTED = "an indexed or grey PNG"


def read_mask(path: Path) -> Ids:
    """Read object ids ``[H, W]``, 1 to 254 and 0 for background, from a picture; see `sparsity.clips.drawn`.

    Raises
    ------
    InputError
        There is no such file, it is no picture, it is in full colour, a JPEG, whose values aren't exact, or what
        it shows can't be told apart into objects.
    """
    if not path.is_file():
        raise InputError(f"mask {path} does not exist; expected {EXPECTED}; check the path")
    try:
        with open_picture(path, EXPECTED) as image:
            if image.format == "JPEG":
                raise InputError(
                    f"{path} is a JPEG, which blurs values; expected {EXPECTED}, one value an object; "
                    "threshold it and save it as PNG"
                )
            return _ids(upright(image), path)
    except InputError as error:
        raise InputError(f"mask {error}") from None


def check_mask_size(path: Path, size: tuple[int, int]) -> None:
    """Hold that a mask is of a video's height and width, without decoding it.

    Raises
    ------
    InputError
        It is of another size, or no picture.
    """
    try:
        with open_picture(path, EXPECTED) as image:
            width, height = upright_size(image)
    except InputError as error:
        raise InputError(f"mask {error}") from None
    if (height, width) != size:
        raise InputError(
            f"mask {path} is {width}x{height}; its video is {size[1]}x{size[0]}; give masks of the video's size"
        )


def _ids(image: Image.Image, path: Path) -> Ids:
    if image.mode == "1":
        return np.array(image).astype(np.uint8)
    return (_of_indexed if image.mode == "P" else _of_grey)(image, path)


# ---------------------------------------------------------------------- grey pictures


def _of_grey(image: Image.Image, path: Path) -> Ids:
    grey = _grey(image, path)
    values = _values(grey)
    top = _top_of_smooth(grey, path)
    if top:
        return np.where(grey >= top / 2, 1 if top > WHITE - ALMOST else top, 0).astype(np.uint8)
    _check_number(len(values), path)
    if WHITE in values and values[0] < SMALL_ID:
        raise InputError(
            f"{path} has ids such as {values[0]} beside white (255), which may be an object or be left out; expected "
            "one or the other; give the object an id, or paint what is left out black"
        )
    return np.where(grey == WHITE, 1, grey).astype(np.uint8)


def _grey(image: Image.Image, path: Path) -> Ids:
    """Return grey values ``[H, W]`` of a picture that has no colour; what is transparent is background."""
    values = np.array(image)
    if image.mode in ("LA", "RGB", "RGBA"):
        colours = values[..., : 1 if image.mode == "LA" else 3]
        opaque = (
            values[..., -1] if image.mode != "RGB" else np.full(values.shape[:2], 255, np.uint8)
        )
        if (colours == colours[..., :1])[opaque > 0].all():
            return ((colours[..., 0].astype(np.uint16) * opaque + 127) // 255).astype(np.uint8)
    elif values.ndim == 2 and values.dtype.kind in "ui" and values.min() >= 0:
        if values.max() <= 255:
            return values.astype(np.uint8)
        shallow = (values // 257).astype(np.uint8)
        black_and_white = ((values == 0) | (values == 65535)).all()
        if values.max() <= 65535 and (black_and_white or _top_of_smooth(shallow, path)):
            return shallow
        raise InputError(
            f"{path} has ids up to {values.max()}; expected 1 to {LAST_ID}, which masks can hold; number the objects "
            "anew"
        )
    raise InputError(
        f"{path} is a picture in mode {image.mode}; expected indexed or grey, one value an object; convert it"
    )


def _top_of_smooth(grey: Ids, path: Path) -> int:
    """Return the grey of the one object of a picture whose other greys are its smooth edge; 0 where edges are hard.

    A value that fills some 3 x 3 pixels was drawn. Others are an edge where most of their pixels lie between a darker
    and a brighter neighbour, as no object's do on background.

    Raises
    ------
    InputError
        There are smooth edges between several greys, or nothing else.
    """
    values = _values(grey)
    top = values[-1] if values else 0
    if top < FAINTEST or len(values) < 2:
        return 0
    picture = Image.fromarray(grey)
    darkest = np.asarray(picture.filter(ImageFilter.MinFilter(3)))
    brightest = np.asarray(picture.filter(ImageFilter.MaxFilter(3)))
    drawn = set(_values(grey[darkest == brightest]))
    middle = [value for value in values if PLATEAU <= value <= top - PLATEAU]
    edge = [value for value in middle if value not in drawn]
    objects = [value for value in middle if value in drawn]
    pixels = np.isin(grey, edge)
    between = pixels & (darkest < grey) & (grey < brightest)
    alone = len(edge) == 1 and top not in drawn
    few = len(edge) <= len(objects)
    if not edge or alone or few or 2 * between.sum() < pixels.sum():
        return 0
    outside = int((grey > top - PLATEAU).sum()), int((grey < PLATEAU).sum())
    blurred = 4 * outside[0] < pixels.sum() or sum(outside) < grey.size / 2
    if objects or blurred:
        raise InputError(
            f"{path} has smooth edges between {len(objects) + 1} or more greys, or is a photograph: {len(values)} values; "
            "expected one value an object; draw it without smoothing, or give one object"
        )
    return top


# ---------------------------------------------------------------------- indexed pictures


def _of_indexed(image: Image.Image, path: Path) -> Ids:
    """Return indices, unless the colours say that they are greys in disguise, or which of two is the background."""
    ids: Ids = np.array(image)
    listed = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(listed)] = listed
    used = [0, *_values(ids)] if (ids == 0).any() else _values(ids)
    davis = bool((palette[1] == DAVIS_RED).all())
    if davis:
        _refuse_smooth_colours(ids, path)
    elif (palette == palette[:, :1]).all():
        grey = Image.fromarray(palette[:, 0][ids])
        if (palette[used, 0] == used).all():
            return _of_grey(grey, path)
        top = _top_of_smooth(np.asarray(grey), path)
        if top:
            return (np.asarray(grey) >= top / 2).astype(np.uint8)
    else:
        _refuse_smooth_colours(np.asarray(image.convert("L")), path)
    black = [index for index in used if not palette[index].any()]
    bright = [index for index in used if palette[index].any()]
    if black and bright and 0 not in black:
        if len(bright) > 1:
            raise InputError(
                f"{path} has index {used[0]} in colour {palette[used[0]].tolist()} and black at index {black[0]}; "
                f"expected black background at index 0 and an object at each other; number them so"
            )
        return (ids == bright[0]).astype(np.uint8)
    if used in ([VOID], [0, VOID]) and not davis:
        return (ids == VOID).astype(np.uint8)
    objects = [index for index in used if index not in (0, VOID)]
    _check_number(len(objects), path)
    return np.where(ids == VOID, 0, ids).astype(np.uint8)


def _refuse_smooth_colours(levels: Ids, path: Path) -> None:
    """Refuse a smooth edge between colours, in their brightness, or in the indices of greys given DAVIS's colours."""
    if len(_values(levels)) > FEW_COLOURS and _top_of_smooth(levels, path):
        raise InputError(
            f"{path} has smooth edges in colour; expected one index an object; draw it without smoothing"
        )


def _check_number(objects: int, path: Path) -> None:
    if objects > MOST_OBJECTS:
        raise InputError(
            f"{path} has {objects} values, as a smooth edge or a photograph has; expected one value an object, at most "
            f"{MOST_OBJECTS}; threshold it"
        )


def _values(ids: Ids) -> list[int]:
    """Return the values above 0 that there are, ascending."""
    return [
        int(value) for value in np.flatnonzero(np.bincount(ids.ravel(), minlength=256)) if value
    ]
