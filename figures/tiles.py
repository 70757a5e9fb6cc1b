"""Pictures side by side: frames with attention, masks and numbers on them, on one colour scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from figures.paint import (
    add_scale,
    check_frame,
    darkened,
    even_shares,
    heat_map,
    lay_picture,
    shrink,
    stretch,
)
from figures.style import OBJECTS, THEMES, ThemeName, finish, write
from probes.errors import InputError

CONTOUR_WIDTH = 160


@dataclass(frozen=True)
class Tile:
    """One picture.

    Attributes
    ----------
    frame : uint8 [H, W, 3]
        The frame underneath.
    mass : float [h, w], optional
        Attention mass on the token grid, drawn over the frame as a multiple of the even share.
    even
        Mass of a token if attention were spread evenly; None: over this picture alone. Pictures with one
        `even` show how much each gets.
    masks : {object id: bool [H', W']}
        Outlined, each object in its colour by the order of ids in the whole figure.
    note
        Printed below the picture.
    mark : (x, y), optional
        A point in pixels of the frame: the query.
    """

    frame: ArrayLike
    mass: ArrayLike | None = None
    masks: Mapping[int, ArrayLike] = field(default_factory=dict)
    note: str = ""
    mark: tuple[float, float] | None = None
    even: float | None = None


def draw_tiles(
    rows: Sequence[Sequence[Tile | None]],
    title: str,
    caption: str,
    *,
    theme: ThemeName = "light",
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    tile_width: int = 250,
) -> go.Figure:
    """Draw a grid of pictures on one colour scale.

    Parameters
    ----------
    rows
        Pictures by row; all rows as long as the longest, None where there is none.
    row_names, column_names
        Printed left of the rows and above the columns.
    tile_width
        Of one picture, in pixels.
    """
    tiles = [tile for row in rows for tile in row if tile is not None]
    if not tiles:
        raise InputError("no pictures given; expected at least one; pass a frame")
    columns = max(len(row) for row in rows)
    tall, wide = check_frame(tiles[0].frame).shape[:2]
    tile_height = round(tile_width * tall / wide)
    gap_x, gap_y, left, right = 14, 30, 110 if row_names else 20, 96
    width = columns * tile_width + (columns - 1) * gap_x + left + right
    plots_height = len(rows) * tile_height + (len(rows) - 1) * gap_y
    figure = make_subplots(
        len(rows),
        columns,
        horizontal_spacing=gap_x / (width - left - right),
        vertical_spacing=gap_y / plots_height if len(rows) > 1 else 0,
    )
    heats = [even_shares(t.mass, t.even) for t in tiles if t.mass is not None]
    peak = max((float(np.nanmax(heat)) for heat in heats), default=1.0)
    ids = sorted({identity for tile in tiles for identity in tile.masks})
    for r, row in enumerate(rows, 1):
        for c, tile in enumerate(row, 1):
            if tile is not None:
                _place(figure, tile, r, c, ids, theme, 1.5 if tile_width < 200 else 2.5)
    top = 86 if column_names else 62
    finish(
        figure,
        title,
        caption,
        theme,
        width=width,
        height=plots_height + top + 50,
        below=36,
        top=top,
        left=left,
        right=right,
    )
    figure.update_layout(showlegend=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    _name(figure, row_names, column_names, columns, theme)
    if heats:
        add_scale(figure, peak, theme)
    return figure


def _place(
    figure: go.Figure, tile: Tile, r: int, c: int, ids: list[int], theme: ThemeName, thick: float
) -> None:
    """Draw one picture into its cell."""
    frame = check_frame(tile.frame)
    tall, wide = frame.shape[:2]
    place = {"row": r, "col": c}
    small = shrink(frame, 520)
    picture = small if tile.mass is None else darkened(small)
    lay_picture(figure, picture, 0, 0, wide, tall, layer="below", **place)
    figure.update_xaxes(range=[0, wide], **place)
    figure.update_yaxes(range=[tall, 0], **place)
    if tile.mass is not None:
        figure.add_trace(heat_map(even_shares(tile.mass, tile.even), wide, tall), **place)
    for identity, mask in tile.masks.items():
        line = {"color": OBJECTS[ids.index(identity) % len(OBJECTS)], "width": thick}
        _contour(figure, mask, line, wide, tall, place)
    if tile.mark is not None:
        figure.add_scatter(
            x=[tile.mark[0]],
            y=[tile.mark[1]],
            mode="markers",
            marker={"symbol": "cross-thin", "size": 15, "line": {"width": 3, "color": "#ffffff"}},
            hoverinfo="skip",
            **place,
        )
    if tile.note:
        font = {"size": 12, "color": THEMES[theme].ink}
        write(figure, tile.note, wide / 2, tall, "center top", place, font=font)


def _contour(
    figure: go.Figure,
    mask: ArrayLike,
    line: dict[str, object],
    wide: int,
    tall: int,
    place: dict[str, int],
) -> None:
    inside = np.asarray(mask) > 0
    columns = min(CONTOUR_WIDTH, inside.shape[1])
    small = stretch(inside, max(2, round(columns * tall / wide)), columns).astype(np.uint8)
    if small.any() and not small.all():
        h, w = small.shape
        figure.add_contour(
            z=small,
            x0=wide / w / 2,
            dx=wide / w,
            y0=tall / h / 2,
            dy=tall / h,
            contours={"start": 0.5, "end": 0.5, "size": 1, "coloring": "none"},
            line=line,
            showscale=False,
            hoverinfo="skip",
            **place,
        )


def _name(
    figure: go.Figure,
    row_names: Sequence[str],
    column_names: Sequence[str],
    columns: int,
    theme: ThemeName,
) -> None:
    """Print the names of rows and columns; on the figure, as the axes of a cell without a picture have no place."""
    font = {"size": 13, "color": THEMES[theme].ink}
    for c, name in enumerate(column_names, 1):
        middle = sum(figure.layout[f"xaxis{c}"].domain) / 2
        write(figure, name, middle, 1, "center bottom", yshift=4, font=font)
    for r, name in enumerate(row_names):
        middle = sum(figure.layout[f"yaxis{r * columns + 1}"].domain) / 2
        write(figure, name, 0, middle, "right middle", xshift=-8, align="right", font=font)
