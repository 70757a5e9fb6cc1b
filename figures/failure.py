"""How well a run knows that a mask is wrong: by what it knows, and whether stated probabilities come true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from figures.style import THEMES, ThemeName, error_bars, finish
from probes.errors import InputError

NAMES = {
    "score": "object score",
    "run": "all a run knows",
    "attention": "attention alone",
    "score and attention": "score and attention",
    "run and attention": "run and attention",
    "trees": "the same, trees",
}
"""What is compared in ``benchmarks/failure.json``, and how a figure says it."""


def draw_failure(
    found: Mapping[str, Any],
    question: str = "now",
    *,
    clips: str = "dev",
    title: str = "Does a run know when its mask is wrong?",
    theme: ThemeName = "light",
    evidence: str = "",
) -> go.Figure:
    """Draw the area under the ROC curve by what is known (left), and how often stated probabilities came true (right).

    Parameters
    ----------
    found
        What ``benchmarks/failure.py`` writes.
    question
        ``"now"``, whether a mask is wrong; ``"ahead"``, whether one that is right will be soon.
    clips
        ``"dev"``, which chose nothing; or ``"fit"``, each judged by a model of the others.

    Raises
    ------
    InputError
        That isn't in what was found.
    """
    try:
        judged, told = found["judged"][question][clips], found["reliability"][question][clips]
    except KeyError:
        raise InputError(
            f"question {question!r} of clips {clips!r} given; expected one that benchmarks/failure.py answered; run it"
        ) from None
    look = THEMES[theme]
    figure = make_subplots(1, 2, horizontal_spacing=0.16)
    kinds = [kind for kind in NAMES if kind in judged]
    means = [judged[kind]["auc"]["mean"] for kind in kinds]
    figure.add_scatter(
        x=[NAMES[kind] for kind in kinds],
        y=means,
        error_y=error_bars(means, [_ends(judged[kind]["auc"]) for kind in kinds]),
        mode="markers",
        marker={"color": look.kept, "size": 8},
        hovertemplate="%{x}: %{y:.3f}<extra></extra>",
        showlegend=False,
        row=1,
        col=1,
    )
    ends = {"x": [0, 1], "y": [0, 1]}
    figure.add_scatter(
        **ends, mode="lines", line={"color": look.faint, "width": 1, "dash": "dot"},
        name="what is said comes true", hoverinfo="skip", row=1, col=2,
    )  # fmt: skip
    for n, (kind, bins) in enumerate(told.items()):
        shares = [one["wrong"]["mean"] for one in bins]
        figure.add_scatter(
            x=[one["predicted"] for one in bins],
            y=shares,
            error_y=error_bars(shares, [_ends(one["wrong"]) for one in bins]),
            mode="markers+lines",
            marker={"color": look.nth(n), "size": 7},
            name=NAMES[kind],
            text=[f"{one['rows']} masks" for one in bins],
            hovertemplate="said %{x:.2f}, was %{y:.2f} (%{text})<extra></extra>",
            row=1,
            col=2,
        )
    figure.update_xaxes(tickangle=30, showgrid=False, row=1, col=1)
    figure.update_yaxes(title="area under the ROC curve", range=[0, 1.02], row=1, col=1)
    figure.update_xaxes(title="probability said", range=[-0.03, 1.03], row=1, col=2)
    figure.update_yaxes(title="share that was wrong", range=[-0.03, 1.03], row=1, col=2)
    sizes = found["clips"][clips]
    asked = {
        "now": "Wrong: IoU with the true mask below 0.5.",
        "ahead": f"Masks that are right; wrong: IoU below 0.5 on one of the next {found['ahead']} frames.",
    }[question]
    caption = (
        f"{asked} {sizes['clips']} clips, {sizes[question]['masks']} masks, {sizes[question]['wrong']} of them wrong. Bars: "
        "95 % over clips; 0.5 on the left is chance."
    )
    return finish(
        figure, title, caption + evidence, theme, width=980, height=470, below=120, legend="above"
    )


def _ends(estimate: Mapping[str, Any]) -> tuple[float, float] | None:
    """Ends of an interval; None where clips were too few for one."""
    return None if estimate["low"] is None else (estimate["low"], estimate["high"])
