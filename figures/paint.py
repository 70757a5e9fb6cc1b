"""Pictures painted pixel by pixel: heat, outlines, windows; and how they travel inside a figure."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from plotly.colors import get_colorscale, sample_colorscale

from figures.style import HEAT, OBJECTS
from probes.errors import InputError

Picture = NDArray[np.uint8]
"""RGB, ``[H, W, 3]``."""


def colour(name: str) -> NDArray[np.uint8]:
    """Turn ``#rrggbb`` into three numbers."""
    return np.frombuffer(bytes.fromhex(name.lstrip("#")), np.uint8)


def heat_colours() -> NDArray[np.uint8]:
    """The heat scale as a table, uint8 ``[256, 3]``; entry 0 is no attention."""
    shades = sample_colorscale(get_colorscale(HEAT), np.linspace(0, 1, 256), colortype="tuple")
    return np.round(np.array(shades) * 255).astype(np.uint8)


def check_frame(frame: ArrayLike) -> Picture:
    """Return a frame as an array, or say what is wrong with it."""
    picture = np.asarray(frame)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise InputError(
            f"a frame of shape {picture.shape} and type {picture.dtype} given; expected RGB, uint8 [H, W, 3]; "
            "convert it"
        )
    return picture


def shrink(frame: ArrayLike, width: int) -> Picture:
    """Return the frame at most `width` pixels wide, its aspect kept."""
    picture = check_frame(frame)
    if picture.shape[1] <= width:
        return picture
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def stretch(grid: NDArray[np.generic], height: int, width: int) -> NDArray[np.generic]:
    """Return a grid ``[h, w]`` over ``[height, width]`` pixels: each cell a plain rectangle.

    SAM 2 stretches a frame to a square, so a grid always covers the whole frame.
    """
    rows = (np.arange(height) + 0.5) * grid.shape[0] / height
    columns = (np.arange(width) + 0.5) * grid.shape[1] / width
    return grid[rows.astype(int)[:, None], columns.astype(int)[None]]


def outline(picture: Picture, mask: ArrayLike, shade: str = OBJECTS[0], thick: int = 2) -> Picture:
    """Return the picture with a mask's boundary drawn; the mask may have another size."""
    inside = np.asarray(mask) > 0
    if not inside.any():
        return picture
    if inside.shape != picture.shape[:2]:
        inside = stretch(inside, *picture.shape[:2]).astype(bool)
    core = inside.copy()
    for _ in range(thick):
        padded = np.pad(core, 1, mode="edge")
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    drawn = picture.copy()
    drawn[inside & ~core] = colour(shade)
    return drawn


def outline_all(picture: Picture, masks: ArrayLike, thick: int = 2) -> Picture:
    """Draw each object of an indexed mask ``[H, W]`` (ids 1, 2, …) in its colour, whoever else is there."""
    indexed = np.asarray(masks)
    for identity in np.unique(indexed[indexed > 0]):
        shade = OBJECTS[(int(identity) - 1) % len(OBJECTS)]
        picture = outline(picture, indexed == identity, shade, thick)
    return picture


def dim(picture: Picture, kept: NDArray[np.bool_], strength: float = 0.72) -> Picture:
    """Darken and grey what is not kept, bool ``[H, W]``."""
    grey = picture.mean(axis=2, keepdims=True) * (1 - strength) + 18
    return np.where(kept[..., None], picture, grey).astype(np.uint8)


def window_lines(picture: Picture, window: float, shade: str = "#ffffff") -> Picture:
    """Draw the window grid, a `window` being that share of the picture's side."""
    drawn = picture.astype(np.uint16)
    height, width = picture.shape[:2]
    lines = np.zeros((height, width), bool)
    for n in range(1, int(np.ceil(1 / window - 1e-9))):
        lines[min(height - 1, round(n * window * height))] = True
        lines[:, min(width - 1, round(n * window * width))] = True
    drawn[lines] = (drawn[lines] * 2 + colour(shade)) // 3
    return drawn.astype(np.uint8)


def data_uri(picture: Picture, quality: int = 85) -> str:
    """A picture as a JPEG inside an address, so that it travels with its figure."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(picture, quality)).decode()


def jpeg(picture: Picture, quality: int) -> bytes:
    """Compress a picture."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def data_uris_within(pictures: Sequence[Picture], budget: int) -> list[str]:
    """Compress pictures so that all addresses together hold at most `budget` bytes.

    Quality falls first, from 85 to 45, then size, by a quarter at a time.

    Raises
    ------
    InputError
        They don't fit even at 64 pixels' width.
    """
    while True:
        for quality in (85, 70, 55, 45):
            found = [data_uri(picture, quality) for picture in pictures]
            if sum(map(len, found)) <= budget:
                return found
        width = pictures[0].shape[1] * 3 // 4
        if width < 64:
            break
        pictures = [shrink(picture, width) for picture in pictures]
    raise InputError(
        f"{len(pictures)} frames don't fit into {budget} bytes; expected fewer frames; take every second one"
    )
