"""Masks in files: indexed PNG in the DAVIS palette, one value an object; and drawn over frames."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from probes.errors import InputError

Ids = NDArray[np.uint8]

VOID = 255
"""Value of indexed masks for pixels that are to be left out."""

HASH_FIELD = "efficient-sam2"
"""Text field of a written PNG that holds the hash of the run's settings."""


def davis_palette() -> Ids:
    """Return the palette of the DAVIS annotations, uint8 ``[256, 3]``.

    The first 22 colours are those of PASCAL VOC with 191 for 192, the others greys.

    >>> davis_palette()[[1, 2, 9, 22]].tolist()
    [[128, 0, 0], [0, 128, 0], [191, 0, 0], [22, 22, 22]]
    """
    ids = np.arange(256)
    palette = np.repeat(ids[:, None], 3, axis=1)
    for channel in range(3):
        high, low = (ids >> channel) & 1, (ids >> (channel + 3)) & 1
        palette[:22, channel] = np.minimum(128 * high + 64 * low, 191)[:22]
    return palette.astype(np.uint8)


PALETTE = davis_palette()


def merge_objects(logits: NDArray[np.float32], object_ids: list[int]) -> Ids:
    """Return one id a pixel: of the object with the highest logit above 0, else 0.

    Parameters
    ----------
    logits
        ``[objects, H, W]``.
    object_ids
        In the same order, 1 to 254.
    """
    best = logits.argmax(0)
    ids = np.asarray(object_ids, dtype=np.uint8)[best]
    return np.where(np.take_along_axis(logits, best[None], 0)[0] > 0, ids, 0).astype(np.uint8)


def write_mask(path: Path, ids: Ids, settings_hash: str) -> None:
    """Write an indexed PNG that carries `settings_hash`; the file is whole or absent."""
    image = Image.fromarray(ids)
    image.putpalette(PALETTE.tobytes())
    note = PngImagePlugin.PngInfo()
    note.add_text(HASH_FIELD, settings_hash)
    part = path.with_name(f".{path.name}.part")
    image.save(part, format="PNG", pnginfo=note)
    os.replace(part, path)


def written_by(path: Path, settings_hash: str) -> bool:
    """Tell whether `path` is a mask that a run with these settings wrote."""
    try:
        with Image.open(path) as image:
            return image.info.get(HASH_FIELD) == settings_hash
    except (OSError, UnidentifiedImageError):
        return False


def read_mask(path: Path) -> Ids:
    """Read ids from an indexed PNG, or from a grey one (0 and 255 alone: one object, id 1).

    Raises
    ------
    InputError
        There is no such file, it is no picture, it is in full colour, or a JPEG, whose values aren't exact.
    """
    if not path.is_file():
        raise InputError(
            f"mask {path} does not exist; expected an indexed or grey PNG; check the path"
        )
    try:
        with Image.open(path) as image:
            mode, form, values = image.mode, image.format, np.array(image)
    except (OSError, UnidentifiedImageError, SyntaxError):
        raise InputError(
            f"mask {path} can't be read as a picture; expected an indexed or grey PNG; replace it"
        ) from None
    if values.ndim != 2 or values.dtype not in (np.uint8, np.bool_):
        raise InputError(
            f"mask {path} is a picture in mode {mode}; expected indexed or grey, one value an object; "
            "convert it"
        )
    if form == "JPEG":
        raise InputError(
            f"mask {path} is a JPEG, which blurs values; expected an indexed or grey PNG, one value an "
            "object; threshold it and save it as PNG"
        )
    ids = values.astype(np.uint8)
    if mode == "P":
        return np.where(ids == VOID, 0, ids).astype(np.uint8)
    return (ids > 0).astype(np.uint8) if set(np.unique(ids).tolist()) <= {0, VOID} else ids


def draw_over(frame: Ids, ids: Ids) -> Ids:
    """Return the frame with each object tinted and outlined in its colour.

    Parameters
    ----------
    frame
        RGB, uint8 ``[H, W, 3]``.
    ids
        uint8 ``[H, W]``.
    """
    inside = ids > 0
    edge = np.zeros_like(inside)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    colours = PALETTE[ids]
    drawn = np.where(inside[..., None], (frame.astype(np.uint16) + colours) // 2, frame)
    drawn[edge & inside] = colours[edge & inside]
    return drawn.astype(np.uint8)
