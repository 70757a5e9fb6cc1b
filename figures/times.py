"""Where the time of a frame goes, run by run."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from figures.style import THEMES, ThemeName, finish
from probes.errors import InputError
from sparsity.evaluation.results import Result

DIVIDED = "Median time of a frame, divided as one other frame was whose stages were timed."
"""What the bars of `times_of` are, for the caption."""


def draw_times(
    stages: Mapping[str, Mapping[str, float]],
    caption: str,
    *,
    title: str = "Where the time of a frame goes",
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw one stacked bar a run.

    Parameters
    ----------
    stages
        Milliseconds a frame by run and stage; a stage that a run lacks is 0.
    """
    if not stages or not all(stages.values()):
        raise InputError(
            "a run without stages given; expected milliseconds by stage; measure with stages"
        )
    names = list(dict.fromkeys(name for run in stages.values() for name in run))
    runs = list(stages)
    figure = go.Figure()
    look = THEMES[theme]
    for n, name in enumerate(names):
        values = [stages[run].get(name, 0.0) for run in runs]
        figure.add_bar(
            x=values,
            y=runs,
            orientation="h",
            name=name,
            marker_color=look.series[n] if n < len(look.series) else look.skipped,
            marker_line={"color": look.paper, "width": 1},
            hovertemplate=f"{name}: %{{x:.1f}} ms<extra>%{{y}}</extra>",
        )
    for run in runs:
        total = sum(stages[run].values())
        figure.add_annotation(
            text=f"{total:.0f} ms",
            x=total,
            y=run,
            xanchor="left",
            xshift=4,
            showarrow=False,
        )
    left = 30 + 8 * max(map(len, runs))
    longest = max(sum(run.values()) for run in stages.values())
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_xaxes(title="time / ms per frame", range=[0, longest * 1.12])
    figure.update_yaxes(autorange="reversed", showgrid=False)
    finish(figure, title, caption, theme, height=210 + 46 * len(runs), top=96, left=left)
    figure.update_layout(
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    )
    return figure


def times_of(result: Result) -> dict[str, dict[str, float]]:
    """Milliseconds by run and stage of a result: a run's median frame, divided as the one frame with timed stages.

    Runs without either are left out.
    """
    found = {}
    for run in result.runs:
        if run.stages and run.ms_per_frame:
            scale = run.ms_per_frame.median / sum(run.stages.values())
            found[run.name] = {stage: scale * ms for stage, ms in run.stages.items()}
    return found
