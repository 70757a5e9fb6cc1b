"""A benchmark's result as one page: the rows, where the time goes, and speed against accuracy."""

from __future__ import annotations

import os
from pathlib import Path

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader

from figures.style import evidence
from figures.times import DIVIDED, draw_times, times_of
from figures.tradeoff import draw_trade_off, trade_offs_of
from sparsity.evaluation.results import Result


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
                "Ratio of neighbouring frames, with the range of the middle four fifths; J&F with its "
                f"interval over clips. {said}",
            )
        )
    return figures


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
    """Write the page under a temporary name and rename it; it opens offline."""
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=index == 0, config={"displaylogo": False})
        for index, figure in enumerate(bench_figures(result))
    ]
    loader = Environment(loader=PackageLoader("figures"), autoescape=True)
    notes = list(dict.fromkeys(run.why for run in result.runs if run.why))
    page = loader.get_template("bench.html.j2").render(
        figures=parts,
        runs=result.runs,
        notes=notes,
        conditions=conditions(result),
        data=result.data,
        evidence=evidence(weights(result)),
    )
    part = path.with_name(f".{path.name}.part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)
