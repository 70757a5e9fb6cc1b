"""Statistics of attention: how few keys hold how much of it, and any one that is recorded, site by site and head by head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from figures.style import LETTER_WIDTH, THEMES, ThemeName, error_bars, finish
from probes.errors import InputError
from probes.estimates import Estimate

UNITS = {
    "entropy": "entropy, normalised (not comparable where numbers of keys differ)",
    "support": "effective support / keys",
    "n90": "keys that hold 90 % of the mass",
    "gini": "Gini index",
    "top10": "mass of the top 10 % of keys",
    "distance_px": "attention distance / px",
    "padding": "mass on padding",
    "lift": "lift / times chance",
    "moved": "share of the way to another mask",
}
"""By statistic of a recording, or effect of an edit: what the axis says."""

SYMBOLS = ("circle", "diamond-open", "x")
"""Of heads, each once through the colours."""

POINTS = 200
"""Points of a curve; more than the eye tells apart."""


def draw_concentration(
    mass: Mapping[str, ArrayLike],
    caption: str,
    *,
    title: str = "How few keys hold the attention",
    mark: float = 0.1,
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw the mass of the largest keys (left) and the Lorenz curve with its Gini index (right).

    Parameters
    ----------
    mass
        Key mass by name of the layer, ``[keys]`` or ``[samples, keys]``; with samples, the curve is the mean
        of the samples' curves.
    mark
        Share of keys whose mass is printed in the legend.
    """
    if not mass:
        raise InputError("no layers given; expected at least one; pass key mass by layer")
    figure = make_subplots(1, 2, horizontal_spacing=0.1)
    look = THEMES[theme]
    for n, (name, values) in enumerate(mass.items()):
        share, top = top_mass(values)
        shade = look.nth(n)
        label = f"{name}: top {mark:.0%} holds {np.interp(mark, share, top):.0%}, Gini {gini(values):.2f}"
        line = {"color": shade, "width": 2.2}
        figure.add_scatter(x=share, y=top, name=label, line=line, legendgroup=name, row=1, col=1)
        # the smallest keys' mass is what the largest leave
        figure.add_scatter(
            x=1 - share[::-1],
            y=1 - top[::-1],
            name=label,
            line=line,
            legendgroup=name,
            showlegend=False,
            row=1,
            col=2,
        )
    figure.update_traces(hovertemplate="%{x:.1%} of keys<br>%{y:.1%} of mass<extra></extra>")
    for col in (1, 2):
        figure.add_scatter(
            x=[0, 1],
            y=[0, 1],
            line={"color": look.faint, "width": 1, "dash": "dot"},
            mode="lines",
            name="even spread",
            showlegend=col == 1,
            hoverinfo="skip",
            row=1,
            col=col,
        )
    figure.update_xaxes(tickformat=".0%", range=[0, 1])
    figure.update_yaxes(tickformat=".0%", range=[0, 1.01])
    figure.update_xaxes(title="share of keys, largest first", row=1, col=1)
    figure.update_xaxes(title="share of keys, smallest first", row=1, col=2)
    figure.update_yaxes(title="attention mass", row=1, col=1)
    room = 21 * (len(mass) + 1) + 8
    finish(figure, title, caption, theme, height=450 + room, below=62 + room)
    # the legend lies between the axis titles and the caption
    plots = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    figure.update_layout(legend={"x": 0, "y": -58 / plots, "yanchor": "top", "tracegroupgap": 0})
    return figure


def top_mass(mass: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Shares of keys in [0, 1] and the mass that the largest such share holds, mean over samples.

    >>> share, top = top_mass([0.5, 0.5, 0.0, 0.0])
    >>> float(np.interp(0.5, share, top)), float(np.interp(0.25, share, top))
    (1.0, 0.5)
    """
    values = np.atleast_2d(np.asarray(mass, float))
    if values.min() < 0 or not (values.sum(axis=1) > 0).all():
        raise InputError(
            f"key mass of shape {values.shape} given with a negative value or an empty sample; expected rows "
            "with a positive sum; leave out frames without memory"
        )
    ordered = np.sort(values, axis=1)[:, ::-1].cumsum(axis=1) / values.sum(axis=1, keepdims=True)
    curve = np.concatenate([[0.0], ordered.mean(axis=0)])
    share = np.linspace(0, 1, len(curve))
    if len(curve) > POINTS:
        few = np.unique(np.round(np.linspace(0, 1, POINTS) ** 2 * (len(curve) - 1)).astype(int))
        share, curve = share[few], curve[few]
    return share, curve


def gini(mass: ArrayLike) -> float:
    """Gini index, mean over samples: 0 for an even spread, near 1 where one key has all (Hurley & Rickard 2009).

    >>> round(gini([1, 1, 1, 1]), 3), round(gini([0, 0, 0, 1]), 3)
    (0.0, 0.75)
    """
    values = np.sort(np.atleast_2d(np.asarray(mass, float)), axis=1)
    n = values.shape[1]
    weights = 2 * np.arange(1, n + 1) - n - 1
    return float(((values * weights).sum(axis=1) / (n * values.sum(axis=1))).mean())


def draw_statistic(
    sites: Mapping[str, Sequence[Estimate]],
    statistic: str,
    caption: str,
    *,
    title: str = "Head by head",
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw a statistic of some sites, a point a head, with intervals over clips where they are enough for one.

    Parameters
    ----------
    sites
        By site, an estimate a head: `figures.readings.by_head`.
    statistic
        Which one, for the axis; one of `UNITS`.

    Raises
    ------
    InputError
        No sites are given, or there is no such statistic.
    """
    if not sites or statistic not in UNITS:
        raise InputError(
            f"{len(sites)} sites and statistic {statistic!r} given; expected one site or more and one of "
            f"{', '.join(UNITS)}; pass what readings.by_head gives"
        )
    figure = go.Figure()
    look = THEMES[theme]
    heads = max(map(len, sites.values()))
    for head in range(heads):
        there = [(n, of) for n, of in enumerate(sites.values()) if head < len(of)]
        means = [of[head].mean for _, of in there]
        ends = [
            None if math.isnan(of[head].low) else (of[head].low, of[head].high) for _, of in there
        ]
        figure.add_scatter(
            x=[n + (head - (len(of) - 1) / 2) * 0.7 / heads for n, of in there],
            y=means,
            error_y=error_bars(means, ends),
            mode="markers",
            marker={
                "color": look.nth(head),
                "symbol": SYMBOLS[head // len(look.series) % len(SYMBOLS)],
                "size": 7,
            },
            name=f"head {head}",
            text=[list(sites)[n] for n, _ in there],
            hovertemplate="%{text}: %{y:.3g}",
        )
    figure.update_xaxes(
        tickvals=list(range(len(sites))), ticktext=list(sites), tickangle=30, showgrid=False,
        ticklabeloverflow="allow",
    )  # fmt: skip
    figure.update_yaxes(title=UNITS[statistic], rangemode="tozero")
    right = max(28, int(LETTER_WIDTH * len(list(sites)[-1])) - 20)  # where the last name ends
    return finish(
        figure, title, caption, theme,
        width=max(560, 150 + 60 * len(sites)) + right, height=500, below=150, right=right, legend="beside",
    )  # fmt: skip
