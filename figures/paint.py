"""Pictures painted pixel by pixel: frames made smaller, outlines, windows, heat; and how they travel inside a figure."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from plotly.colors import get_colorscale, sample_colorscale

from figures.style import HEAT, OBJECTS, PAPER, THEMES, ThemeName, write
from probes.errors import InputError

Picture = NDArray[np.uint8]
"""RGB, ``[H, W, 3]``."""

FLOOR = 0.1
"""Attention below a tenth of the even share is drawn as nothing."""

UNDERNEATH = 85
"""Mean grey level, at most, of what heat is laid over."""

BAR_WIDTH, BAR_GAP = 12, 12
"""Pixels of the scale's bar, and between the pictures and it."""


def colour(name: str) -> NDArray[np.uint8]:
    """Turn ``#rrggbb`` into three numbers."""
    return np.frombuffer(bytes.fromhex(name.lstrip("#")), np.uint8)


def check_frame(frame: ArrayLike) -> Picture:
    """Return a frame as an array, or say what is wrong with it."""
    picture = np.asarray(frame)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise InputError(
            f"a frame of shape {picture.shape} and type {picture.dtype} given; expected RGB, uint8 [H, W, 3]; "
            "convert it"
        )
    return picture


def frame_at(video: Any, index: int) -> ArrayLike:
    """Return a frame of what `probes.open_video` opened, or of frames by index."""
    frame: ArrayLike = video.frame(index) if hasattr(video, "frame") else video[index]
    return frame


def shrink(frame: ArrayLike, width: int) -> Picture:
    """Return the frame at most `width` pixels wide, its aspect kept."""
    picture = check_frame(frame)
    if picture.shape[1] <= width:
        return picture
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def stretch(grid: NDArray[np.generic], height: int, width: int) -> NDArray[np.generic]:
    """Return a grid ``[h, w]`` or picture ``[h, w, 3]`` over ``[height, width]`` pixels: each cell a plain rectangle.

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


def window_lines(picture: Picture, window: float) -> Picture:
    """Draw the window grid in white, a `window` being that share of the picture's side."""
    drawn = picture.astype(np.uint16)
    height, width = picture.shape[:2]
    lines = np.zeros((height, width), bool)
    for n in range(1, int(np.ceil(1 / window - 1e-9))):
        lines[min(height - 1, round(n * window * height))] = True
        lines[:, min(width - 1, round(n * window * width))] = True
    drawn[lines] = (drawn[lines] * 2 + 255) // 3
    return drawn.astype(np.uint8)


def window_cover(
    windows: NDArray[np.bool_], window: float, height: int, width: int
) -> NDArray[np.bool_]:
    """Which pixels belong to windows that are True, bool ``[height, width]``; `window` as in `window_lines`."""
    cells = np.linspace(0, 1 / window, 512, endpoint=False).astype(int)
    return stretch(windows[np.ix_(cells, cells)], height, width).astype(bool)


def jpeg(picture: Picture, quality: int) -> bytes:
    """A picture as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def data_uri(picture: Picture, quality: int = 85) -> str:
    """A picture as a JPEG inside an address, so that it travels with its figure."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(picture, quality)).decode()


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
            found, left = [], budget
            for picture in pictures:
                found.append(data_uri(picture, quality))
                left -= len(found[-1])
                if left < 0:
                    break
            else:
                return found
        width = pictures[0].shape[1] * 3 // 4
        if width < 64:
            break
        pictures = [shrink(picture, width) for picture in pictures]
    raise InputError(
        f"{len(pictures)} frames don't fit into {budget} bytes; expected fewer frames; take every second one"
    )


def heat_colours() -> NDArray[np.uint8]:
    """The heat scale as a table, uint8 ``[256, 3]``; entry 0 is no attention."""
    shades = sample_colorscale(get_colorscale(HEAT), np.linspace(0, 1, 256), colortype="tuple")
    return np.round(np.array(shades) * 255).astype(np.uint8)


def even_shares(mass: ArrayLike, even: float | None = None) -> NDArray[np.float64]:
    """Return attention mass ``[h, w]`` as multiples of the even share: 1 everywhere if attention is spread evenly.

    What took no part is NaN, and stays so.

    Parameters
    ----------
    even
        Mass of a cell if attention were spread evenly; None: over this map alone, so that its mean is 1.

    >>> even_shares([[0.5, 0.5], [0.0, 0.0]]).tolist()
    [[2.0, 2.0], [0.0, 0.0]]
    """
    values = np.asarray(mass, float)
    there = values[~np.isnan(values)]
    if values.ndim != 2 or not there.size or there.min() < 0 or not np.isfinite(there).all():
        raise InputError(
            f"attention mass of shape {values.shape} given; expected [h, w], finite and not negative; "
            "pass one map on the token grid"
        )
    spread = float(there.mean()) if even is None else even
    return values / spread if spread > 0 else values


def lay_picture(
    figure: go.Figure,
    picture: Picture,
    x: float,
    y: float,
    wide: float,
    tall: float,
    quality: int = 85,
    **place: Any,
) -> None:
    """Lay a picture on a figure with its upper left corner at `x` and `y`, unless `place` says otherwise."""
    figure.add_layout_image(
        source=data_uri(picture, quality),
        x=x,
        y=y,
        sizex=wide,
        sizey=tall,
        sizing="stretch",
        **place,
    )


def heat_map(
    shares: NDArray[np.float64], wide: int, tall: int, difference: bool = False
) -> go.Heatmap:
    """Multiples of the even share, or the difference of some, over a picture of `wide` x `tall` pixels."""
    h, w = shares.shape
    return go.Heatmap(
        z=(shares if difference else np.log10(np.maximum(shares, FLOOR))).astype(np.float32),
        customdata=shares.astype(np.float32),
        x0=wide / w / 2, dx=wide / w, y0=tall / h / 2, dy=tall / h,
        coloraxis="coloraxis2" if difference else "coloraxis",
        hoverongaps=False, hovertemplate="%{customdata:.2f} × even share<extra></extra>",
    )  # fmt: skip


def underneath(frame: Picture) -> NDArray[Any]:
    """A frame without its colours and not bright, so that heat stands out, ``[H, W, 1]``."""
    grey: NDArray[Any] = frame.mean(axis=2, keepdims=True)
    return grey * min(1.0, UNDERNEATH / max(1.0, grey.mean()))


def darkened(frame: Picture) -> Picture:
    """`underneath` as a picture."""
    return np.repeat(underneath(frame), 3, axis=2).astype(np.uint8)


def heat_opacity() -> NDArray[np.float64]:
    """How little of what lies underneath each entry of `heat_colours` lets through, ``[256]``."""
    return np.minimum(0.85, 0.12 + 0.95 * np.arange(256) / 255)


def heated(frame: Picture, shares: NDArray[np.floating], top: float) -> Picture:
    """The frame, grey and dim, with multiples of the even share ``[h, w]`` over it, on a scale that ends at `top`."""
    grey = underneath(frame)
    place = np.log10(np.maximum(shares, FLOOR) / FLOOR) / np.log10(top / FLOOR)
    entries = np.round(255 * np.minimum(place, 1)).astype(np.uint8)
    opacity = np.where(shares < FLOOR, 0, heat_opacity()[entries])
    spread, opacity = (stretch(part, *frame.shape[:2]) for part in (entries, opacity))
    opacity = opacity[..., None]
    return (heat_colours()[spread] * opacity + grey * (1 - opacity)).astype(np.uint8)


def add_scale(figure: go.Figure, peak: float, theme: ThemeName) -> None:
    """Set the colours of all heat from a tenth of the even share to the peak, and draw their bar at the right.

    Little attention is transparent, so the bar is painted over grey, as the maps are.
    """
    top = max(1.0, float(np.ceil(np.log10(max(peak, FLOOR)) * 2) / 2))
    low = float(np.log10(FLOOR))
    table = heat_colours()
    opacity = heat_opacity()
    figure.update_layout(
        coloraxis={
            "cmin": low,
            "cmax": top,
            "showscale": False,
            "colorscale": [
                [i / 255, f"rgba({','.join(map(str, table[i]))},{opacity[i]:.2f})"]
                for i in range(0, 256, 15)
            ],
        }
    )
    seen = table * opacity[:, None] + UNDERNEATH * (1 - opacity[:, None])
    width, height = figure.layout.width, figure.layout.height
    margin = figure.layout.margin
    across = width - margin.l - margin.r
    length = 1 - 44 / (height - margin.t - margin.b)  # below the title of the scale
    bar = np.repeat(seen[::-1, None].astype(np.uint8), BAR_WIDTH, axis=1)
    right = 1 + BAR_GAP / across
    lay_picture(
        figure,
        bar,
        right,
        0,
        BAR_WIDTH / across,
        length,
        95,
        name="scale",
        yanchor="bottom",
        **PAPER,
    )
    font = {"size": 12, "color": THEMES[theme].ink}
    title: dict[str, Any] = {"yshift": 6, "xshift": BAR_GAP - 2, "align": "left", "font": font}
    write(figure, "attention /<br>even share", 1, 1, "left top", **title)
    for tick in range(-1, int(np.floor(top)) + 1):
        at, shift = length * (tick - low) / (top - low), BAR_GAP + BAR_WIDTH + 2
        write(figure, f"{10.0**tick:g}×", 1, at, "left middle", xshift=shift, font=font)
