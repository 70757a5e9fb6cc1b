"""The film strip shows how much each remembered frame gets, on one scale a row."""

from __future__ import annotations

import numpy as np
import pytest

import figures
from tests.figures.test_drawing import GRID, make_frame, make_mass


def strip(shares: dict[int, float]) -> dict[int, float]:
    """Draw one row of frames of these attention shares, and return the mean multiple of the even share by age."""
    frames = {t: make_frame(t) for t in range(6)}
    told = [
        figures.Recollection(5, age, 5 - age, share * make_mass(age))
        for age, share in shares.items()
    ]
    figure = figures.draw_memory_filmstrip(frames, told, "my clip")
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    return {
        age: float(np.mean(m.customdata))
        for age, m in zip(sorted(shares, reverse=True), maps, strict=True)
    }


def test_a_frame_that_gets_more_is_brighter() -> None:
    found = strip({1: 0.1, 2: 0.2, 3: 0.6})
    # 0.9 of the mass on 3 frames: the even share of a frame is 0.3
    assert found == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 2}, rel=1e-5)
    assert strip({1: 0.3, 2: 0.3, 3: 0.3}) == pytest.approx({1: 1, 2: 1, 3: 1}, rel=1e-5)


def test_rows_are_scaled_one_by_one() -> None:
    frames = {t: make_frame(t) for t in range(6)}
    even = np.ones((GRID, GRID))
    told = [figures.Recollection(t, age, t - age, t * age * even) for t in (4, 5) for age in (1, 3)]
    figure = figures.draw_memory_filmstrip(frames, told, "my clip")
    maps = [float(trace.customdata.mean()) for trace in figure.data if trace.type == "heatmap"]
    assert maps == pytest.approx([1.5, 0.5] * 2)


def test_the_caption_says_what_the_scale_is() -> None:
    told = [figures.Recollection(5, 1, 4, make_mass())]
    figure = figures.draw_memory_filmstrip({4: make_frame()}, told, "my clip")
    (caption,) = [note.text for note in figure.layout.annotations if note.name == "caption"]
    said = caption.replace("<br>", " ")
    assert "even share of all frames of its row" in said and "my clip" in said


def test_columns_are_named_above_their_pictures_where_the_first_row_has_fewer() -> None:
    frames = {t: make_frame(t) for t in range(6)}
    told = [figures.Recollection(1, 1, 0, make_mass())]
    told += [figures.Recollection(5, age, 5 - age, make_mass(age)) for age in (1, 2, 3)]
    figure = figures.draw_memory_filmstrip(frames, told, "my clip")
    names = [note for note in figure.layout.annotations if "back" in note.text]
    above = {note.text: (note.x, note.xref, note.xanchor) for note in names}
    # an axis without a picture has no place: names hang on the figure, not on the first row's axes
    axes = [t.xaxis.replace("x", "xaxis") for t in figure.data if t.type == "heatmap"][-3:]
    middles = [float(np.mean(figure.layout[axis].domain)) for axis in axes]
    assert above == {
        f"{n} back": (pytest.approx(m), "paper", "center")
        for n, m in zip((3, 2, 1), middles, strict=True)
    }
    assert len(set(middles)) == 3


def test_columns_stand_as_memory_is_laid_out() -> None:
    """The prompted frame, then from the oldest to the newest."""
    frames = {t: make_frame(t) for t in range(6)}
    told = [figures.Recollection(5, age, 5 - age, make_mass(age)) for age in (1, 2, 0, 3)]
    figure = figures.draw_memory_filmstrip(frames, told, "my clip")
    names = [n for n in figure.layout.annotations if "back" in n.text or "prompted" in n.text]
    ordered = [note.text for note in sorted(names, key=lambda note: note.x)]
    assert ordered == ["prompted frame", "3 back", "2 back", "1 back"]
