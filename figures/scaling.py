"""How time and operations of a frame grow with what is computed, from the series of ``benchmarks/scaling.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from figures.style import THEMES, ThemeName, finish
from probes.errors import InputError

AXES = {
    "windows": ("windows", "windows computed / %", 100.0),
    "keys": ("keys", "memory keys read / %", 100.0),
    "objects": ("objects", "objects", 1.0),
    "size": ("size", "side of the input / pixels", 1.0),
}
"""By series: the field that grows, the title of its axis, and a factor."""


@dataclass(frozen=True)
class Growth:
    """One series, ascending in x.

    Attributes
    ----------
    ms, stock_ms
        Milliseconds a frame, accelerated and stock.
    gflop, stock_gflop
        Operations a frame.
    """

    x: tuple[float, ...]
    ms: tuple[float, ...]
    gflop: tuple[float, ...]
    stock_ms: tuple[float, ...]
    stock_gflop: tuple[float, ...]


def load_growth(folder: Path) -> dict[str, Growth]:
    """Read the series of a folder; those that were not measured are left out.

    Raises
    ------
    InputError
        A file is no such series.
    """
    found = {}
    for name, (field, _, factor) in AXES.items():
        try:
            files = sorted(folder.glob(f"{name}*.json"))
            rows = [row for file in files for row in json.loads(file.read_text())["rows"]]
            rows.sort(key=lambda row: row[field])
            columns = {
                key: tuple(float(row[key]) for row in rows)
                for key in ("ms", "gflop", "stock_ms", "stock_gflop")
            }
            x = tuple(factor * row[field] for row in rows)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"a {name} file in {folder} can't be read ({error}); expected what benchmarks/scaling.py "
                "writes; measure it again"
            ) from None
        if rows:
            found[name] = Growth(x, **columns)
    return found


def draw_scaling(
    series: Mapping[str, Growth],
    caption: str,
    *,
    title: str = "How a frame's cost grows",
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw one panel a series: time beside counted operations, for both predictors.

    Operations are scaled so that stock's first point of each panel lies on its time: where the two lines of
    a predictor run together, operations explain its time.
    """
    wanted: Sequence[str] = [name for name in AXES if name in series]
    if not wanted:
        raise InputError(
            "no series given; expected one of windows, keys, objects, size; measure them first"
        )
    look = THEMES[theme]
    columns = 2 if len(wanted) > 1 else 1
    height = -(-len(wanted) // columns)
    figure = make_subplots(height, columns, horizontal_spacing=0.1, vertical_spacing=0.2)
    for n, name in enumerate(wanted):
        growth, place = series[name], {"row": n // columns + 1, "col": n % columns + 1}
        scale = growth.stock_ms[0] / growth.stock_gflop[0]
        for label, ms, gflop, colour in (
            ("stock sam2", growth.stock_ms, growth.stock_gflop, look.skipped),
            ("accelerated", growth.ms, growth.gflop, look.kept),
        ):
            figure.add_scatter(
                x=growth.x, y=ms, mode="lines+markers", name=f"{label}, time", line={"color": colour},
                showlegend=n == 0, hovertemplate="%{x:.3g}: %{y:.0f} ms<extra></extra>", **place,
            )  # fmt: skip
            figure.add_scatter(
                x=growth.x, y=[scale * value for value in gflop], customdata=gflop, mode="lines",
                name=f"{label}, operations", line={"color": colour, "dash": "dot"}, showlegend=n == 0,
                hovertemplate="%{x:.3g}: %{customdata:.0f} GFLOP<extra></extra>", **place,
            )  # fmt: skip
        figure.update_xaxes(title=AXES[name][1], **place)
        figure.update_yaxes(title="time / ms per frame", rangemode="tozero", **place)
    finish(figure, title, caption, theme, height=150 + 300 * height, top=96)
    figure.update_layout(legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0})
    return figure
