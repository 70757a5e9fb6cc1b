"""Figures, read back as data: labels, units, colour limits, captions, and what must differ."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import figures
from figures.attention import lift
from figures.paint import data_uris_within, even_shares, outline_all
from figures.statistics import gini, top_mass
from figures.style import DEMO, THEMES, evidence
from probes.errors import InputError
from probes.estimates import Estimate

GRID = 8


def make_frame(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (90, 160, 3), dtype=np.uint8)


def make_mask() -> np.ndarray:
    mask = np.zeros((90, 160), bool)
    mask[20:50, 40:90] = True
    return mask


def make_mass(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(GRID * GRID)).reshape(GRID, GRID)


def texts(figure: go.Figure) -> str:
    said = [figure.layout.title.text, *(note.text for note in figure.layout.annotations)]
    for axis in figure.select_xaxes():
        said.append(axis.title.text or "")
    for axis in figure.select_yaxes():
        said.append(axis.title.text or "")
    said += [trace.name or "" for trace in figure.data]
    return "\n".join(said).replace("<br>", " ")


def encoder_and_decoder(theme: str = "light") -> go.Figure:
    masks = {1: make_mask(), 2: ~make_mask()}
    maps = {1: make_mass(1), 2: make_mass(2)}
    return figures.draw_encoder_and_decoder(
        make_frame(), masks, maps, maps, f"n = 1.{evidence('demo')}", theme=theme
    )


def filmstrip(theme: str = "light") -> go.Figure:
    told = [
        figures.Recollection(5, age, 5 - age, make_mass(age), None if age == 1 else 0.8, 0.25)
        for age in (1, 2, 3)
    ]
    told.append(figures.Recollection(5, 0, 0, make_mass(9)))
    return figures.draw_memory_filmstrip(
        {t: make_frame(t) for t in range(6)}, told, "n = 1", theme=theme
    )


def breadth(theme: str = "light") -> go.Figure:
    blocks = [
        figures.Breadth("encoder.stage2.block1.window", 12.0, 30.0, (8.0, 15.0), (20.0, 45.0)),
        figures.Breadth("encoder.stage3.block2.global", 220.0, 120.0),
        figures.Breadth("memory.layer0.cross", 40.0),
    ]
    return figures.draw_breadth(blocks, "n = 8 frames", theme=theme)


def concentration(theme: str = "light") -> go.Figure:
    layers = {"layer 0": make_mass(0).ravel(), "layer 1": np.ones(64)}
    return figures.draw_concentration(layers, "n = 1", theme=theme)


def recall(theme: str = "light") -> go.Figure:
    curve = figures.RecallCurve([1, 2], [0.7, 0.6], [0.6, 0.5], [0.8, 0.7], [0.8, 0.8])
    return figures.draw_recall({"layer 0": curve}, 0.05, "n = 3 clips", theme=theme)


def times(theme: str = "light") -> go.Figure:
    stages = {"stock": {"encoder": 40.0, "memory": 50.0}, "exact": {"encoder": 30.0}}
    return figures.draw_times(stages, "median of 20", theme=theme)


def trade_off(theme: str = "light") -> go.Figure:
    runs = [
        figures.TradeOff("stock", 1.0, 0.0),
        figures.TradeOff("paper", 2.0, 1.5, (1.8, 2.2), (-0.1, 3.2)),
    ]
    return figures.draw_trade_off(runs, "n = 12 clips", theme=theme)


def player(theme: str = "light", count: int = 3) -> go.Figure:
    rng = np.random.default_rng(0)
    frames = [
        figures.RoutedFrame(make_frame(t), make_mask(), rng.random((4, 4)) < 0.5, f"reason {t}")
        for t in range(count)
    ]
    return figures.draw_window_player(frames, 0.25, "profile paper", theme=theme)


def overview(theme: str = "light") -> go.Figure:
    memory = [figures.MemoryTile(make_frame(), make_mass() > 0.02, "prompted frame")]
    windows = np.eye(4, dtype=bool)
    return figures.draw_overview(
        make_frame(), make_mask(), windows, 0.25, memory, "n = 1", theme=theme
    )


def statistic(theme: str = "light") -> go.Figure:
    sites = {
        "memory.layer0.cross": [Estimate(0.8, 0.7, 0.9, 3), Estimate(0.5, 0.4, 0.7, 3)],
        "decoder.final.token_to_image": [Estimate(0.9, math.nan, math.nan, 2)],
    }
    return figures.draw_statistic(sites, "gini", "n = 3 clips", theme=theme)


DRAWN = (
    statistic,
    encoder_and_decoder,
    filmstrip,
    breadth,
    concentration,
    recall,
    times,
    trade_off,
    player,
    overview,
)


@pytest.mark.parametrize("draw", DRAWN, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_figure_has_title_caption_and_theme(draw, theme: str) -> None:
    figure = draw(theme)
    captions = [note for note in figure.layout.annotations if note.name == "caption"]
    assert len(captions) == 1 and captions[0].text
    assert figure.layout.title.text
    template = figure.layout.template.layout
    assert template.paper_bgcolor == THEMES[theme].paper
    assert captions[0].font.color == THEMES[theme].faint
    assert figure.layout.margin.b > 0 and figure.layout.width <= 1400
    with pytest.raises(InputError, match="theme 'blue' given; expected light or dark"):
        draw("blue")


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (breadth, ["effective support / keys", "distance / px", "encoder.stage3"]),
        (concentration, ["share of keys, largest first", "attention mass", "Gini 0.00"]),
        (statistic, ["Gini index", "head 1"]),
        (recall, ["mass recall", "age / frames since the first recollection", "chance"]),
        (times, ["time / ms per frame", "90 ms", "30 ms"]),
        (trade_off, ["speed / times stock sam2", "J&F lost against the dense run / points"]),
        (filmstrip, ["prompted frame", "2 back", "CS 0.80 (chance 0.25)", "frame 5"]),
        (encoder_and_decoder, ["object 2", "lift", DEMO[1:]]),
        (overview, ["windows computed: 4 of 16", "memory tokens read"]),
        (player, ["of 16 windows, reason 0"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_labels_name_what_is_shown_with_its_unit(draw, words: list[str]) -> None:
    said = texts(draw())
    assert [word for word in words if word not in said] == []


def test_maps_of_one_figure_share_one_scale() -> None:
    figure = encoder_and_decoder()
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(maps) == 4
    assert {trace.coloraxis for trace in maps} == {"coloraxis"}
    assert figure.layout.coloraxis.cmin == -1
    assert figure.layout.coloraxis.cmax >= max(trace.z.max() for trace in maps)


def test_a_map_lies_over_the_whole_frame() -> None:
    trace = next(trace for trace in encoder_and_decoder().data if trace.type == "heatmap")
    assert trace.x0 - trace.dx / 2 == 0 and trace.x0 + trace.dx * (GRID - 0.5) == 160
    assert trace.y0 - trace.dy / 2 == 0 and trace.y0 + trace.dy * (GRID - 0.5) == 90


def test_lift_is_one_for_an_even_spread_and_more_on_the_object() -> None:
    even = np.full((GRID, GRID), 1 / GRID**2)
    assert lift(even, make_mask()) == pytest.approx(1)
    inside = np.zeros((GRID, GRID))
    inside[3, 3] = 1.0
    assert lift(inside, make_mask()) > 5
    assert lift(inside, ~make_mask()) < 0.2
    assert np.isnan(lift(even, np.zeros((90, 160))))


@given(arrays(float, (3, 40), elements=st.floats(0.001, 1)))
def test_top_mass_rises_to_one_and_gini_is_a_share(mass: np.ndarray) -> None:
    share, top = top_mass(mass)
    assert share[0] == top[0] == 0 and share[-1] == 1 and top[-1] == pytest.approx(1)
    assert (np.diff(top) >= -1e-12).all() and (top >= share - 1e-9).all()
    assert -1e-9 <= gini(mass) < 1
    assert gini(mass[:, ::-1]) == pytest.approx(gini(mass))


@given(arrays(float, (4, 4), elements=st.floats(1e-6, 1) | st.just(0.0)))
def test_even_shares_have_mean_one(mass: np.ndarray) -> None:
    shares = even_shares(mass)
    assert shares.mean() == pytest.approx(1 if mass.sum() > 0 else 0)


def test_an_object_keeps_its_colour_when_others_leave() -> None:
    frame, mask = np.full((90, 160, 3), 90, np.uint8), np.zeros((90, 160), int)
    mask[20:60, 90:140] = 2
    alone = outline_all(frame, mask)
    mask[20:60, 20:70] = 1
    together = outline_all(frame, mask)
    assert np.array_equal(alone[:, 80:], together[:, 80:])
    assert not np.array_equal(together[:, :80], together[:, 80:])


def test_a_caption_is_text_and_never_markup() -> None:
    figure = figures.draw_breadth(
        [figures.Breadth("memory.layer0.cross", 5.0)], "score < 5, J&F > 0"
    )
    (caption,) = [note.text for note in figure.layout.annotations if note.name == "caption"]
    assert caption == "score &lt; 5, J&amp;F &gt; 0"


def test_small_pictures_are_drawn_and_too_many_refused() -> None:
    small = np.full((24, 32, 3), 90, np.uint8)
    assert len(data_uris_within([small] * 3, 10_000)) == 3
    with pytest.raises(InputError, match="3 frames don't fit"):
        data_uris_within([small] * 3, 100)


def test_evidence_says_what_a_model_can_show() -> None:
    assert "official checkpoint" in evidence("demo")
    assert "Random weights" in evidence("random")
    assert evidence("sam2.1-large") == ""


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: figures.draw_breadth([], ""), "no blocks given"),
        (
            lambda: figures.draw_breadth([figures.Breadth("a.b", 9.0, None, (2.0, 8.0))], ""),
            "support 9 of a.b lies outside its range 2 to 8",
        ),
        (lambda: figures.draw_recall({}, 0.05, ""), "no layers given"),
        (lambda: figures.draw_times({"stock": {}}, ""), "a run without stages"),
        (lambda: figures.draw_trade_off([], ""), "no runs given"),
        (lambda: figures.draw_statistic({}, "gini", ""), "0 sites and statistic 'gini' given"),
        (lambda: figures.draw_statistic({"a": []}, "mass", ""), "statistic 'mass' given"),
        (lambda: figures.draw_window_player([], 0.25, ""), "no frames given"),
        (lambda: figures.draw_memory_filmstrip([], [], ""), "no recollections given"),
        (lambda: figures.draw_tiles([[]], "", ""), "no pictures given"),
        (lambda: figures.draw_concentration({"a": [0.0, 0.0]}, ""), "an empty sample"),
        (
            lambda: figures.draw_encoder_and_decoder(make_frame(), {1: make_mask()}, {}, {}, ""),
            "expected the same objects",
        ),
        (
            lambda: figures.draw_tiles([[figures.Tile(np.zeros((4, 4)))]], "", ""),
            "expected RGB, uint8",
        ),
        (
            lambda: figures.draw_tiles([[figures.Tile(make_frame(), [[-1.0]])]], "", ""),
            "finite and not negative",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, words: str) -> None:
    with pytest.raises(InputError, match=words):
        draw()


def test_every_public_name_can_be_imported() -> None:
    for name in figures.__all__:
        assert callable(getattr(figures, name))
    assert set(figures.__all__) == set(dir(figures))
    with pytest.raises(AttributeError, match="nothing"):
        figures.nothing  # noqa: B018


def test_the_best_choice_is_seen_where_a_first_choice_is_as_good() -> None:
    same = [0.7, 0.6]
    curve = figures.RecallCurve([1, 2], same, oracle=same)
    figure = figures.draw_recall({"layer 0": curve, "layer 1": curve}, 0.05, "n = 3 clips")
    chosen, best = (
        [(n, line) for n, line in enumerate(figure.data) if (line.line.dash == "dash") == dashed]
        for dashed in (False, True)
    )
    assert len(chosen) == len(best) == 2
    assert max(n for n, _ in chosen) < min(n for n, _ in best), "the dashed lines lie on top"
    assert {line.line.color for _, line in chosen}.isdisjoint({line.line.color for _, line in best})


def test_heads_are_told_apart_and_stand_at_their_site() -> None:
    one = Estimate(0.5, math.nan, math.nan, 1)
    figure = figures.draw_statistic({"a": [one], "b": [one] * 8, "c": [one] * 2}, "gini", "x")
    looks = [(line.marker.color, line.marker.symbol) for line in figure.data]
    assert len(set(looks)) == 8
    for n, site in enumerate("abc"):
        at = [
            x for line in figure.data for x, of in zip(line.x, line.text, strict=True) if of == site
        ]
        assert np.mean(at) == pytest.approx(n)
        assert max(at) - min(at) < 0.7


def test_the_name_of_the_last_site_has_room() -> None:
    """plotly leaves names out that reach over the figure's edge."""
    one, last = Estimate(0.5, math.nan, math.nan, 1), "decoder.layer1.token_to_image"
    figure = figures.draw_statistic({"a": [one], last: [one]}, "gini", "x")
    assert figure.layout.xaxis.ticklabeloverflow == "allow"
    assert figure.layout.margin.r > 5.5 * len(last)
