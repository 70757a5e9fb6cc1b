"""Is low attention low effect? What is kept when only some windows or tokens are computed, by order of choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from figures.style import THEMES, ThemeName, finish
from probes.errors import InputError


@dataclass(frozen=True)
class KeptCurve:
    """Agreement with the dense run over the share that was computed.

    Attributes
    ----------
    shares
        Of windows or tokens, in [0, 1].
    agreement
        IoU with the dense mask, in [0, 1].
    low, high
        Ends of the interval; None to leave it out.
    """

    shares: Sequence[float]
    agreement: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def draw_ablation(
    curves: Mapping[str, KeptCurve],
    caption: str,
    *,
    title: str = "Is low attention low effect?",
    of: str = "windows",
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw agreement with the dense run over the share computed, a line an order of choice.

    Parameters
    ----------
    curves
        By name of the order, such as ``"most attended first"`` and ``"random"``.
    of
        What was chosen among, for the axis title.
    """
    if not curves:
        raise InputError("no curves given; expected at least one; ablate in at least one order")
    figure = go.Figure()
    look = THEMES[theme]
    for n, (name, curve) in enumerate(curves.items()):
        bars = None
        if curve.low is not None and curve.high is not None:
            bars = {
                "array": [h - a for h, a in zip(curve.high, curve.agreement, strict=True)],
                "arrayminus": [a - l for l, a in zip(curve.low, curve.agreement, strict=True)],
                "thickness": 1.2,
                "width": 4,
            }
        figure.add_scatter(
            x=curve.shares,
            y=curve.agreement,
            error_y=bars,
            name=name,
            mode="lines+markers",
            line={"color": look.series[n % len(look.series)], "width": 2.2},
            hovertemplate="%{x:.0%} computed: IoU %{y:.3f}",
        )
    figure.update_xaxes(title=f"share of {of} computed", tickformat=".0%", range=[0, 1.03])
    figure.update_yaxes(title="IoU with the dense mask", range=[0, 1.05])
    finish(figure, title, caption, theme, width=860, height=460)
    figure.update_layout(legend={"x": 1.01, "y": 1})
    return figure
