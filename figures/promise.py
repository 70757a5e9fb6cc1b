"""Is the promise honest? What was stated against the loss over all clips, calibration after calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from figures.style import THEMES, ThemeName, finish
from probes.errors import InputError


def draw_promise(
    found: Mapping[str, Any],
    *,
    title: str = "How often is the promise kept?",
    theme: ThemeName = "light",
    evidence: str = "",
) -> go.Figure:
    """Draw the mean loss of the chosen setting over all clips, a point a calibration, beside the loss promised.

    Parameters
    ----------
    found
        What ``benchmarks/promise.py`` writes.
    """
    studies = found["studies"]
    if not studies:
        raise InputError("no studies given; expected at least one; run benchmarks/promise.py")
    look = THEMES[theme]
    figure = go.Figure()
    rng = np.random.default_rng(0)
    for n, study in enumerate(studies):
        means = np.array([mean for mean, _ in study["draws_shown"]])
        over = np.array([mean > stated for mean, stated in study["draws_shown"]], bool)
        place = n + rng.uniform(-0.3, 0.3, len(means))
        for broken, colour in ((False, look.kept), (True, look.alarm)):
            picked = over == broken
            figure.add_scatter(
                x=place[picked],
                y=means[picked],
                mode="markers",
                marker={"color": colour, "size": 5, "opacity": 0.6},
                name="more is lost than promised" if broken else "kept",
                legendgroup=str(broken),
                showlegend=n == 0,
                hovertemplate="%{y:.2f} points<extra></extra>",
            )
        figure.add_scatter(
            x=[n - 0.4, n + 0.4],
            y=[study["max_drop"]] * 2,
            mode="lines",
            line={"color": look.ink, "width": 2},
            name="promised",
            showlegend=n == 0,
        )
    labels = [
        f"max-drop {s['max_drop']:g}<br>{s['coverage']:.1%} of {s['draws']} covered"
        for s in studies
    ]
    figure.update_xaxes(tickvals=list(range(len(studies))), ticktext=labels)
    figure.update_yaxes(title="mean loss over all clips / points of J&F", rangemode="tozero")
    caption = (
        f"{found['clips']} clips and {len(found['settings'])} settings ({found['population']['model']}); calibration sets "
        f"drawn with replacement, the whole choice repeated in each; stated at {found['confidence']:.0%}. A point is a "
        "draw that chose a setting (the first 200); one that chose none loses nothing and counts as covered."
    )
    return finish(figure, title, caption + evidence, theme, below=72)
