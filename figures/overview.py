"""One frame at a glance: the tracked objects, the windows computed for them, the memory tokens read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from figures.paint import (
    Picture,
    dim,
    frame_at,
    lay_picture,
    outline_all,
    shrink,
    stretch,
    window_cover,
    window_lines,
)
from figures.style import THEMES, ThemeName, finish, write

WIDTH, GAP, LABEL = 1000, 12, 26

ON_AXES = {"xref": "x", "yref": "y"}


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


def memory_tiles(video: Any, call: Any) -> list[MemoryTile]:
    """Lay the keys that a memory cross-attention call read out on the frames they came from.

    Parameters
    ----------
    video
        What `probes.open_video` opened, or frames uint8 ``[H, W, 3]`` by index.
    call
        As `probes.observe` hands it over.
    """
    layout = call.moment.layouts[0]
    read = np.full(layout.keys, call.keys is None)
    if call.keys is not None:
        read[call.keys.cpu().numpy()] = True
    side = math.isqrt(layout.tokens)
    return [
        MemoryTile(
            frame_at(video, entry.frame),
            read[n * layout.tokens : (n + 1) * layout.tokens].reshape(side, side),
            "prompted frame" if entry.conditioning else f"{entry.age} back",
        )
        for n, entry in enumerate(layout.frames)
    ]


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
    tracked = outline_all(picture, masks, thick=3)
    covered = window_cover(kept, window_share, tall, wide)
    routed = window_lines(dim(tracked, covered), window_share)

    half = (WIDTH - GAP) / 2
    half_tall = half * tall / wide
    small = (WIDTH - GAP * (len(memory) - 1)) / max(1, len(memory))
    small_tall = small * tall / wide
    top = LABEL + half_tall + GAP + LABEL
    height = top + (small_tall + LABEL if memory else 0)

    figure = go.Figure()
    lay_picture(figure, tracked, 0, LABEL, half, half_tall, 90, **ON_AXES)
    lay_picture(figure, routed, half + GAP, LABEL, half, half_tall, 90, **ON_AXES)
    large: dict[str, Any] = {
        "place": ON_AXES,
        "borderpad": 0,
        "font": {"size": 14, "color": THEMES[theme].ink},
    }
    faint = {**large, "font": {"size": 12, "color": THEMES[theme].faint}}
    write(figure, "tracked object", 0, LABEL - 4, **large)
    computed = f"windows computed: {int(kept.sum())} of {kept.size}"
    write(figure, computed, half + GAP, LABEL - 4, **large)
    if memory:
        read = sum(int(np.asarray(tile.read).sum()) for tile in memory)
        total = sum(np.asarray(tile.read).size for tile in memory)
        write(figure, f"memory tokens read: {read:,} of {total:,}", 0, top - 4, **large)
    for n, tile in enumerate(memory):
        left = n * (small + GAP)
        lay_picture(figure, _lit(tile, 320), left, top, small, small_tall, 90, **ON_AXES)
        write(figure, tile.name, left, top + small_tall + 18, **faint)
    figure.update_xaxes(visible=False, range=[0, WIDTH])
    figure.update_yaxes(visible=False, range=[height, 0])
    finish(
        figure, title, caption, theme,
        width=WIDTH + 48, height=int(height) + 66, below=6, top=54, left=24, right=24,
    )  # fmt: skip
    return figure


def _lit(tile: MemoryTile, width: int) -> Picture:
    """The frame, dim but for the tokens that were read."""
    picture = shrink(tile.frame, width)
    read = stretch(np.asarray(tile.read, bool), *picture.shape[:2]).astype(bool)
    return dim(picture, read, 0.6)
