"""Saving figures: the suffix decides, files are whole or absent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import kaleido
import plotly.graph_objects as go
import pytest
from PIL import Image

from figures import save
from probes.errors import InputError
from tests.figures.browser import Browser
from tests.figures.test_drawing import player


@pytest.fixture
def figure() -> go.Figure:
    return go.Figure(go.Bar(x=["a"], y=[1.0]), layout={"width": 300, "height": 200})


@pytest.fixture
def one_browser(chromium: str) -> Iterator[None]:
    """Let plotly draw all pictures of a test in one browser, which takes it seconds to start."""
    kaleido.start_sync_server(silence_warnings=True)
    yield
    kaleido.stop_sync_server(silence_warnings=True)


def test_html_needs_no_network(figure: go.Figure, tmp_path: Path) -> None:
    page = save(figure, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script src=" not in page and len(page) > 1_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.process
def test_a_picture_has_the_figures_pixels(figure: go.Figure, tmp_path: Path, chromium: str) -> None:
    with Image.open(save(figure, tmp_path / "a.png", scale=2)) as picture:
        assert picture.size == (600, 400)


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:The kopts argument is ignored if using a server")
def test_drawings_by_suffix(figure: go.Figure, tmp_path: Path, one_browser: None) -> None:
    assert save(figure, str(tmp_path / "a.svg")).read_bytes().startswith(b"<svg")
    assert save(figure, tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", ["figure.bmp", "figure", "missing/figure.html"])
def test_other_names_are_refused(figure: go.Figure, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="expected"):
        save(figure, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_a_player_plays_in_a_browser(tmp_path: Path, browser: Browser) -> None:
    page_file = save(player(count=4), tmp_path / "player.html")
    shown = "document.querySelector('.annotation-text').textContent"
    source = (
        "[...document.querySelectorAll('image')].map((i) => i.href.baseVal).find((s) => s) ?? ''"
    )
    with browser.open(page_file.as_uri()) as page:
        page.wait("document.querySelector('.slider-group') !== null")
        first = page.evaluate(shown), page.evaluate(source)
        page.evaluate(
            "Plotly.animate(document.querySelector('.js-plotly-plot'), ['2'], "
            "{mode: 'immediate', frame: {duration: 0, redraw: true}}).then(() => true)"
        )
        assert "reason 0" in first[0]
        assert "reason 2" in page.evaluate(shown)
        assert page.evaluate(source) != first[1]
        assert page.complaints == []
