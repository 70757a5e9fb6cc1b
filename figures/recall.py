"""How long a first choice of memory tokens lasts: mass recall over age, by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from figures.style import THEMES, ThemeName, finish
from probes.errors import InputError


@dataclass(frozen=True)
class RecallCurve:
    """Mass recall of one layer.

    Attributes
    ----------
    ages
        Frames since the first recollection.
    recall
        Share of a remembered frame's attention mass that the tokens chosen at first recollection still
        catch, in [0, 1].
    low, high
        Ends of the interval; None to leave it out.
    oracle
        What the best choice of as many tokens at that age would catch; None to leave it out.
    """

    ages: Sequence[int]
    recall: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    oracle: Sequence[float] | None = None


def draw_recall(
    curves: Mapping[str, RecallCurve],
    chance: float,
    caption: str,
    *,
    title: str = "How long a first choice of memory tokens lasts",
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw mass recall over age, a line a layer, against the best choice and chance.

    Parameters
    ----------
    curves
        By name of the layer.
    chance
        Recall of tokens chosen at random: the share kept.
    """
    if not curves:
        raise InputError("no layers given; expected at least one; pass a curve by layer")
    figure = go.Figure()
    look = THEMES[theme]
    for n, (name, curve) in enumerate(curves.items()):
        shade = look.series[n % len(look.series)]
        if curve.low is not None and curve.high is not None:
            figure.add_scatter(
                x=[*curve.ages, *reversed(curve.ages)],
                y=[*curve.high, *reversed(curve.low)],
                mode="lines",
                fill="toself",
                fillcolor=f"rgba({','.join(str(int(shade[i : i + 2], 16)) for i in (1, 3, 5))},0.16)",
                line={"width": 0},
                hoverinfo="skip",
                legendgroup=name,
                showlegend=False,
            )
        figure.add_scatter(
            x=curve.ages,
            y=curve.recall,
            name=name,
            legendgroup=name,
            mode="lines+markers",
            line={"color": shade, "width": 2.2},
            hovertemplate="age %{x}: %{y:.1%}",
        )
        if curve.oracle is not None:
            figure.add_scatter(
                x=curve.ages,
                y=curve.oracle,
                name=f"{name}, best choice at that age",
                legendgroup=name,
                mode="lines",
                line={"color": shade, "width": 1.2, "dash": "dash"},
                hovertemplate="age %{x}: %{y:.1%}",
            )
    figure.add_hline(
        chance,
        line={"color": look.faint, "width": 1, "dash": "dot"},
        annotation={"text": "chance", "font": {"color": look.faint}},
    )
    figure.update_xaxes(title="age / frames since the first recollection", dtick=1)
    figure.update_yaxes(title="mass recall", tickformat=".0%", range=[0, 1.02])
    finish(figure, title, caption, theme, width=900, height=470)
    figure.update_layout(legend={"x": 1.01, "y": 1}, margin_r=40)
    return figure
