"""What was measured of speed: where the time of a frame goes, speed against accuracy, and both on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from figures.export import save_page
from figures.style import THEMES, ThemeName, error_bars, evidence, finish, write
from probes.errors import InputError
from probes.estimates import FEWEST
from sparsity.evaluation.results import Result

DIVIDED = "Median time of a frame, divided as one other frame was whose stages were timed."
"""What the bars of `times_of` are, for the caption."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "hexagon", "triangle-down")


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
        write(figure, f"{total:.0f} ms", total, run, "left middle", {}, xshift=4)
    left = 30 + 8 * max(map(len, runs))
    longest = max(sum(run.values()) for run in stages.values())
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_xaxes(title="time / ms per frame", range=[0, longest * 1.12])
    figure.update_yaxes(autorange="reversed", showgrid=False)
    height = 210 + 46 * len(runs)
    return finish(
        figure, title, caption, theme, height=height, top=96, left=left, legend="above"
    ).update_layout(legend_traceorder="normal")


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


@dataclass(frozen=True)
class TradeOff:
    """One run.

    Attributes
    ----------
    speed
        Time of stock sam2 over time of this run; above 1 is faster.
    loss
        J&F of the dense run less that of this one, in points, mean over the same clips; below 0 is a gain.
    speed_range, loss_range
        Ends of the intervals; None to leave them out. Of losses paired clip by clip: J&F itself differs far more from
        clip to clip than a setting's loss does.
    """

    name: str
    speed: float
    loss: float
    speed_range: tuple[float, float] | None = None
    loss_range: tuple[float, float] | None = None


def draw_trade_off(
    runs: Sequence[TradeOff],
    caption: str,
    *,
    title: str = "Speed against accuracy",
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw the loss of J&F over the ratio to stock sam2, with intervals; up and to the right is better."""
    if not runs:
        raise InputError(
            "no runs given; expected at least one with time and J&F; evaluate and bench the same profiles"
        )
    figure = go.Figure()
    look = THEMES[theme]
    for n, run in enumerate(runs):
        shade = look.nth(n)
        figure.add_scatter(
            x=[run.speed],
            y=[run.loss],
            error_x=error_bars([run.speed], [run.speed_range], color=shade),
            error_y=error_bars([run.loss], [run.loss_range], color=shade),
            mode="markers",
            marker={"size": 12, "color": shade, "symbol": SYMBOLS[n % len(SYMBOLS)]},
            name=run.name,
            showlegend=True,
            hovertemplate="%{x:.2f}× stock, loss %{y:+.1f} points",
        )
    figure.add_vline(1, line={"color": look.faint, "width": 1, "dash": "dot"})
    fastest = max(run.speed_range[1] if run.speed_range else run.speed for run in runs)
    slowest = min(run.speed_range[0] if run.speed_range else run.speed for run in runs)
    room = max(0.1, fastest - slowest) * 0.15
    figure.update_xaxes(
        title="speed / times stock sam2", range=[min(slowest, 1) - room, fastest + 2 * room]
    )
    figure.update_yaxes(title="J&F lost against the dense run / points", autorange="reversed")
    # points of near equal speed lie close, so names stand beside the plot
    return finish(figure, title, caption, theme, width=860, height=470, legend="beside")


def trade_offs_of(result: Result) -> list[TradeOff]:
    """The runs of a result that have both a ratio and a quality; the one without a loss is the dense run itself."""
    found = []
    for run in result.runs:
        if run.ratio is not None and run.quality is not None:
            found.append(
                TradeOff(
                    run.name,
                    run.ratio.median,
                    run.quality.loss or 0.0,
                    (run.ratio.low, run.ratio.high),
                    run.quality.intervals.get("loss"),
                )
            )
    return found


def bench_figures(result: Result) -> list[go.Figure]:
    """Draw what a result holds: times where stages were measured, the trade-off where there is quality."""
    said = conditions(result) + evidence(weights(result))
    figures = []
    if times_of(result):
        figures.append(draw_times(times_of(result), f"{DIVIDED} {said}"))
    points = trade_offs_of(result)
    if points:
        figures.append(
            draw_trade_off(
                points,
                f"Ratio of neighbouring frames, with the range of the middle four fifths. {losses_of(result)} {said}",
            )
        )
    return figures


def losses_of(result: Result) -> str:
    """Say what the losses of `trade_offs_of` are means over, for the caption; clips are named."""
    names = list(
        dict.fromkeys(name for run in result.runs if run.quality for name in run.quality.clips)
    )
    few = "" if len(names) >= FEWEST else ", too few for an interval"
    return (
        f"Losses are paired clip by clip, means over {len(names)} clips ({', '.join(names)}) with their 95 % "
        f"intervals{few}."
    )


def conditions(result: Result) -> str:
    """Say with what a result was measured."""
    stamp, model = result.environment, result.model
    allocator = " ".join(f"{k}={v}" for k, v in stamp.allocator.items()) or "default"
    return (
        f"{model.name} at {model.image_size} pixels, {stamp.dtype}, {stamp.gpu or stamp.cpu}, "
        f"{stamp.threads} threads, torch {stamp.torch}, allocator {allocator}, commit {stamp.commit}."
    )


def weights(result: Result) -> str:
    """Say which kind of weights a result is of, as `evidence` wants it."""
    if not result.model.trained:
        return "random"
    return result.model.name


def write_bench_report(result: Result, path: Path) -> None:
    """Write the page, which is whole or absent and opens offline."""
    save_page(
        path,
        "bench.html.j2",
        figures=bench_figures(result),
        runs=result.runs,
        notes=list(dict.fromkeys(run.why for run in result.runs if run.why)),
        conditions=conditions(result),
        data=result.data,
        evidence=evidence(weights(result)),
    )
