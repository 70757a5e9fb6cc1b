"""The figure of the promise: every draw is drawn, and a broken promise stands out."""

from __future__ import annotations

import pytest

from figures.calibration import draw_promise
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
