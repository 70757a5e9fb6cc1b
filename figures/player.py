"""The window-routing player: frame by frame, which windows were computed, the mask, and why."""

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
    data_uris_within,
    dim,
    frame_at,
    outline_all,
    shrink,
    window_cover,
    window_lines,
)
from figures.style import THEMES, ThemeName, finish, write
from probes.errors import InputError

BUDGET = 1_900_000
"""Bytes of all pictures together."""


@dataclass(frozen=True)
class RoutedFrame:
    """One frame of a routed run.

    Attributes
    ----------
    frame : uint8 [H, W, 3]
    masks : [H, W]
        Object ids by pixel, 0 for the background.
    windows : bool [rows, columns]
        Windows of encoder stage 3 that were computed.
    reason
        Why these, as the report says.
    index
        Of the frame in the video; None: its place in the run, for a run that begins on frame 0.
    """

    frame: ArrayLike
    masks: ArrayLike
    windows: ArrayLike
    reason: str
    index: int | None = None


def routed_frames(video: Any, masks: Any, report: Any) -> list[RoutedFrame]:
    """Lay a run out for the player.

    Parameters
    ----------
    video
        What `probes.open_video` opened, or frames uint8 ``[H, W, 3]`` by index.
    masks
        Object ids by pixel, ``[H, W]``, by index of the frame.
    report
        What an accelerated predictor's ``report(state)`` gave.
    """
    shown = []
    for done in report.frames:
        windows = np.zeros(done.windows_total, bool)
        windows[slice(None) if done.windows is None else done.windows] = True
        side = math.isqrt(done.windows_total)
        shown.append(
            RoutedFrame(
                frame_at(video, done.frame),
                masks[done.frame],
                windows.reshape(side, side),
                done.reason,
                done.frame,
            )
        )
    return shown


def draw_window_player(
    frames: Sequence[RoutedFrame],
    window_share: float,
    caption: str,
    *,
    title: str = "Which windows are computed",
    theme: ThemeName = "light",
    width: int = 640,
    shown: int = 0,
) -> go.Figure:
    """Draw a player with a slider: windows that took the shortcut are dark.

    Parameters
    ----------
    window_share
        Side of a window as a share of the token grid's side (windows at the border may reach over it).
    width
        Of the picture in pixels; all pictures together hold at most `BUDGET` bytes.
    shown
        Place of the frame that is shown before the player is used, and in a PNG.
    """
    if not frames:
        raise InputError("no frames given; expected at least one; track a clip first")
    pictures = [paint_windows(item, window_share, width) for item in frames]
    sources = data_uris_within(pictures, BUDGET)
    tall, wide = pictures[0].shape[:2]
    height = round(width * tall / wide)
    numbers = [n if item.index is None else item.index for n, item in enumerate(frames)]
    notes = [_note(number, item) for number, item in zip(numbers, frames, strict=True)]
    figure = go.Figure(
        go.Image(source=sources[shown], hoverinfo="skip", zsmooth="fast"),
        frames=[
            go.Frame(
                data=[go.Image(source=source)],
                layout={"annotations": [{"text": note}]},
                name=str(n),
            )
            for n, (source, note) in enumerate(zip(sources, notes, strict=True))
        ],
    )
    write(figure, notes[shown], 0, 1, yshift=4)
    figure.update_layout(sliders=[frame_slider(numbers, shown)], updatemenus=[play_buttons(theme)])
    finish(
        figure, title, caption, theme,
        width=width + 40, height=height + 206, below=100, top=92, left=20, right=20,
    )  # fmt: skip
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def paint_windows(item: RoutedFrame, window_share: float, width: int) -> Picture:
    """Paint one frame: masks outlined, window grid, windows that were not computed dark."""
    picture = shrink(item.frame, width)
    windows = np.asarray(item.windows, bool)
    dimmed = dim(picture, window_cover(windows, window_share, *picture.shape[:2]))
    return outline_all(window_lines(dimmed, window_share), item.masks)


def _note(number: int, item: RoutedFrame) -> str:
    windows = np.asarray(item.windows, bool)
    return f"frame {number}: {int(windows.sum())} of {windows.size} windows, {item.reason}"


def frame_slider(numbers: Sequence[int], shown: int) -> dict[str, object]:
    """A slider over a figure's frames, each labelled with its number; their names count from 0."""
    at_once = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
    return {
        "steps": [
            {
                "label": str(number),
                "method": "animate",
                "args": [[str(n)], {**at_once, "transition": {"duration": 0}}],
            }
            for n, number in enumerate(numbers)
        ],
        "active": shown,
        "currentvalue": {"visible": False},
        "x": 0.16,
        "len": 0.84,
        "y": 0,
        "pad": {"t": 16},
        "transition": {"duration": 0},
    }


def play_buttons(theme: ThemeName) -> dict[str, object]:
    """Play and stop."""
    play = {
        "frame": {"duration": 120, "redraw": True},
        "fromcurrent": True,
        "transition": {"duration": 0},
    }
    stop = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}}
    return {
        "type": "buttons",
        "showactive": False,
        "bgcolor": THEMES[theme].grid,
        "bordercolor": THEMES[theme].grid,
        "font": {"color": THEMES[theme].ink},
        "direction": "left",
        "x": 0,
        "xanchor": "left",
        "y": 0,
        "yanchor": "top",
        "pad": {"t": 26},
        "buttons": [
            {"label": "▶", "method": "animate", "args": [None, play]},
            {"label": "❚❚", "method": "animate", "args": [[None], stop]},
        ],
    }
