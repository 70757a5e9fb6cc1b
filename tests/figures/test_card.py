"""The page of a card: its numbers are the card's, and every figure names the weights."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
import pytest

from figures.card import card_figures, draw_losses, draw_observations, write_card_page
from sparsity.evaluation.card import (
    SAID,
    Card,
    CardRow,
    Observations,
    Observed,
    as_cells,
    card_table,
    loss_of_objects,
    published,
)
from sparsity.evaluation.quality import overall
from sparsity.evaluation.results import (
    ClipQuality,
    Data,
    Environment,
    Model,
    ObjectQuality,
    Ratio,
    Run,
    Times,
)

FOUND = {"stock": (80.0, 70.0, 60.0), "paper": (78.0, 69.5, 61.0)}
CLIPS = ["a", "b", "c"]


def card(weights: str = "random") -> Card:
    """Three clips of one object, two rows."""
    each = {
        name: {
            clip: ClipQuality(
                j=j, f=j, j_and_f=j, frames=5, objects={"1": ObjectQuality(j=j, f=j, j_and_f=j)}
            )
            for clip, j in zip(CLIPS, found, strict=True)
        }
        for name, found in FOUND.items()
    }
    stock, paper = overall(each["stock"]), overall(each["paper"], each["stock"])
    speed = {
        name: Run(
            name=name, frames=3, objects=1, ms_per_frame=Times(median=ms, p90=ms, p99=ms),
            ratio=Ratio(median=300 / ms, low=0.9 * 300 / ms, high=330 / ms),
        )
        for name, ms in (("stock", 300.0), ("paper", 150.0))
    }  # fmt: skip

    def seen(name: str, mean: float, chance: float | None = None) -> Observed:
        return Observed(name=name, mean=mean, interval=(mean, mean), clips=3, chance=chance)

    return Card(
        made_by="efficient-sam2 1",
        environment=Environment(cpu="some", threads=1, torch="2", dtype="float32"),
        model=Model(name="sam2.1-large", fingerprint="sha256:0", image_size=1024, trained=weights != "random"),
        weights=weights,
        data=Data(root="DAVIS", clips=CLIPS, frames=21),
        layout="DAVIS",
        rows=[
            CardRow(name="stock", weights=weights, quality=stock, speed=speed["stock"]),
            CardRow(
                name="paper", weights=weights, quality=paper, object_loss=loss_of_objects(paper, stock),
                speed=speed["paper"], published=published("sam2.1-large", "DAVIS 2017 val", "SWR + SMR"),
            ),
        ],
        observations=Observations(
            frames=5, lift=[seen("decoder, token to image", 9.0), seen("encoder.stage3.block5.global", 0.9)],
            top10=[seen("memory layer 0", 0.8)], consistency=[seen("age 1", 0.99, 0.4)], recall=[seen("age 1", 0.5)],
        ),
    )  # fmt: skip


def captions(figure: go.Figure) -> str:
    return " ".join(a.text.replace("<br>", " ") for a in figure.layout.annotations if a.text)


@pytest.mark.parametrize(
    ("weights", "said"), [("random", "Random weights"), ("demo", "Demo model")]
)
def test_every_figure_names_the_weights(weights: str, said: str) -> None:
    figures = card_figures(card(weights))
    assert len(figures) == 3
    assert all(said in captions(figure) for figure in figures)
    assert not any(said in captions(figure) for figure in card_figures(card("official")))


def test_losses_and_observations_are_those_of_the_card() -> None:
    points, mean = draw_losses(card()).data[:2]
    assert list(points.y) == [2.0, 0.5, -1.0] and list(points.text) == CLIPS
    assert mean.y[0] == pytest.approx(0.5)
    drawn = draw_observations(card())
    assert [trace.y[0] for trace in drawn.data] == [9.0, 0.8, 0.99, 0.4, 0.5]


def test_the_page_and_the_table_hold_each_row_and_the_published_figure(tmp_path: Path) -> None:
    write_card_page(card(), tmp_path / "card.html")
    page, table = (tmp_path / "card.html").read_text(encoding="utf-8"), card_table(card())
    cells = as_cells(card().rows[1])
    assert cells["published J&F"] == "89.5 (SWR + SMR)" and cells["ratio"] == "2.00"
    for text in (*cells.values(),):
        assert text in page and text in table
    assert SAID["random"] in page and SAID["random"] in table
    assert 'src="http' not in page
