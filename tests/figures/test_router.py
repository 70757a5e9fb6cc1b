"""The router's figure draws the curves and points of its report."""

from __future__ import annotations

import pytest

from figures.router import draw_router

FOUND = {
    "clips": ["a", "b"],
    "paper": {"kept": 0.4, "recall": 0.99},
    "oracle": {"kept": 0.2, "recall": 0.99},
    "saved": 0.163,
    "saved_interval": [0.05, 0.25],
    "curve": [[1.0, 1.0], [0.3, 0.99]],
    "precision": [[0.2, 1.0], [0.6, 0.9]],
    "reliability": [[0.1, 0.12], [0.9, 0.85]],
}


def test_points_and_curves_are_those_of_the_report() -> None:
    figure = draw_router({"sets": {"all clips": FOUND}}, "all clips", evidence="made clips")
    lines = {trace.name: (trace.x, trace.y) for trace in figure.data[3:]}
    assert lines["paper's rule"] == ((0.4,), (0.99,))
    assert lines["who knew the next frame"] == ((0.2,), (0.99,))
    kept, found, reliable = figure.data[:3]
    assert kept.x == (1.0, 0.3) and found.x == (1.0, 0.9) and found.y == (0.2, 0.6)
    assert reliable.y == (0.12, 0.85)
    text = figure.to_json()
    assert "16.3%" in text and "made clips" in text.replace("<br>", " ").replace(
        "\\u003cbr\\u003e", " "
    )
    other = draw_router({"sets": {"all clips": {**FOUND, "saved": 0.2}}}, "all clips")
    assert "16.3%" not in other.to_json() and "20.0%" in other.to_json()
    with pytest.raises(KeyError):
        draw_router({"sets": {}}, "all clips")
