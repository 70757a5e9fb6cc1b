"""The page of the demo: every chapter with its figures and the true numbers; it opens in a browser without complaint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from figures.paint import data_uri
from figures.player import RoutedFrame, paint_windows
from figures.story import Shown, Story, write_story
from tests.figures.browser import Browser
from tests.figures.made import FRAMES, GRID, make_recording

ROW = {
    "name": "stock", "milliseconds": 321.0, "ratio": 1.0, "j_and_f": 71.5, "agreement": 100.0, "windows": 1.0,
    "keys": 1.0, "prunable": 1.0, "rescued": 0,
}  # fmt: skip


def report() -> dict[str, Any]:
    setting = {
        "name": "candidate-0", "said": "margin 8 px of best", "windows": 0.4, "keys": 0.5, "cost": 0.7, "recall": 0.9,
    }  # fmt: skip
    bound = {"mean": 0.5, "upper": 2.5, "confidence": 0.95, "method": "approximate", "videos": 3}
    promise = {**bound, "mean_loss": 0.5, "upper_bound": 5.0, "clips": 3, "unit": "points"}
    return {
        "profile": {"name": "calibrated", "promise": promise},
        "said": ["limit    none"],
        "certifiable": "3 clips can certify little.",
        "promise": "mean loss +0.50, at most 5.00 points (approximate, 3 clips)",
        "level": 5.0,
        "option": "max-drop",
        "counted": ["c", "d", "e"],
        "replayed": [setting],
        "frontier": [setting],
        "searched": [{**setting, "losses": [0.1, 0.2]}],
        "tested": [{**setting, "losses": [0.1, 0.9, 0.5], "bound": bound}],
        "clips": {"search": ["a", "b"], "promise": ["c", "d", "e"]},
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("story")
    recording = make_recording(folder / "clip.recording")
    picture = np.full((90, 160, 3), 90, np.uint8)
    windows = np.eye(2, dtype=bool)
    routed = [RoutedFrame(picture, np.zeros((90, 160), int), windows, "routed")] * FRAMES
    rows = [ROW, {**ROW, "name": "paper", "ratio": 1.4, "windows": 0.43, "rescued": 2}]
    frames = dict.fromkeys(range(FRAMES), picture)
    clips = Shown("clip", rows, routed), Shown("photograph", rows, routed)
    story = Story("a made clip, 2 threads", "paper", *clips, frames)
    write_story(folder / "report.html", story, recording, report(), " Demo model.")
    assert sorted(p.name for p in folder.iterdir()) == ["clip.recording", "report.html"]
    return folder / "report.html"


def test_the_page_holds_every_chapter_and_number(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count('class="plotly-graph-div"') == 6
    for word in (
        "a made clip, 2 threads",
        "1. Observe",
        "2. Calibrate",
        "3. Accelerate",
        "limit    none",
    ):
        assert word in text
    assert (
        "<strong>1.40</strong>" in text
        and "43 %" in text
        and f"<strong>{report()['promise']}</strong>" in text
    )
    assert "3 clips can certify little." in text
    assert 'src="http' not in text


@pytest.mark.parametrize(("window", "wrong"), [(4, 0.55), (3, 1 / 3)])
def test_windows_are_drawn_as_large_as_they_are(tmp_path: Path, window: int, wrong: float) -> None:
    """Windows that don't divide the grid reach over its border: 3 of 8 tokens, not a third."""
    recording = make_recording(tmp_path / "clip.recording", window=window)
    picture = np.full((90, 160, 3), 90, np.uint8)
    side = -(-GRID // window)
    routed = RoutedFrame(picture, np.zeros((90, 160), int), np.eye(side, dtype=bool), "routed")
    frames = dict.fromkeys(range(FRAMES), picture)
    story = Story(
        "a made clip", "paper", *(Shown(name, [ROW], [routed]) for name in ("clip", "photograph")), frames
    )  # fmt: skip
    write_story(tmp_path / "report.html", story, recording, report())
    page = (tmp_path / "report.html").read_text(encoding="utf-8").replace("\\u002f", "/")
    right, other = (data_uri(paint_windows(routed, share, 640)) for share in (window / GRID, wrong))
    assert right in page and other not in page


@pytest.mark.process
def test_the_page_opens_without_complaint(page: Path, browser: Browser) -> None:
    with browser.open(page.as_uri()) as tab:
        tab.wait("document.querySelectorAll('.plotly-graph-div .main-svg').length >= 6")
        assert tab.complaints == []
