"""The figure of failures: every kind of knowledge is drawn with its interval, and what was never asked is refused."""

from __future__ import annotations

from typing import Any

import pytest

from figures.failure import NAMES, draw_failure
from probes.errors import InputError


def found() -> dict[str, Any]:
    def one(mean: float, width: float | None = 0.1) -> dict[str, Any]:
        ends = (None, None) if width is None else (mean - width, mean + width)
        return {"mean": mean, "low": ends[0], "high": ends[1], "n": 5}

    judged = {kind: {"auc": one(0.6 + n / 20)} for n, kind in enumerate(NAMES)}
    judged["trees"] = {"auc": one(0.5, None)}
    bins = [{"predicted": 0.1, "wrong": one(0.12), "rows": 7}, {"predicted": 0.9, "wrong": one(0.7), "rows": 3}]  # fmt: skip
    return {
        "ahead": 5,
        "judged": {"now": {"dev": judged}},
        "reliability": {"now": {"dev": {"run": bins}}},
        "clips": {"dev": {"clips": 5, "now": {"masks": 10, "wrong": 3}}},
    }


def test_every_kind_and_every_bin_is_drawn() -> None:
    figure = draw_failure(found())
    left, diagonal, curve = figure.data
    assert list(left.x) == list(NAMES.values())
    assert left.y[0] == 0.6 and round(left.error_y.array[0], 6) == 0.1
    assert left.error_y.array[-1] == 0, "too few clips for an interval"
    assert list(diagonal.x) == list(diagonal.y)
    assert list(curve.x) == [0.1, 0.9] and list(curve.y) == [0.12, 0.7]
    assert "10 masks, 3 of them wrong" in figure.layout.annotations[-1].text.replace("<br>", " ")


def test_what_was_not_asked_is_refused() -> None:
    with pytest.raises(InputError, match="question 'ahead' of clips 'dev' given; expected one"):
        draw_failure(found(), "ahead")
    with pytest.raises(InputError, match="clips 'fit' given"):
        draw_failure(found(), clips="fit")
