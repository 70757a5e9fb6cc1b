"""What few tokens or windows keep: of attention, while memory ages, and of the mask, by the order of their choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from figures.style import THEMES, ThemeName, error_bars, finish
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
        Ends of the interval, NaN where clips are too few for one; None to leave it out.
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
        shade = look.nth(n)
        if curve.low is not None and curve.high is not None:
            ends = zip(curve.ages, curve.low, curve.high, strict=True)
            band = [end for end in ends if not math.isnan(end[1])]  # of too few clips
            figure.add_scatter(
                x=[age for age, _, _ in (*band, *reversed(band))],
                y=[*(high for *_, high in band), *(low for _, low, _ in reversed(band))],
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
    for name, curve in curves.items():
        if curve.oracle is not None:
            figure.add_scatter(
                x=curve.ages,
                y=curve.oracle,
                name=f"{name}, best choice at that age",
                legendgroup=name,
                mode="lines",
                # the two lie together where a first choice lasts, so this one stands out from the line below it
                line={"color": look.ink, "width": 1.2, "dash": "dash"},
                hovertemplate="age %{x}: %{y:.1%}",
            )
    figure.add_hline(
        chance,
        line={"color": look.faint, "width": 1, "dash": "dot"},
        annotation={"text": "chance", "font": {"color": look.faint}},
    )
    figure.update_xaxes(title="age / frames since the first recollection", dtick=1)
    figure.update_yaxes(title="mass recall", tickformat=".0%", range=[0, 1.02])
    finish(figure, title, caption, theme, height=470, legend="beside")
    return figure.update_layout(margin_r=40)


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
        ends: list[tuple[float, float]] = []
        if curve.low is not None and curve.high is not None:
            ends = list(zip(curve.low, curve.high, strict=True))
        figure.add_scatter(
            x=curve.shares,
            y=curve.agreement,
            error_y=error_bars(curve.agreement, ends),
            name=name,
            mode="lines+markers",
            line={"color": look.nth(n), "width": 2.2},
            hovertemplate="%{x:.0%} computed: IoU %{y:.3f}",
        )
    figure.update_xaxes(title=f"share of {of} computed", tickformat=".0%", range=[0, 1.03])
    figure.update_yaxes(title="IoU with the dense mask", range=[0, 1.05])
    return finish(figure, title, caption, theme, width=860, height=460, legend="beside")
