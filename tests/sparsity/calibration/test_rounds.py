"""The search in rounds: a model of loss that is monotone, runs that move towards the accepted loss, and the order of testing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sparsity.calibration.rounds import (
    Wanted,
    believed,
    gain,
    left_out,
    next_round,
    order_of_testing,
    rounds_of,
    search_in_rounds,
)
from sparsity.calibration.search import LADDER, Candidate
from sparsity.calibration.thresholds import MARGINS, mask_only
from sparsity.profile import Profile
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import Guard, Routing

WANTED = Wanted(2.0, 5, 0.95, "share")

TRIED = 13


def candidate(base: str, unit: str, margin: float, keep: float, refresh: int | None) -> Candidate:
    """A setting that computes more windows the larger its margin; what is reused makes it cheaper."""
    routing = mask_only(margin, "best", unit)
    profile = Profile(
        name=f"{base}-{unit}-{margin:g}-{keep:g}-{refresh}", exact=True, routing=routing,
        guard=Guard(refresh_every=refresh), retrieval=Retrieval(keep=keep), reuse=base == "recommended",
    )  # fmt: skip
    windows = (0.2 if unit == "cell" else 0.35) + 0.6 * margin / MARGINS[-1]
    windows += 0.0 if refresh is None else (1 - windows) / refresh
    cost = 0.1 + (0.7 if profile.reuse else 0.5) * windows + 0.2 * keep
    cost += 0.0 if profile.reuse else 0.2
    return Candidate(profile, windows, keep, cost, 1 - 0.1 * (1 - windows))


EVERY = [
    candidate(base, unit, margin, keep, refresh)
    for base in ("paper", "recommended")
    for unit in ("window", "cell")
    for margin in MARGINS
    for keep in (0.02, 0.1, 0.4)
    for refresh in (None, 4)
]


def lost(settings: list[Candidate], clips: int = 3, seed: int = 0) -> np.ndarray:
    """Losses that no replay tells: more of what is reused, of cells, of small margins, and a factor for each clip."""
    rng = np.random.default_rng(seed)
    factor = np.exp(0.4 * rng.standard_normal(clips))
    mean = [
        8 * (1 - c.windows) ** 2 * (1.6 if c.profile.reuse else 1.0)
        + 1.5 * (1 - c.keys) ** 4
        + (0.6 if c.profile.routing.unit == "cell" else 0.0)
        for c in settings
    ]
    return factor[:, None] * np.array(mean)


def lost_by_more(settings: list[Candidate], clips: int = 3, seed: int = 0) -> np.ndarray:
    """The same, but that settings which reuse lose more the more of memory they read, as on the clips of DAVIS."""
    factor = np.array([1 + 2 * c.keys * bool(c.profile.reuse) for c in settings])
    return lost(settings, clips, seed) * factor


def search(wanted: Wanted, tried: int = TRIED, truth=lost):
    """Search; with the number of settings of each round."""
    rounds: list[int] = []

    def run(settings):
        rounds.append(len(settings))
        return truth(settings)

    known = [c for c in EVERY if c.profile.routing.margin_px == 0 and c.keys == 0.02][:2]
    found, losses = search_in_rounds(EVERY, run, (known, truth(known)), wanted, tried)
    return found, losses, rounds


@pytest.mark.parametrize(("truth", "over"), [(lost, 1.08), (lost_by_more, 1.13)])
@pytest.mark.parametrize("level", [1.0, 2.0, 3.0, 5.0])
def test_what_is_found_costs_little_more_than_the_cheapest_that_holds(level, truth, over):
    wanted = replace(WANTED, level=level)
    settings, losses, rounds = search(wanted, truth=truth)
    assert np.array_equal(losses, truth(settings)) and sum(rounds) == len(settings) == TRIED
    assert len({c.profile.name for c in settings}) == TRIED and len(rounds) == rounds_of(TRIED)
    holds = truth(EVERY).max(0) <= level
    best = min(c.cost for c, ok in zip(EVERY, holds, strict=True) if ok)
    found = [c.cost for c, of in zip(settings, losses.T, strict=True) if of.max() <= level]
    ladder = [
        c.cost for c, of in zip(settings[:LADDER], losses.T, strict=False) if of.max() <= level
    ]
    assert min(found) <= over * best
    assert min(found) <= min(ladder, default=1.0)


def test_more_is_taken_where_more_may_be_lost():
    costs = []
    for level in (1.0, 5.0):
        settings, losses, _ = search(replace(WANTED, level=level))
        costs.append(
            min(c.cost for c, of in zip(settings, losses.T, strict=True) if of.max() <= level)
        )
    assert costs[1] < costs[0]


def test_the_model_of_loss_is_monotone_in_what_is_left_out():
    run = EVERY[::17]
    beliefs = believed(EVERY, run, lost(run))
    seen = {c.profile.name for c in run}
    by_name = {
        c.profile.name: x
        for c, x in zip(EVERY, beliefs.centre, strict=True)
        if c.profile.name not in seen
    }
    pairs = 0
    for name, centre in by_name.items():
        base, unit, margin, keep, refresh = name.split("-")
        for wider in MARGINS:
            other = by_name.get(f"{base}-{unit}-{wider:g}-{keep}-{refresh}")
            if other is not None and wider > float(margin):
                pairs += 1
                assert other <= centre + 1e-9
        more = by_name.get(f"{base}-{unit}-{margin}-0.4-{refresh}")
        assert more is None or more <= centre + 1e-9
    assert pairs > 100 and len(set(by_name.values())) > 50
    assert left_out(EVERY).min() >= 0 and left_out(EVERY).max() <= 1


def test_what_memory_costs_where_features_are_reused_is_learned_there():
    """Both bases in one column made fewer tokens look dearer on one where they lose less, and the cheapest were not tried."""
    run = EVERY[::17]
    beliefs = believed(EVERY, run, lost_by_more(run))
    centre = {c.profile.name: x for c, x in zip(EVERY, beliefs.centre, strict=True)}
    for unit in ("window", "cell"):
        few, many = (centre[f"recommended-{unit}-24-{keep}-None"] for keep in ("0.02", "0.4"))
        assert few <= many
        few, many = (centre[f"paper-{unit}-24-{keep}-None"] for keep in ("0.02", "0.4"))
        assert few > many


def test_what_was_run_is_believed_as_it_was_seen_and_not_run_again():
    run = EVERY[:6]
    centre = believed(run, run, lost(run)).centre
    assert centre == pytest.approx(np.log(lost(run) + 0.25).mean(0))
    more = next_round(EVERY, run, lost(run), WANTED, 3)
    assert len(more) == 3 and not {c.profile.name for c in more} & {c.profile.name for c in run}
    assert next_round(run, run, lost(run), WANTED, 3) == []


@pytest.mark.parametrize("seed", range(5))
def test_what_is_gained_is_the_mean_over_draws(seed):
    rng = np.random.default_rng(seed)
    known, (chance, saving) = (rng.random(4), rng.random(4)), rng.random((2, 3))
    draws = (np.arange(20_000) + 0.5) / 20_000
    before = np.where(known[0][:, None] > draws, known[1][:, None], 0.0).max(0)
    after = np.maximum(before, np.where(chance[:, None] > draws, saving[:, None], 0.0))
    assert gain(chance, saving, known) == pytest.approx((after - before).mean(1), abs=1e-3)
    assert gain(known[0], known[1], known) == pytest.approx(0.0, abs=1e-9)
    assert gain(known[0], known[1] + 0.1, known).max() > 0


def test_next_to_one_that_surely_holds_only_cheaper_ones_are_run():
    sure = next(c for c in EVERY if c.profile.name == "paper-window-32-0.1-None")
    run = [sure, *EVERY[:3]]
    losses = np.tile([0.0, 9.0, 9.0, 9.0], (3, 1))
    more = next_round(EVERY, run, losses, WANTED, 3)
    assert len(more) == 3 and all(c.cost < sure.cost for c in more)
    unsure = next_round(EVERY, run, losses + 3.0, WANTED, 3)
    assert any(c.cost > sure.cost for c in unsure)


def test_int8_and_carried_features_have_weights_of_their_own():
    plain = EVERY[0]
    second = Routing(unit="frame", every=2)
    settings = [
        plain,
        replace(plain, profile=plain.profile.model_copy(update={"quantize": "int8"})),
        Candidate(Profile(name="whole", exact=True), 1.0, 1.0, 1.0, 1.0),
        Candidate(Profile(name="second", exact=True, routing=second), 0.5, 1.0, 0.7, 0.5),
    ]
    rows = left_out(settings)
    for one, other in ((0, 1), (2, 3)):
        assert np.count_nonzero(rows[other] - rows[one]) == 1 and (rows[other] >= rows[one]).all()
    assert not np.array_equal(rows[1] - rows[0], rows[3] - rows[2])


def test_the_surest_are_tested_first_and_what_costs_more_than_a_surer_one_is_not():
    losses = np.array([[0.1, 0.9, 0.4, 3.0, 0.5], [0.2, 1.3, 0.6, 4.0, 0.7]])
    costs = [0.9, 0.6, 0.8, 0.5, 0.85]
    assert order_of_testing(losses, costs, WANTED, 9) == [0, 2, 1, 3]
    assert order_of_testing(losses, costs, WANTED, 3) == [0, 2, 1]
    (alone,) = order_of_testing(losses, costs, WANTED, 1)
    assert alone != 3, "one setting alone is likely to hold"
    surest = replace(WANTED, level=math.inf)
    assert order_of_testing(losses, costs, surest, 1) == [0]
    shifted = order_of_testing(losses, costs, replace(WANTED, level=30.0), 1)
    assert shifted == [3], "where all hold, the cheapest"


@pytest.mark.parametrize(("tried", "rounds"), [(1, 1), (LADDER, 1), (LADDER + 1, 2), (13, 4)])
def test_a_budget_counts_the_rounds(tried, rounds):
    assert rounds_of(tried) == rounds
    settings, _, of = search(WANTED, tried)
    assert len(of) == rounds and len(settings) == tried


def test_of_many_clips_some_may_lose_more_and_their_mean_counts():
    centre = np.log(np.array([0.5, 1.0, 1.9, 4.0]) + 0.25)
    few, many = (replace(WANTED, clips=n).chance(centre, 0.5) for n in (5, 40))
    certain = replace(WANTED, clips=800, kind="certain").chance(centre, 0.5)
    for chance in (few, many, certain):
        assert all(np.diff(chance) <= 0) and chance[0] > 0.5 > chance[-1]
    assert many[1] > few[1]
