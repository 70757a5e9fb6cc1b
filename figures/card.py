"""A card as a page: its rows, what each clip lost, speed against loss, and the paper's observations."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from figures.benchmark import TradeOff, draw_trade_off
from figures.export import save_page
from figures.style import THEMES, ThemeName, error_bars, evidence, finish
from probes.estimates import FEWEST
from sparsity.evaluation.card import SAID, Card, Observed, as_cells


def draw_losses(card: Card, *, theme: ThemeName = "light") -> go.Figure:
    """Draw J&F lost against stock sam2, one point a clip and row, and the mean with its interval."""
    look = THEMES[theme]
    figure = go.Figure()
    rows, stock = card.rows[1:], card.rows[0].quality
    for n, row in enumerate(rows):
        lost = {
            name: stock.clips[name].j_and_f - c.j_and_f for name, c in row.quality.clips.items()
        }
        ends = row.quality.intervals.get("loss")
        figure.add_scatter(
            x=[n + 0.12] * len(lost),
            y=list(lost.values()),
            text=list(lost),
            mode="markers",
            marker={"color": look.skipped, "size": 7, "line": {"color": look.faint, "width": 1}},
            name="a clip",
            showlegend=n == 0,
            hovertemplate="%{text}: %{y:+.2f} points<extra></extra>",
        )
        mean = row.quality.loss or 0.0
        figure.add_scatter(
            x=[n - 0.12],
            y=[mean],
            error_y=error_bars([mean], [ends], color=look.kept),
            mode="markers",
            marker={"color": look.kept, "size": 11, "symbol": "diamond"},
            name="mean, and 95 %",
            showlegend=n == 0,
            hovertemplate="%{y:+.2f} points<extra>" + row.name + "</extra>",
        )
    figure.add_hline(0, line={"color": look.faint, "width": 1, "dash": "dot"})
    figure.update_xaxes(
        tickvals=list(range(len(rows))),
        ticktext=[row.name for row in rows],
        range=[-0.6, len(rows) - 0.4],
    )
    figure.update_yaxes(title="J&F lost against stock / points")
    few = "" if len(stock.clips) >= FEWEST else " Too few clips for an interval."
    caption = f"{len(stock.clips)} clips of {card.data.root}, paired clip by clip; below 0 is a gain.{few}"
    return finish(
        figure, "What each clip loses", caption + _worth(card), theme, height=430, legend="above", top=96
    )  # fmt: skip


def draw_observations(card: Card, *, theme: ThemeName = "light") -> go.Figure:
    """Draw the paper's observations side by side: lift, mass of the top 10 % of keys, consistency beside chance.

    The card must hold them.
    """
    seen = card.observations
    assert seen is not None, "a card without observations has no such figure"
    look = THEMES[theme]
    titles = (
        "Attention on the object / chance",
        "Mass of the top 10 % of memory",
        "Consistency by age",
    )
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.09)

    def add(rows: list[Observed], column: int, names: list[str], name: str, colour: str) -> None:
        figure.add_scatter(
            x=names,
            y=[row.mean for row in rows],
            error_y=error_bars([r.mean for r in rows], [r.interval for r in rows], color=colour),
            text=[row.name for row in rows],
            mode="markers" if column < 3 else "lines+markers",
            marker={"size": 10, "color": colour},
            line={"color": colour},
            name=name,
            showlegend=column == 3,
            hovertemplate="%{text}: %{y:.3f}<extra></extra>",
            row=1,
            col=column,
        )

    add(seen.lift, 1, [_short(row.name) for row in seen.lift], "lift", look.kept)
    add(seen.top10, 2, [row.name.removeprefix("memory ") for row in seen.top10], "mass", look.kept)
    ages = [row.name.removeprefix("age ") for row in seen.consistency]
    add(seen.consistency, 3, ages, "CS", look.kept)
    figure.add_scatter(
        x=ages,
        y=[row.chance for row in seen.consistency],
        mode="lines",
        line={"color": look.skipped, "dash": "dash"},
        name="CS by chance",
        row=1,
        col=3,
    )
    recall = [row.name.removeprefix("age ") for row in seen.recall]
    add(seen.recall, 3, recall, "mass of the 5 %<br>chosen first", look.series[1])
    figure.add_hline(1, line={"color": look.faint, "width": 1, "dash": "dot"}, row=1, col=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(range=[0, 1.03], col=2)
    figure.update_yaxes(range=[0, 1.03], col=3)
    figure.update_xaxes(title="frames since first recalled", type="category", col=3)
    caption = (
        f"Stock sam2 on the first {seen.frames} frames of {len(card.data.clips)} clips; means over clips with 95 % intervals. "
        "Left: the decoder's tokens and the encoder's global blocks. "
        "Right: cosine with the first recollection (CS) beside chance, and what the 5 % of tokens chosen first still hold."
    )
    return finish(
        figure, "The paper's observations, here", caption + _worth(card), theme,
        width=1100, height=400, top=80, legend="beside",
    )  # fmt: skip


def _short(site: str) -> str:
    return site.replace("encoder.stage3.block", "block ").removesuffix(".global").split(",")[0]


def _worth(card: Card) -> str:
    return evidence(card.weights)


def card_figures(card: Card, theme: ThemeName = "light") -> list[go.Figure]:
    """Draw what a card holds."""
    figures = [draw_losses(card, theme=theme)]
    timed = [
        TradeOff(
            row.name, row.speed.ratio.median, row.quality.loss or 0.0,
            (row.speed.ratio.low, row.speed.ratio.high), row.quality.intervals.get("loss"),
        )
        for row in card.rows
        if row.speed is not None and row.speed.ratio is not None
    ]  # fmt: skip
    if timed:
        caption = (
            f"Speed of the model alone on a made clip, interleaved with stock sam2, with the middle four fifths; loss over "
            f"{len(card.data.clips)} clips of {card.data.root} with its 95 % interval."
        )
        figures.append(draw_trade_off(timed, caption + _worth(card), theme=theme))
    if card.observations is not None:
        figures.append(draw_observations(card, theme=theme))
    return figures


def write_card_page(card: Card, path: Path) -> None:
    """Write the page, which is whole or absent and opens offline."""
    save_page(
        path,
        "card.html.j2",
        card=card,
        cells=[as_cells(row) for row in card.rows],
        worth=SAID[card.weights],
        figures=card_figures(card),
    )
