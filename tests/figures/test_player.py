"""The player: small enough for a page, and each frame under its own number."""

from __future__ import annotations

import numpy as np
import pytest

import figures
from figures.player import BUDGET
from tests.figures.test_drawing import make_frame, make_mask, player


@pytest.mark.parametrize("size", [(90, 160), (720, 1280)], ids=["small", "large"])
def test_a_player_of_100_frames_stays_below_two_megabytes(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    windows = np.eye(4, dtype=bool)
    frames = [
        figures.RoutedFrame(np.roll(noise, t, axis=1), make_mask(), windows, f"reason {t}")
        for t in range(100)
    ]
    figure = figures.draw_window_player(frames, 0.25, "profile paper", shown=50)
    page = figure.to_html(include_plotlyjs=False)
    assert len(figure.frames) == len(figure.layout.sliders[0].steps) == 100
    assert BUDGET / 4 < len(page) < 2_000_000
    assert figure.data[0].source == figure.frames[50].data[0].source
    assert figure.data[0].source != figure.frames[0].data[0].source
    assert figure.layout.sliders[0].active == 50


def test_frames_of_a_player_differ() -> None:
    figure = player()
    assert figure.frames[0].data[0].source == figure.data[0].source
    assert figure.frames[1].data[0].source != figure.data[0].source
    assert "reason 2" in figure.frames[2].layout.annotations[0].text


@pytest.mark.parametrize(("start", "shown"), [(0, ["0", "1", "2"]), (40, ["40", "41", "42"])])
def test_frames_are_numbered_as_in_the_video(start: int, shown: list[str]) -> None:
    windows = np.eye(4, dtype=bool)
    frames = [
        figures.RoutedFrame(make_frame(t), make_mask(), windows, "routed", start + t)
        for t in range(3)
    ]
    figure = figures.draw_window_player(frames, 0.25, "profile paper", shown=1)
    assert [step.label for step in figure.layout.sliders[0].steps] == shown
    said = [frame.layout.annotations[0].text for frame in figure.frames]
    assert said == [f"frame {t}: 4 of 16 windows, routed" for t in shown]
    assert figure.layout.annotations[0].text == said[1]
