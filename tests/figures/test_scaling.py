"""The scaling figure draws the series that were measured, time beside operations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gallery import draw_scaling, load_growth
from probes.errors import InputError


def row(**changes: float) -> dict[str, float]:
    settings = {"windows": 0.24, "keys": 0.33, "objects": 1, "size": 1024}
    costs = {"ms": 900.0, "gflop": 400.0, "stock_ms": 2000.0, "stock_gflop": 1000.0}
    return {**settings, **costs, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    series = {
        "windows": [row(windows=1.0, ms=1500.0, gflop=800.0), row(windows=0.04)],
        "objects-1": [row()],
        "objects-4": [row(objects=4, ms=1200.0)],
    }
    for name, rows in series.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    return tmp_path


def test_series_are_put_together_and_ascend(folder: Path) -> None:
    found = load_growth(folder)
    assert list(found) == ["windows", "objects"]
    assert found["windows"].x == (4.0, 100.0) and found["windows"].ms == (900.0, 1500.0)
    assert found["objects"].x == (1.0, 4.0)


def test_each_of_the_four_series_has_a_panel(folder: Path) -> None:
    (folder / "keys.json").write_text(json.dumps({"rows": [row(keys=1.0), row()]}))
    (folder / "size-512.json").write_text(json.dumps({"rows": [row(size=512)]}))
    figure = draw_scaling(load_growth(folder), "caption")
    titles = [figure.layout[f"xaxis{n}"].title.text.split(" /")[0] for n in ("", 2, 3, 4)]
    assert titles == ["windows computed", "memory keys read", "objects", "side of the input"]
    assert len(figure.data) == 16


def test_operations_are_scaled_to_stocks_time(folder: Path) -> None:
    figure = draw_scaling(load_growth(folder), "caption")
    lines = {trace.name: trace for trace in figure.data[:4]}
    assert list(lines["accelerated, time"].y) == [900.0, 1500.0]
    assert list(lines["accelerated, operations"].y) == [800.0, 1600.0]
    assert lines["stock sam2, operations"].y[0] == lines["stock sam2, time"].y[0]
    assert figure.layout.xaxis.title.text == "windows computed / %"


def test_nothing_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no series given"):
        draw_scaling(load_growth(tmp_path), "caption")


def test_another_file_is_refused(folder: Path) -> None:
    (folder / "keys.json").write_text(json.dumps({"rows": [{"keys": 1}]}))
    with pytest.raises(InputError, match="a keys file"):
        load_growth(folder)
