"""The memory film strip: what each frame recalls of each remembered frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from figures.paint import frame_at
from figures.style import ThemeName
from figures.tiles import Tile, draw_tiles
from probes.errors import InputError


@dataclass(frozen=True)
class Recollection:
    """What one frame recalls of one remembered frame.

    Attributes
    ----------
    frame
        Index of the frame that recalls.
    age
        Distance to the remembered frame, in frames; 0 stands for the prompted one.
    remembered
        Index of the remembered frame.
    mass : float [h, w]
        Attention mass on its tokens, on the scale of the row's other frames.
    similarity
        Cosine (CS) of the frame's key mass, of all queries and as a share of the frame's own, with the same at
        its first recollection; None at the first one.
    baseline
        The same by chance, if the tokens lay anyhow.
    """

    frame: int
    age: int
    remembered: int
    mass: ArrayLike
    similarity: float | None = None
    baseline: float | None = None


def draw_memory_filmstrip(
    video: Any,
    recollections: Sequence[Recollection],
    caption: str,
    *,
    title: str = "What memory attention recalls",
    masks: Mapping[int, Mapping[int, ArrayLike]] | None = None,
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw a row per recalling frame and a column per age: the remembered frame with the recalled mass on it.

    Columns stand as SAM 2 lays out its memory: the prompted frame, then from the oldest to the newest.

    Parameters
    ----------
    video
        What `probes.open_video` opened, or frames uint8 ``[H, W, 3]`` by index.
    masks
        By frame and object id, outlined on the remembered frames.

    Notes
    -----
    Colours are multiples of the even share of a token over all frames of a row, so a frame that gets more is
    brighter. The cosine similarity (CS) of two flat positive maps is near 1 whatever they show: read it against the
    baseline printed beside it.
    """
    if not recollections:
        raise InputError(
            "no recollections given; expected at least one; record memory attention of a tracked frame"
        )
    times = sorted({item.frame for item in recollections})
    ages = sorted({item.age for item in recollections}, key=lambda age: (age != 0, -age))
    table = {(item.frame, item.age): item for item in recollections}
    rows = []
    for time in times:
        told = [table.get((time, age)) for age in ages]
        even = float(np.mean([np.nanmean(np.asarray(item.mass, float)) for item in told if item]))
        rows.append([_tile(item, video, masks or {}, even) if item else None for item in told])
    return draw_tiles(
        rows,
        title,
        f"Attention over the even share of all frames of its row. {caption}",
        theme=theme,
        row_names=[f"frame {time}" for time in times],
        column_names=["prompted frame" if age == 0 else f"{age} back" for age in ages],
        tile_width=150,
    )


def _tile(
    item: Recollection, video: Any, masks: Mapping[int, Mapping[int, ArrayLike]], even: float
) -> Tile:
    note = f"of frame {item.remembered}"
    if item.similarity is not None:
        note = f"CS {item.similarity:.2f}"
        note += "" if item.baseline is None else f" (chance {item.baseline:.2f})"
    picture, outlined = frame_at(video, item.remembered), masks.get(item.remembered, {})
    return Tile(picture, item.mass, outlined, note, even=even)
