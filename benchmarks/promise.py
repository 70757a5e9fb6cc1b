"""Is the promise honest? Repeats the whole selection on calibration sets drawn from a population of clips.

All clips of a losses file are the population. A calibration set of as many clips is drawn with replacement,
split, ordered, tested and settled as `efficient-sam2 calibrate` does; the bound it states is held against the
mean loss of the chosen setting over the population. Beside it stands how often the chosen setting's own bound
covers, which is what selection spoils. Run:

    python benchmarks/promise.py benchmarks/promise_losses.json --out benchmarks/promise.json --figure docs/promise.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from figures.export import save
from figures.promise import draw_promise
from figures.style import evidence
from sparsity.calibration import bounds
from sparsity.calibration.promise import choose
from sparsity.calibration.search import order_of_testing, split_clips
from sparsity.runs import write_text

CONFIDENCE = 0.95


def one_draw(
    losses: np.ndarray, costs: list[float], max_drop: float, rng: np.random.Generator
) -> dict[str, float] | None:
    """Draw, select and state; None where no setting holds and the profile computes everything."""
    drawn = losses[rng.integers(0, len(losses), len(losses))]
    search, promised = split_clips(
        [str(i) for i in range(len(drawn))], 1 / 3, int(rng.integers(2**31))
    )
    first, second = (drawn[[int(i) for i in part]] for part in (search, promised))
    order = order_of_testing(first, CONFIDENCE, 4)
    choice = choose(second, order, costs, CONFIDENCE, max_drop)
    if choice.index is None:
        return None
    return {
        "setting": choice.index,
        "stated": choice.promise.upper,
        "own": choice.bounds[choice.index].upper,
        "mean": float(losses[:, choice.index].mean()),
    }


def study(population: dict[str, Any], max_drop: float, draws: int) -> dict[str, Any]:
    """Coverage of the stated bound over draws; a profile that computes everything loses nothing and counts as covered."""
    losses = np.array(population["losses"])
    costs = [s["cost"] for s in population["settings"]]
    rng = np.random.default_rng(0)
    found = [one_draw(losses, costs, max_drop, rng) for _ in range(draws)]
    stated = [f for f in found if f is not None]
    covered = [f["mean"] <= f["stated"] for f in stated]
    own = [f["mean"] <= f["own"] for f in stated]
    return {
        "max_drop": max_drop,
        "draws": draws,
        "nothing_held": len(found) - len(stated),
        "coverage": (sum(covered) + len(found) - len(stated)) / len(found),
        "coverage_where_something_held": float(np.mean(covered)) if covered else None,
        "coverage_of_own_bound": (sum(own) + len(found) - len(stated)) / len(found),
        "coverage_of_own_bound_where_something_held": float(np.mean(own)) if own else None,
        "median_stated": float(np.median([f["stated"] for f in stated])) if stated else None,
        "median_mean": float(np.median([f["mean"] for f in stated])) if stated else None,
        "draws_shown": [[round(f["mean"], 3), round(f["stated"], 3)] for f in stated[:200]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("losses", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path, help="picture of the result")
    parser.add_argument("--draws", type=int, default=1000)
    arguments = parser.parse_args()
    population = json.loads(arguments.losses.read_text(encoding="utf-8"))
    bounds.RESAMPLES = 500  # of the BCa bootstrap: thousands of bounds are taken here
    found = {
        "population": {k: population[k] for k in ("model", "note")},
        "clips": len(population["losses"]),
        "settings": population["settings"],
        "population_means": np.mean(population["losses"], axis=0).round(3).tolist(),
        "confidence": CONFIDENCE,
        "studies": [study(population, drop, arguments.draws) for drop in (1.0, 2.0, 5.0)],
    }
    write_text(arguments.out, json.dumps(found, indent=1))
    if arguments.figure is not None:
        save(draw_promise(found, evidence=evidence("demo")), arguments.figure)
    for s in found["studies"]:
        print({k: v for k, v in s.items() if k != "draws_shown"})


if __name__ == "__main__":
    main()
