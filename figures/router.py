"""The learnt router against the paper's rule: what is kept at which recall, precision and recall, reliability.

Reads what ``benchmarks/router.py`` writes; all clips are ones that the router was not fitted to.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from figures.style import THEMES, ThemeName, finish

Report = dict[str, Any]


def draw_router(
    report: Report, which: str, theme: ThemeName = "light", evidence: str = ""
) -> go.Figure:
    """Draw one set of clips.

    Parameters
    ----------
    which
        Name of the set in the report.
    evidence
        What these weights are evidence of; ends the caption.
    """
    look, found = THEMES[theme], report["sets"][which]
    figure = make_subplots(
        1, 3, horizontal_spacing=0.09, subplot_titles=["windows for recall", "precision and recall", "reliability"]
    )  # fmt: skip
    curves = (
        (found["curve"], "router", "windows kept", "object tokens recalled"),
        ([point[::-1] for point in found["precision"]], "router", "needed windows found", "precision"),
        (found["reliability"], "router", "predicted share needed", "observed"),
    )  # fmt: skip
    for column, (points, name, x, y) in enumerate(curves, 1):
        figure.add_scatter(
            x=[p[0] for p in points],
            y=[p[1] for p in points],
            mode="lines+markers" if column == 3 else "lines",
            name=name,
            line={"color": look.kept},
            showlegend=column == 1,
            row=1,
            col=column,
        )
        figure.update_xaxes(title=x, row=1, col=column)
        figure.update_yaxes(title=y, row=1, col=column)
    points = (
        ("paper", "paper's rule", look.alarm),
        ("oracle", "who knew the next frame", look.ink),
    )
    for who, name, colour in points:
        figure.add_scatter(
            x=[found[who]["kept"]], y=[found[who]["recall"]], mode="markers", name=name,
            marker={"color": colour, "size": 11, "symbol": "diamond"}, row=1, col=1,
        )  # fmt: skip
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": look.faint, "dash": "dot"}, name="as predicted",
        row=1, col=3,
    )  # fmt: skip
    figure.update_yaxes(range=[min(0.9, found["paper"]["recall"] - 0.05), 1.002], row=1, col=1)
    low, high = found["saved_interval"]
    caption = (
        f"{len(found['clips'])} clips ({which}), each predicted by a router fitted to the others. At the recall of the "
        f"paper's rule the router keeps {found['saved']:.1%} fewer windows (95 % interval over clips {low:.1%} to "
        f"{high:.1%}). "
    )
    return finish(figure, "Which windows will the next frame need?", caption + evidence, theme)
