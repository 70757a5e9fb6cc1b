"""The figure of the promise: every draw is drawn, and a broken promise stands out."""

from __future__ import annotations

import pytest

from figures.calibration import ROOM, apart, draw_promise, loss_over_frames
from figures.style import THEMES
from probes.errors import InputError


def found(*draws: tuple[float, float]) -> dict[str, object]:
    study = {"max_drop": 2.0, "draws": 10, "coverage": 0.9, "draws_shown": [list(d) for d in draws]}
    return {
        "studies": [study], "clips": 5, "settings": [{}, {}], "confidence": 0.95, "population": {"model": "made"},
    }  # fmt: skip


def broken(figure: object) -> list[float]:
    alarm = THEMES["light"].alarm
    return [y for part in figure.data if part.marker.color == alarm for y in part.y]


def test_a_draw_that_loses_more_than_promised_stands_out() -> None:
    figure = draw_promise(found((0.5, 2.0), (3.5, 2.0), (1.9, 2.0)))
    assert broken(figure) == [3.5]
    assert broken(draw_promise(found((0.5, 2.0), (1.5, 2.0)))) == []
    assert "90.0% of 10 covered" in figure.layout.xaxis.ticktext[0]


def test_no_study_is_refused() -> None:
    with pytest.raises(InputError, match="no studies given"):
        draw_promise({"studies": []})


def test_labels_that_would_overprint_are_left_out() -> None:
    points = [(0.0, 0.0), (0.01, 0.01), (0.5, 0.5), (0.5, 0.52), (1.0, 1.0)]
    assert apart(points) == {points[0], points[2], points[4]}
    far = [(0.0, 0.0), (ROOM[0] * 1.01, 0.0), (1.0, 1.0)]
    assert apart(far) == set(far)


def test_loss_is_drawn_over_frames_and_the_worst_clips_stand_out() -> None:
    report = {
        "by_frame": {"a": [(1, 99.0), (2, 95.0)], "b": [(1, 100.0)]},
        "worst": [{"clip": "a", "loss": 3.0, "frame": 2, "agreement": 95.0}],
    }
    figure = loss_over_frames(report)
    drawn = {part.name: (list(part.x), list(part.y)) for part in figure.data}
    assert drawn["a"] == ([1, 2], [1.0, 5.0])
    assert drawn["another clip"] == ([1], [0.0])
    assert drawn["mean of those that last so long"] == ([1, 2], [0.5, 5.0])
    alarm = THEMES["light"].alarm
    assert [part.name for part in figure.data if part.line.color == alarm] == ["a"]
