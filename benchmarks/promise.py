"""Is the promise honest? Repeats the whole selection on calibration sets drawn from populations of clips.

Populations are the clips of a losses file, drawn with replacement, and made ones whose losses are normal, lognormal, of
a Pareto law or mostly zero. A calibration set is split, ordered, tested and settled as `efficient-sam2 calibrate` does;
what it states is held against the population:

- `studies`: mean loss of the chosen setting beside the loss promised, as many clips as are recorded;
- `statements`: of one setting alone, how often each kind of statement covers;
- `choices`: of the whole choice, how often what is promised is false, by the number of places where testing starts;
- `questions`: the same where five are asked of the same clips, each at its part of the level. Run:

    python benchmarks/promise.py benchmarks/promise_losses.json --out benchmarks/promise.json --figure docs/promise.png
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from figures.calibration import draw_promise
from figures.export import save
from figures.style import evidence
from probes.files import write_text
from sparsity.calibration import bounds
from sparsity.calibration.bounds import Choice, approximate_bound, certain_bound, choose, tail_bound
from sparsity.calibration.ledger import level_of
from sparsity.calibration.rounds import Wanted, order_of_testing
from sparsity.calibration.search import split_clips

CONFIDENCE = 0.95

COUNTS = (5, 6, 8, 10, 19, 38)
"""Numbers of videos."""

LEVELS = (1.0, 2.0, 5.0)
"""Accepted losses of the studies."""

ASKED = (10, 19, 38)
"""Numbers of videos that several questions are asked of."""

STARTS = (1, 2, 4)
"""Places where testing starts that are compared."""

QUESTIONS = (0.7, 1.0, 1.5, 2.0, 3.0)
"""Accepted losses that are asked one after the other."""

MADE: dict[str, Any] = {
    "normal": lambda rng, n: rng.normal(1, 1, n),
    "lognormal": lambda rng, n: rng.lognormal(-0.5, 1, n),
    "Pareto": lambda rng, n: 1.5 * rng.pareto(2.5, n),
    "zero-inflated": lambda rng, n: np.where(rng.random(n) < 0.7, 0, rng.exponential(1 / 0.3, n)),
}
"""Losses of a setting that loses a point on average."""

FACTORS = (0.3, 0.6, 1.05, 1.5, 2.2)
"""Of the mean losses of made settings: one is just over a point, where it is easiest to be wrong."""

MADE_COSTS = (0.9, 0.8, 0.7, 0.6, 0.5)

NOISE = 0.2
"""Points, of a made setting on a clip beside the clip's own."""

TRUTH = 400_000
"""Clips that stand for all of a made population."""


@dataclass(frozen=True)
class Population:
    """Clips under several settings.

    Attributes
    ----------
    recorded
        Losses of the clips there are, ``[clips, settings]``; None for a made population.
    """

    name: str
    costs: tuple[float, ...]
    recorded: NDArray[np.float64] | None = None

    def draw(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        """Draw clips: losses ``[n, settings]``."""
        if self.recorded is not None:
            return self.recorded[rng.integers(0, len(self.recorded), n)]
        own = MADE[self.name](rng, n)[:, None] * np.array(FACTORS)
        return own + rng.normal(0, NOISE, own.shape)

    @cached_property
    def all(self) -> NDArray[np.float64]:
        """All clips, or very many."""
        return (
            self.draw(np.random.default_rng(1), TRUTH) if self.recorded is None else self.recorded
        )

    @cached_property
    def means(self) -> NDArray[np.float64]:
        """Mean loss by setting."""
        return self.all.mean(0)

    def share(self, setting: int, over: float) -> float:
        """Share of all clips that lose more than `over`."""
        return float((self.all[:, setting] > over).mean())


def populations(recorded: dict[str, Any]) -> list[Population]:
    """Make the populations: the made ones, and that of a losses file."""
    costs = tuple(s["cost"] for s in recorded["settings"])
    made = [Population(name, MADE_COSTS) for name in MADE]
    return [*made, Population("recorded", costs, np.array(recorded["losses"]))]


def chosen(
    population: Population,
    drawn: NDArray[np.float64],
    seed: int,
    max_drop: float,
    confidence: float = CONFIDENCE,
    starts: int = bounds.STARTS,
) -> Choice:
    """Split, order and test drawn clips."""
    names = [str(i) for i in range(len(drawn))]
    first, second = (drawn[[int(i) for i in part]] for part in split_clips(names, 1 / 3, seed))
    kind = bounds.kind_for(len(second), confidence, max_drop)
    wanted = Wanted(max_drop, len(second), confidence, kind)
    order = order_of_testing(first, population.costs, wanted, 4)
    return choose(second, order, population.costs, confidence, max_drop, starts=starts)


def broken(population: Population, choice: Choice) -> bool:
    """Whether something that a choice promises is false of the population."""
    if choice.index is None:
        return False
    promise, tail = choice.promise, choice.promise.tail
    more = population.means[choice.index] > promise.upper and promise.method != bounds.EXACT
    return more or (tail is not None and population.share(choice.index, tail.over) > tail.share)


def study(population: Population, max_drop: float, draws: int) -> dict[str, Any]:
    """Mean loss of what is chosen over draws; a profile that computes everything loses nothing and counts as covered."""
    assert population.recorded is not None
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        drawn = population.draw(rng, len(population.recorded))
        choice = chosen(population, drawn, int(rng.integers(2**31)), max_drop)
        if choice.index is not None:
            own = choice.bounds[choice.index].upper
            found.append((float(population.means[choice.index]), own, broken(population, choice)))
    nothing = draws - len(found)
    return {
        "max_drop": max_drop,
        "draws": draws,
        "nothing_held": nothing,
        "coverage": 1 - sum(false for *_, false in found) / draws,
        "coverage_of_own_bound": (sum(mean <= own for mean, own, _ in found) + nothing) / draws,
        "median_mean": float(np.median([mean for mean, *_ in found])) if found else None,
        "draws_shown": [[round(mean, 3), max_drop] for mean, *_ in found[:200]],
    }


def statements(population: Population, n: int, draws: int) -> dict[str, float]:
    """How often each kind of statement about one setting covers."""
    rng = np.random.default_rng(n)
    covered: dict[str, list[bool]] = {}
    for draw in range(draws):
        setting = int(rng.integers(len(population.costs)))
        x = population.draw(rng, n)[:, setting]
        mean = population.means[setting]
        told = tail_bound(x, CONFIDENCE, float(mean)), tail_bound(x, CONFIDENCE)
        for name, tail in zip(("share over a loss", "share over the worst"), told, strict=True):
            said = population.share(setting, tail.over) <= tail.share
            covered.setdefault(name, []).append(said)
        if draw % 4:
            continue  # bounds on means are slow
        rules = {"mean, approximate": approximate_bound, "mean, certain": certain_bound}
        for name, rule in rules.items():
            covered.setdefault(name, []).append(bool(rule(x, CONFIDENCE).upper >= mean))
    return {name: float(np.mean(all_)) for name, all_ in covered.items()}


def choices(
    population: Population, n: int, draws: int, max_drop: float, starts: int
) -> dict[str, float]:
    """How often the whole choice promises what is false, and what it saves."""
    rng = np.random.default_rng(n)
    found = [
        chosen(
            population, population.draw(rng, n), int(rng.integers(2**31)), max_drop, starts=starts
        )
        for _ in range(draws)
    ]
    costs = [1.0 if one.index is None else population.costs[one.index] for one in found]
    false = [broken(population, one) for one in found]
    return {"false": float(np.mean(false)), "cost": round(float(np.mean(costs)), 4)}


def questions(population: Population, n: int, draws: int) -> float:
    """How often one of five promises, asked of the same clips, is false."""
    rng = np.random.default_rng(n)
    false = []
    for _ in range(draws):
        drawn, seed = population.draw(rng, n), int(rng.integers(2**31))
        asked = [
            chosen(population, drawn, seed, level, level_of(number, CONFIDENCE))
            for number, level in enumerate(QUESTIONS, 1)
        ]
        false.append(any(broken(population, one) for one in asked))
    return float(np.mean(false))


def simulate(population: Population, n: int, draws: int) -> dict[str, Any]:
    """Everything about one population and number of clips but its studies."""
    bounds.RESAMPLES = 500  # of the BCa bootstrap: thousands of bounds are taken here
    compared = population.recorded is not None and n in ASKED
    found = {
        "statements": statements(population, n, draws),
        "choices": [
            {"max_drop": level, "starts": starts, **choices(population, n, draws, level, starts)}
            for level in (LEVELS if population.recorded is not None else LEVELS[:1])
            for starts in (STARTS if compared else STARTS[:1])
        ],
    }  # fmt: skip
    return found | ({"questions": questions(population, n, draws)} if n in ASKED else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("losses", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path, help="picture of the studies")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    recorded = json.loads(arguments.losses.read_text(encoding="utf-8"))
    bounds.RESAMPLES = 500
    every = populations(recorded)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        cases = [(one, n) for one in reversed(every) for n in reversed(COUNTS)]
        simulated = pool.map(partial(simulate, draws=arguments.draws), *zip(*cases, strict=True))
        studies = list(pool.map(partial(study, every[-1], draws=arguments.draws), LEVELS))
    by_name: dict[str, dict[int, Any]] = {}
    for (one, n), of in zip(cases, simulated, strict=True):
        by_name.setdefault(one.name, {})[n] = of
    found = {
        "population": {k: recorded[k] for k in ("model", "note")},
        "clips": len(recorded["losses"]),
        "settings": recorded["settings"],
        "population_means": every[-1].means.round(3).tolist(),
        "confidence": CONFIDENCE,
        "draws": arguments.draws,
        "studies": studies,
        "simulated": by_name,
    }
    write_text(arguments.out, json.dumps(found, indent=1))
    if arguments.figure is not None:
        save(draw_promise(found, evidence=evidence("demo")), arguments.figure)
    for s in found["studies"]:
        print({k: v for k, v in s.items() if k != "draws_shown"})
    print(json.dumps(found["simulated"]))


if __name__ == "__main__":
    main()
