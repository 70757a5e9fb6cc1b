"""The page of a benchmark shows its rows and draws what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from figures.benchmark import bench_figures, conditions, losses_of, times_of, write_bench_report
from sparsity.evaluation.results import Result, Times, parse_result

ONE = {"j_and_f": 80.0, "j": 79.0, "f": 81.0}


def result(quality: bool, trained: bool = True) -> Result:
    """A result of two runs, as bench leaves it."""
    clip = {**ONE, "frames": 3, "objects": {}}
    scores = {**ONE, "over_objects": ONE, "clips": dict.fromkeys(("bear", "bus", "dog"), clip)}
    scores["intervals"] = {"j_and_f": [60.0, 99.0]}
    run: dict[str, Any] = {
        "frames": 5,
        "objects": 1,
        "ms_per_frame": {"median": 100.0, "p90": 110.0, "p99": 120.0},
        "ratio": {"median": 1.0, "low": 1.0, "high": 1.0},
        "stages": {"image encoder": 70.0, "rest": 30.0},
        "flops": 5e9,
        "quality": scores if quality else None,
        "why": None if quality else "no weights; fixed windows 4/16",
    }
    fast = {**run, "name": "paper", "ratio": {"median": 2.5, "low": 2.4, "high": 2.6}}
    if quality:
        fast["quality"] = {**scores, "loss": 1.5, "intervals": {"loss": [0.5, 3.0]}}
    return parse_result(
        json.dumps(
            {
                "schema": "efficient-sam2/result/1",
                "environment": {"cpu": "a CPU", "threads": 2, "torch": "2.13", "dtype": "bfloat16"},
                "model": {
                    "name": "demo",
                    "fingerprint": "f",
                    "image_size": 256,
                    "trained": trained,
                },
                "data": {
                    "root": "clip", "clips": ["clip"], "frames": 5, "settings": {"route": "its own"},
                },
                "runs": [{**run, "name": "stock"}, fast],
            }
        )
    )  # fmt: skip


def test_times_and_trade_off_are_drawn_from_the_rows() -> None:
    times, trade = bench_figures(result(quality=True))
    assert [list(bar.y) for bar in times.data] == [["stock", "paper"]] * 2
    assert [point.x[0] for point in trade.data] == [1.0, 2.5]
    assert [point.y[0] for point in trade.data] == [0.0, 1.5]
    stock, paper = (point.error_y for point in trade.data)
    assert stock.array is None and (paper.array[0], paper.arrayminus[0]) == (1.5, 1.0)
    (caption,) = [note.text for note in trade.layout.annotations if note.name == "caption"]
    assert "means over 3 clips (bear, bus, dog)" in caption.replace("<br>", " ")
    assert "too few" not in caption
    one = result(quality=True)
    scores = one.runs[1].quality
    alone = scores.model_copy(update={"clips": {"bear": scores.clips["bear"]}, "intervals": {}})
    runs = [
        one.runs[0].model_copy(update={"quality": None}),
        one.runs[1].model_copy(update={"quality": alone}),
    ]
    assert "1 clips (bear)" in losses_of(one.model_copy(update={"runs": runs}))
    assert "too few for an interval" in losses_of(one.model_copy(update={"runs": runs}))


@pytest.mark.parametrize("median", [100.0, 50.0])
def test_bars_are_as_long_as_the_rows_medians(median: float) -> None:
    plain = result(quality=False)
    stock = plain.runs[0].model_copy(
        update={"ms_per_frame": Times(median=median, p90=110.0, p99=120.0)}
    )
    times = times_of(plain.model_copy(update={"runs": [stock, plain.runs[1]]}))
    # stages were timed on one frame: 70 and 30 ms
    assert times["stock"] == pytest.approx({"image encoder": 0.7 * median, "rest": 0.3 * median})
    assert times["paper"] == pytest.approx({"image encoder": 70.0, "rest": 30.0})
    (drawn,) = bench_figures(plain)
    (caption,) = [note.text for note in drawn.layout.annotations if note.name == "caption"]
    assert "Median time of a frame" in caption.replace("<br>", " ")


def test_a_run_that_was_not_timed_has_no_bar() -> None:
    plain = result(quality=False)
    for changed in ({"ms_per_frame": None}, {"stages": None}):
        stock = plain.runs[0].model_copy(update=changed)
        assert list(times_of(plain.model_copy(update={"runs": [stock, plain.runs[1]]}))) == [
            "paper"
        ]


def test_without_quality_there_is_no_trade_off() -> None:
    assert len(bench_figures(result(quality=False))) == 1


@pytest.mark.parametrize(("trained", "words"), [(True, "Demo model"), (False, "Random weights")])
def test_the_page_says_what_it_is_evidence_of(tmp_path: Path, trained: bool, words: str) -> None:
    write_bench_report(result(False, trained), tmp_path / "bench.html")
    page = (tmp_path / "bench.html").read_text(encoding="utf-8")
    assert words in page and "[1] no weights; fixed windows 4/16" in page
    assert "<strong>2.50</strong>" in page
    assert [file.name for file in tmp_path.iterdir()] == ["bench.html"]


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    plain = result(False)
    named = plain.runs[1].model_copy(update={"name": "<i>a & b</i>"})
    write_bench_report(
        plain.model_copy(update={"runs": [plain.runs[0], named]}), tmp_path / "bench.html"
    )
    page = (tmp_path / "bench.html").read_text(encoding="utf-8")
    assert "<td>&lt;i&gt;a &amp; b&lt;/i&gt;</td>" in page
    assert "<td>stock</td>" in page and "<i>a" not in page


def test_conditions_name_machine_and_dtype() -> None:
    said = conditions(result(False))
    assert "a CPU, 2 threads" in said and "bfloat16" in said and "allocator default" in said
