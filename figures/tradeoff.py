"""Speed against accuracy, one point a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from figures.style import THEMES, ThemeName, finish
from probes.errors import InputError
from sparsity.evaluation.results import Result

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "hexagon", "triangle-down")


@dataclass(frozen=True)
class TradeOff:
    """One run.

    Attributes
    ----------
    speed
        Time of stock sam2 over time of this run; above 1 is faster.
    quality
        J&F in per cent.
    speed_range, quality_range
        Ends of the intervals; None to leave them out.
    """

    name: str
    speed: float
    quality: float
    speed_range: tuple[float, float] | None = None
    quality_range: tuple[float, float] | None = None


def draw_trade_off(
    runs: Sequence[TradeOff],
    caption: str,
    *,
    title: str = "Speed against accuracy",
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw J&F over the ratio to stock sam2, with intervals; up and to the right is better."""
    if not runs:
        raise InputError(
            "no runs given; expected at least one with time and J&F; evaluate and bench the same profiles"
        )
    figure = go.Figure()
    look = THEMES[theme]
    for n, run in enumerate(runs):
        shade = look.series[n % len(look.series)]
        figure.add_scatter(
            x=[run.speed],
            y=[run.quality],
            error_x=_bar(run.speed, run.speed_range, shade),
            error_y=_bar(run.quality, run.quality_range, shade),
            mode="markers",
            marker={"size": 12, "color": shade, "symbol": SYMBOLS[n % len(SYMBOLS)]},
            name=run.name,
            showlegend=True,
            hovertemplate="%{x:.2f}× stock, J&F %{y:.1f}",
        )
    figure.add_vline(1, line={"color": look.faint, "width": 1, "dash": "dot"})
    fastest = max(run.speed_range[1] if run.speed_range else run.speed for run in runs)
    slowest = min(run.speed_range[0] if run.speed_range else run.speed for run in runs)
    room = max(0.1, fastest - slowest) * 0.15
    figure.update_xaxes(
        title="speed / times stock sam2", range=[min(slowest, 1) - room, fastest + 2 * room]
    )
    figure.update_yaxes(title="J&F / %")
    finish(figure, title, caption, theme, width=860, height=470)
    # points of near equal speed lie close, so names stand beside the plot
    figure.update_layout(legend={"x": 1.01, "y": 1})
    return figure


def trade_offs_of(result: Result) -> list[TradeOff]:
    """The runs of a result that have both a ratio and a quality."""
    found = []
    for run in result.runs:
        if run.ratio is not None and run.quality is not None:
            found.append(
                TradeOff(
                    run.name,
                    run.ratio.median,
                    run.quality.j_and_f,
                    (run.ratio.low, run.ratio.high),
                    run.quality.intervals.get("j_and_f"),
                )
            )
    return found


def _bar(middle: float, ends: tuple[float, float] | None, shade: str) -> dict[str, object] | None:
    if ends is None:
        return None
    return {
        "array": [ends[1] - middle],
        "arrayminus": [middle - ends[0]],
        "color": shade,
        "thickness": 1.2,
        "width": 4,
    }
