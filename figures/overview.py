"""One frame at a glance: the tracked objects, the windows computed for them, the memory tokens read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from figures.paint import (
    Picture,
    check_frame,
    data_uri,
    dim,
    outline_all,
    shrink,
    stretch,
    window_lines,
)
from figures.player import cover
from figures.style import THEMES, ThemeName, finish

WIDTH, GAP, LABEL = 1000, 12, 26


@dataclass(frozen=True)
class MemoryTile:
    """One frame of the memory bank.

    Attributes
    ----------
    frame : uint8 [H, W, 3]
    read : bool [h, w]
        Tokens that were read, on the token grid.
    name
        Its place in the bank, such as ``"prompt"`` or ``"2 frames ago"``.
    """

    frame: ArrayLike
    read: ArrayLike
    name: str


def draw_overview(
    frame: ArrayLike,
    masks: ArrayLike,
    windows: ArrayLike,
    window_share: float,
    memory: Sequence[MemoryTile],
    caption: str,
    *,
    title: str = "What is computed for one frame",
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw the tracked objects, the windows that were computed, and the memory tokens that were read.

    Parameters
    ----------
    frame
        uint8 ``[H, W, 3]``.
    masks
        Object ids by pixel, ``[H, W]``, 0 for the background.
    windows
        Bool ``[rows, columns]`` of encoder stage 3: computed, or sent through the shortcut.
    window_share
        Side of a window as a share of the token grid's side (windows at the border may reach over it).
    memory
        From the prompt to the newest frame.
    """
    kept = np.asarray(windows, bool)
    picture = shrink(frame, 640)
    tall, wide = picture.shape[:2]
    covered = cover(kept, window_share, picture)
    tracked = outline_all(picture, masks, thick=3)
    routed = window_lines(dim(outline_all(picture, masks, thick=3), covered), window_share)

    half = (WIDTH - GAP) / 2
    half_tall = half * tall / wide
    small = (WIDTH - GAP * (len(memory) - 1)) / max(1, len(memory))
    small_tall = small * tall / wide
    top = LABEL + half_tall + GAP + LABEL
    height = top + (small_tall + LABEL if memory else 0)

    figure = go.Figure()
    ink = THEMES[theme].ink
    _put(figure, tracked, 0, LABEL, half, half_tall)
    _put(figure, routed, half + GAP, LABEL, half, half_tall)
    _say(figure, "tracked object", 0, LABEL - 4, ink)
    _say(
        figure,
        f"windows computed: {int(kept.sum())} of {kept.size}",
        half + GAP,
        LABEL - 4,
        ink,
    )
    if memory:
        read = sum(int(np.asarray(tile.read).sum()) for tile in memory)
        total = sum(np.asarray(tile.read).size for tile in memory)
        _say(figure, f"memory tokens read: {read:,} of {total:,}", 0, top - 4, ink)
    for n, tile in enumerate(memory):
        left = n * (small + GAP)
        _put(figure, _lit(tile, 320), left, top, small, small_tall)
        _say(figure, tile.name, left, top + small_tall + 18, THEMES[theme].faint, 12)
    figure.update_xaxes(visible=False, range=[0, WIDTH])
    figure.update_yaxes(visible=False, range=[height, 0])
    finish(
        figure, title, caption, theme,
        width=WIDTH + 48, height=int(height) + 66, below=6, top=54, left=24, right=24,
    )  # fmt: skip
    return figure


def _lit(tile: MemoryTile, width: int) -> Picture:
    """The frame, dim but for the tokens that were read."""
    picture = shrink(check_frame(tile.frame), width)
    read = stretch(np.asarray(tile.read, bool), *picture.shape[:2]).astype(bool)
    return dim(picture, read, 0.6)


def _put(
    figure: go.Figure, picture: Picture, x: float, y: float, width: float, height: float
) -> None:
    figure.add_layout_image(
        source=data_uri(picture, 90),
        x=x,
        y=y,
        sizex=width,
        sizey=height,
        xref="x",
        yref="y",
        sizing="stretch",
    )


def _say(figure: go.Figure, text: str, x: float, y: float, shade: str, size: int = 14) -> None:
    figure.add_annotation(
        text=text,
        x=x,
        y=y,
        xref="x",
        yref="y",
        xanchor="left",
        yanchor="bottom",
        borderpad=0,
        showarrow=False,
        font={"size": size, "color": shade},
    )
