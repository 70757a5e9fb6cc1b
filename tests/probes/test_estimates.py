"""Intervals of means over clips: they hold the mean as often as they say, and say so where clips are too few."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator
from scipy import stats

from probes.errors import InputError
from probes.estimates import FEWEST, OUTSIDE, interval, over_clips, ratio_over_clips

KINDS: dict[str, tuple[Callable[[Generator, int], np.ndarray], float]] = {
    "normal": (lambda rng, n: rng.normal(70, 9, n), 70.0),
    "exponential": (lambda rng, n: rng.exponential(1, n), 1.0),
    "log-normal": (lambda rng, n: rng.lognormal(0, 1, n), math.exp(0.5)),
    "gains and a few losses": (lambda rng, n: 2 - rng.exponential(3, n), -1.0),
}
"""By kind: how its values are drawn, and their mean."""


def percentile(x: np.ndarray) -> tuple[float, float]:
    """The bootstrap's interval, which says 95 % too."""
    rng = np.random.default_rng(0)
    means = x[rng.integers(0, len(x), (300, len(x)))].mean(axis=1)
    return tuple(np.percentile(means, [2.5, 97.5]))


def held(of: Callable[[np.ndarray], tuple[float, float]], kind: str, n: int, draws: int) -> float:
    """Share of draws of `n` clips whose interval holds the mean."""
    draw, mean = KINDS[kind]
    rng = np.random.default_rng(n)
    ends = (of(draw(rng, n)) for _ in range(draws))
    return float(np.mean([low <= mean <= high for low, high in ends]))


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_an_interval_holds_the_mean_as_often_as_it_says(kind: str, n: int) -> None:
    assert held(interval, kind, n, 1000) >= 0.93
    assert held(percentile, kind, n, 300) < 0.93


def test_fewer_are_too_few() -> None:
    for n in range(FEWEST):
        with pytest.raises(InputError, match=f"too few clips for an interval: {n} given"):
            interval([1.0] * n)
    found = over_clips([1.0, 3.0])
    assert math.isnan(found.low) and math.isnan(found.high) and found.mean == 2.0
    assert str(found) == "2 (too few for an interval, n = 2 clips)"
    assert "95 % interval" in str(over_clips([1.0, 3.0, 2.0]))


def test_of_symmetric_values_an_interval_is_students() -> None:
    x = np.array([60.0, 62, 70, 78, 80])
    expected = stats.t.interval(1 - 0.05 * OUTSIDE, 4, 70, stats.sem(x))
    assert interval(x) == pytest.approx(expected)
    assert interval(x, 0.9) == pytest.approx(
        stats.t.interval(1 - 0.1 * OUTSIDE, 4, 70, stats.sem(x))
    )
    assert interval(x, 0.9) != pytest.approx(expected)
    x[-1] = 95.0  # one far above the others: the mean of all may lie far above, too
    low, high = interval(x)
    assert high - x.mean() > 1.2 * (x.mean() - low)


clips = st.lists(st.integers(-50, 50).map(float), min_size=FEWEST, max_size=12).map(np.array)


@given(clips, st.integers(1, 9), st.integers(-20, 20))
def test_an_interval_goes_with_its_values(x: np.ndarray, scale: float, shift: float) -> None:
    low, high = interval(x)
    assert low <= x.mean() + 1e-9 and x.mean() - 1e-9 <= high
    assert interval(scale * x + shift) == pytest.approx((scale * low + shift, scale * high + shift))
    assert interval(-x) == pytest.approx((-high, -low))
    assert (low == high) == (np.ptp(x) == 0)
    wider = interval(x, 0.99)
    assert wider[0] <= low + 1e-9 and wider[1] >= high - 1e-9


def test_clips_without_a_value_do_not_count() -> None:
    found = over_clips({"a": 1.0, "b": float("nan"), "c": 3.0, "d": 2.0})
    assert (found.mean, found.n) == (2.0, 3) and (found.low, found.high) == interval([1, 3, 2])
    assert over_clips([1.0, 2.0, 4.0]) != over_clips([1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="no clip has a value"):
        over_clips([float("nan")])


def test_ratios_have_a_geometric_mean_and_positive_ends() -> None:
    values = {"a": 4.0, "b": 30.0, "c": 90.0}
    found, turned = ratio_over_clips(values), ratio_over_clips([1 / v for v in values.values()])
    assert found.mean == pytest.approx(stats.gmean(list(values.values())))
    assert 0 < found.low < found.mean < found.high and over_clips(values).low < 0
    assert (turned.low, turned.high) == pytest.approx((1 / found.high, 1 / found.low))
    assert math.isnan(ratio_over_clips([2.0, 3.0]).low)


def test_an_interval_ends_where_values_do() -> None:
    shares = [0.85, 0.9, 0.98]
    plain, inside = over_clips(shares), over_clips(shares, (0, 1))
    assert plain.high > 1 == inside.high and inside.low == plain.low and inside.mean == plain.mean
    assert math.isnan(over_clips([0.5, 0.9], (0, 1)).high)
