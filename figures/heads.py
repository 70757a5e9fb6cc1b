"""One recorded statistic, site by site and head by head: of the encoder, memory and the decoder alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from figures.style import THEMES, ThemeName, error_bars, finish
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
        there = [(n, of[head]) for n, of in enumerate(sites.values()) if head < len(of)]
        means = [one.mean for _, one in there]
        ends = [None if math.isnan(one.low) else (one.low, one.high) for _, one in there]
        figure.add_scatter(
            x=[n + (head - (heads - 1) / 2) * 0.7 / heads for n, _ in there],
            y=means,
            error_y=error_bars(means, ends),
            mode="markers",
            marker={"color": look.nth(head), "size": 7},
            name=f"head {head}",
            text=[list(sites)[n] for n, _ in there],
            hovertemplate="%{text}: %{y:.3g}",
        )
    figure.update_xaxes(
        tickvals=list(range(len(sites))), ticktext=list(sites), tickangle=30, showgrid=False
    )
    figure.update_yaxes(title=UNITS[statistic], rangemode="tozero")
    return finish(
        figure, title, caption, theme, width=max(560, 150 + 60 * len(sites)), height=500, below=150, legend="beside"
    )  # fmt: skip
