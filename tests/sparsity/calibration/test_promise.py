"""What is promised is counted by simulation: in short here, and at length in `benchmarks/promise.json`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.promise import MADE, Population, broken, choices, populations, questions, statements
from sparsity.calibration.bounds import COVERAGE, FEW, choose

HERE = Path("benchmarks")

FOUND = json.loads((HERE / "promise.json").read_text(encoding="utf-8"))["simulated"]

RECORDED = json.loads((HERE / "promise_losses.json").read_text(encoding="utf-8"))

EVERY = {one.name: one for one in populations(RECORDED)}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_called_exact_covers_and_the_whole_choice_errs_seldom(name):
    assert set(FOUND) == set(EVERY)
    for n, of in FOUND[name].items():
        kinds = of["statements"]
        assert all(share >= 0.93 for kind, share in kinds.items() if "approximate" not in kind)
        assert all(row["false"] <= 0.06 for row in of["choices"] if int(n) >= 10)
        assert of.get("questions", 0.0) <= 0.06


def test_what_the_approximate_bound_covers_is_what_the_code_says():
    for n, share in COVERAGE.items():
        worst = min(of[str(n)]["statements"]["mean, approximate"] for of in FOUND.values())
        assert share == pytest.approx(worst, abs=0.005)
        assert worst < 0.93, "approximate it is"


@pytest.mark.parametrize("name", ["zero-inflated", "recorded"])
def test_a_short_simulation_finds_the_same(name):
    population = EVERY[name]
    kinds = statements(population, 10, 60)
    assert all(share > 0.85 for kind, share in kinds.items() if "approximate" not in kind)
    assert choices(population, 19, 40, 1.0, 1)["false"] < 0.15
    assert questions(population, 10, 15) < 0.25


def test_a_promise_that_is_false_is_counted():
    """Half of all clips lose 3 points: to say that few lose more than 1 is false, and that few lose more than 4 is not."""
    halves = Population("halves", (0.5,), np.repeat([[0.0], [3.0]], 50, axis=0))
    calm = np.zeros((FEW - 1, 1))
    assert broken(halves, choose(calm, [0], [0.5], 0.95, 1.0))
    assert not broken(halves, choose(calm, [0], [0.5], 0.95, 4.0))
    assert not broken(halves, choose(calm + 9, [0], [0.5], 0.95, 1.0)), "nothing was promised"
    assert set(MADE) == set(EVERY) - {"recorded"}
