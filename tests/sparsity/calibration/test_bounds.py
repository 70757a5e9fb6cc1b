"""Bounds on the loss: they cover, they tell what they can't know, and the choice under them is fixed in order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.risk_control import FWERFixedSequenceTesting
from mapie.risk_control.methods import get_r_hat_plus
from scipy import optimize, stats

from probes.errors import InputError
from sparsity.calibration.bounds import (
    APPROXIMATE,
    ORDER,
    POINTS,
    Tail,
    approximate_bound,
    bound,
    certain_bound,
    choose,
    holds,
    largest_share,
    smallest_certifiable,
    spared,
    tail_bound,
    videos_needed,
)
from sparsity.profile import EXACT

losses = st.lists(st.floats(-5, 100), min_size=2, max_size=12).map(np.array)


@settings(deadline=None, max_examples=50)
@given(losses, st.sampled_from([0.8, 0.9, 0.95]))
def test_a_certain_bound_lies_above_the_mean_and_within_the_range(x, confidence):
    found = certain_bound(x, confidence)
    assert found.mean <= found.upper <= 100
    assert found.mean == pytest.approx(x.mean())


@pytest.mark.parametrize("seed", [1, 2, 8])
def test_a_certain_bound_of_many_videos_lies_above_their_mean_at_any_confidence(seed):
    x = np.where(np.random.default_rng(seed).random(100) < 0.5, 100.0, 0.0)
    assert certain_bound(x, 0.5).upper == pytest.approx(x.mean())
    assert certain_bound(x, 0.95).upper > x.mean() + 1


@settings(deadline=None, max_examples=50)
@given(losses)
def test_more_confidence_and_more_loss_raise_a_certain_bound(x):
    assert certain_bound(x, 0.9).upper <= certain_bound(x, 0.99).upper + 1e-6
    assert certain_bound(x, 0.9).upper <= certain_bound(x + 1, 0.9).upper + 1e-6


@pytest.mark.parametrize("videos", [2, 8, 45, 99, 100, 299, 2000])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_zero_loss_gives_what_so_many_videos_can_certify(videos, confidence):
    least = smallest_certifiable(videos, confidence)
    found = certain_bound(np.zeros(videos), confidence, least).upper
    assert found == pytest.approx(least, abs=1e-4)
    assert certain_bound(np.ones(videos), confidence, least).upper > found
    for accepted in np.geomspace(1.001 * least, POINTS, 20):
        assert certain_bound(np.zeros(videos), confidence, accepted).upper <= accepted


def test_many_videos_are_bound_as_the_library_does_it_but_in_little_memory():
    risks = np.repeat([0.002, 0.12], 60)
    level = optimize.brentq(lambda d: d * (1 - np.log(d)) - 0.1, 1e-15, 0.1)
    rates = np.geomspace(1e-4, 1.0, 200)
    shuffled, sorted_ = (
        get_r_hat_plus(np.repeat(x[:, None], 200, 1), rates, "rcps", "wsr", level, 0.25)[1][0]
        for x in (np.random.default_rng(ORDER).permutation(risks), risks)
    )
    assert certain_bound(100 * risks, 0.9).upper == pytest.approx(100 * shuffled)
    assert shuffled != pytest.approx(sorted_)
    assert 0 < certain_bound(np.zeros(50_000), 0.9).upper < 0.02


def test_the_number_of_videos_needed_is_the_smallest_that_does():
    assert videos_needed(5.0, 0.9) == 45 and videos_needed(1.0, 0.9) == 230
    assert videos_needed(100.0, 0.9) == 1
    for drop in (0.5, 3.0, 20.0):
        n = videos_needed(drop, 0.95)
        assert smallest_certifiable(n, 0.95) <= drop < smallest_certifiable(n - 1, 0.95)


@pytest.mark.parametrize(("videos", "draws"), [(20, 300), (120, 40)])
def test_certain_bounds_cover_where_few_videos_lose_much(videos, draws):
    """Both kinds, on the population that makes other bounds fail: 3 in 100 videos lose everything."""
    rng = np.random.default_rng(0)
    covered = [
        certain_bound(100.0 * (rng.random(videos) < 0.03), 0.9).upper >= 3.0 for _ in range(draws)
    ]
    assert np.mean(covered) >= 0.9


@pytest.mark.parametrize("order", [np.sort, lambda x: np.sort(x)[::-1], lambda x: x])
def test_certain_bounds_cover_whatever_order_the_clips_come_in(order):
    """Names are sorted, so clips of a kind, which lose alike, stand together."""
    rng = np.random.default_rng(0)
    drawn = [order(np.where(rng.random(200) < 0.5, 12.0, 0.0)) for _ in range(40)]
    assert np.mean([certain_bound(x, 0.95).upper >= 6.0 for x in drawn]) >= 0.95


def test_nothing_holds_whose_mean_loss_is_over_the_level_however_it_is_ordered():
    grouped = np.repeat([0.0, 12.0], 100)
    assert choose(grouped[:, None], [0], [1.0], 0.95, 5.5, "certain").index is None
    assert choose(grouped[:, None], [0], [1.0], 0.95, 12.0, "certain").index == 0


def test_an_approximate_bound_does_not_cover_there_and_says_so():
    rng = np.random.default_rng(0)
    found = [approximate_bound(100.0 * (rng.random(20) < 0.03), 0.9) for _ in range(50)]
    assert np.mean([one.upper >= 3.0 for one in found]) < 0.9
    assert all("approximate" in one.method for one in found)


def test_an_approximate_bound_covers_where_losses_are_alike():
    rng = np.random.default_rng(0)
    covered = [approximate_bound(rng.normal(1, 2, 15), 0.9).upper >= 1.0 for _ in range(100)]
    assert np.mean(covered) >= 0.85


def test_which_bound_is_stated_depends_on_the_number_of_videos_and_the_level_alone():
    assert bound(np.zeros(57), 0.9, 10.0).method == "Hoeffding-Bentkus"
    assert bound(np.zeros(56), 0.9, 10.0).method == APPROXIMATE
    assert bound(np.zeros(575), 0.9, 1.0).method == "Waudby-Smith and Ramdas"
    assert bound(np.zeros(574), 0.9, 1.0).method == APPROXIMATE
    assert bound(np.zeros(19), 0.95, 2.0).method == APPROXIMATE
    assert bound(np.zeros(230), 0.9, 1.0, "certain").method == "Hoeffding-Bentkus"
    as_many_as_are_said_to_do = choose(np.zeros((230, 1)), [0], [1], 0.9, 1.0, "certain")
    assert as_many_as_are_said_to_do.index == 0


def test_one_more_video_does_not_turn_what_holds_into_nothing():
    """Every tenth video loses two points where one is accepted: far from the level, at every number of videos."""
    for videos in (100, 298, 299, 600, 747, 748, 1000):
        x = np.where(np.arange(videos) % 10 == 0, 2.0, 0.0)
        assert choose(x[:, None], [0], [1.0], 0.95, 1.0).index == 0
        assert choose(x[:, None] + 1, [0], [1.0], 0.95, 1.0).index is None


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_what_holds_is_what_fixed_sequence_testing_accepts(seed, count):
    rng = np.random.default_rng(seed)
    x = rng.normal(np.linspace(0, 1.5, count), 1, (10, count))
    order = rng.permutation(count)
    found = choose(x, order, range(count), 0.9, 1.0)
    fails = np.array([float(not holds(bound(x[:, i], 0.9, 1.0), 1.0)) for i in order])
    passed = FWERFixedSequenceTesting().run(fails, 0.1)
    assert found.held == tuple(order[passed])
    assert found.index == (min(found.held) if found.held else None)


def test_a_second_start_goes_past_what_fails_at_its_part_of_the_level():
    x = np.stack([CALM, WILD, CALM, CALM], 1)
    assert choose(x, range(4), [4, 3, 2, 1], 0.9, 1.0, starts=1).held == (0,)
    two = choose(x, range(4), [4, 3, 2, 1], 0.9, 1.0, starts=2)
    assert two.held == (0, 2, 3) and two.bounds[0].confidence == pytest.approx(0.95)
    assert two.promise.tail.share == pytest.approx(1 - 0.05**0.1)


@pytest.mark.parametrize("videos", [1, 5, 19, 59, 200])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.995])
def test_a_share_is_the_largest_under_which_so_few_would_lose_much_by_chance(videos, confidence):
    for lost in {0, videos // 4}:
        share = largest_share(lost, videos, confidence)
        assert stats.binom.cdf(lost, videos, share) == pytest.approx(1 - confidence)
        assert stats.binom.cdf(lost, videos, 0.9 * share) > 1 - confidence
    assert largest_share(videos, videos, confidence) == 1.0


@settings(deadline=None, max_examples=50)
@given(losses, st.floats(0, 50))
def test_the_tail_counts_what_loses_more_and_the_worst_is_never_exceeded(x, over):
    found = tail_bound(x, 0.9, over)
    assert found.lost == sum(loss > over for loss in x)
    assert found.share == largest_share(found.lost, len(x), 0.9) >= found.lost / len(x)
    worst = tail_bound(x, 0.9)
    assert worst == Tail(x.max(), 0, largest_share(0, len(x), 0.9))


def test_few_videos_promise_a_share_and_nothing_of_their_mean():
    """None of five loses more than a point; the worst loses just that."""
    few = np.array([0.2, 0.2, 0.2, 0.2, 1.0])
    found = choose(few[:, None], [0], [1.0], 0.95, 1.0)
    assert found.promise.method == EXACT and found.promise.tail.share == pytest.approx(
        1 - 0.05**0.2
    )
    assert choose(few[:, None] + 0.01, [0], [1.0], 0.95, 1.0).index is None
    many = np.tile(few, 3)
    assert choose(many[:, None], [0], [1.0], 0.95, 1.0).promise.method == APPROXIMATE
    uneven = np.array([0.9] * 13 + [30.0])
    assert spared(14, 0.95) == 0 and spared(19, 0.95) == 1
    assert choose(uneven[:, None], [0], [1.0], 0.95, 1.0, "share").index is None
    even = np.array([0.1] * 18 + [1.2])
    assert choose(even[:, None], [0], [1.0], 0.95, 1.0, "share").promise.tail.lost == 1
    uneven = np.array([0.1] * 18 + [30.0])
    assert choose(uneven[:, None], [0], [1.0], 0.95, 1.0, "share").index is None, "the mean is over"


CALM, WILD = np.full(10, 0.2), np.linspace(0, 30, 10)


def test_a_setting_after_one_that_fails_is_not_chosen():
    x = np.stack([CALM, WILD, CALM], 1)
    assert choose(x, [0, 1, 2], [3, 2, 1], 0.9, 1.0).index == 0
    assert choose(x, [0, 2, 1], [3, 2, 1], 0.9, 1.0).index == 2
    assert choose(x, [1, 0, 2], [3, 2, 1], 0.9, 1.0).index is None


def test_the_cheapest_that_holds_is_chosen():
    x = np.stack([CALM, CALM, CALM], 1)
    assert choose(x, [0, 1, 2], [3, 1, 2], 0.9, 1.0).index == 1
    assert choose(x, [0, 1, 2], [1, 3, 2], 0.9, 1.0).index == 0


def test_the_level_that_was_tested_is_promised_and_not_the_bound_that_selected():
    x = np.stack([CALM, CALM, WILD], 1)
    found = choose(x, [0, 1, 2], [3, 1, 2], 0.9, 1.0, "approximate")
    assert found.index == 1 and found.bounds[1].upper < 1.0
    assert found.promise == replace(found.bounds[1], upper=1.0)


def test_one_setting_that_was_tested_against_nothing_states_its_own_bound():
    found = choose(WILD[:, None], [0], [1], 0.9, float("inf"), "approximate")
    assert found.promise == approximate_bound(WILD, 0.9)
    beside = bound(WILD, 0.9, float("inf"))
    assert beside == replace(found.promise, tail=tail_bound(WILD, 0.9)), "so few certify nothing"
    many = np.tile(WILD, 23)
    assert (
        bound(many, 0.9, float("inf")) == certain_bound(many, 0.9) != approximate_bound(many, 0.9)
    )


def test_the_bound_of_what_was_selected_covers_too_seldom_and_the_level_does_not():
    """Settings of one true mean, of which the cheapest that looks good is taken: its own bound is too small."""
    rng = np.random.default_rng(0)
    true, own, level = 1.0, [], []
    for _ in range(150):
        x = rng.normal(true, 1.5, (12, 5))
        best = int(np.argmin([approximate_bound(column, 0.9).upper for column in x.T]))
        own.append(approximate_bound(x[:, best], 0.9).upper >= true)
        found = choose(x, range(5), range(5), 0.9, 0.99 * true)
        level.append(
            found.index is None
        )  # every setting loses more than the level: choosing any is an error
    assert np.mean(own) < 0.8
    assert np.mean(level) >= 0.85


def test_a_kind_of_bound_can_be_asked_for():
    assert bound(np.zeros(20), 0.9, 1.0, "certain").method == "Hoeffding-Bentkus"
    assert bound(np.zeros(200), 0.9, 5.0, "approximate").method == APPROXIMATE


@pytest.mark.parametrize("rule", [certain_bound, approximate_bound])
def test_one_video_gives_no_bound_and_says_why(rule):
    with pytest.raises(InputError, match="1 video given; no bound .* fewer than 2; record more"):
        rule(np.array([0.3]), 0.9)


def test_losses_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="losses of 1 of 3 videos are not numbers"):
        certain_bound(np.array([0.1, np.nan, 0.2]), 0.9)
