"""What so many clips can promise: said before anything runs, and refused where it can't be what is asked."""

from __future__ import annotations

import re

import numpy as np
import pytest

from probes.errors import InputError
from sparsity.calibration.bounds import certain_bound, choose
from sparsity.calibration.calibrate import Workplace, afford
from sparsity.calibration.report import certifiable, check_reach, limits
from sparsity.calibration.request import Request
from sparsity.calibration.rounds import rounds_of
from sparsity.calibration.search import Candidate
from sparsity.clips.sources import ClipSource
from sparsity.profile import BUILTIN, EXACT, Promise
from sparsity.work.spread import Spread
from sparsity.work.store import keep
from tests.sparsity.calibration.conftest import SMALL

NAMES = tuple("abcdef")

ALIKE = dict.fromkeys(NAMES, 10)
"""Lengths of clips."""


def asked(source=None, **more):
    return Request(source or ClipSource(), NAMES, SMALL, **more)


def measured(folder, **more):
    """Make a workplace where clip a was tracked in a second."""
    (folder / "a.mp4").touch()
    (folder / "a.png").touch()
    place = Workplace(asked(ClipSource(folder, folder), **more), folder, Spread(), {})
    keep(folder / "seconds.a.json", place.key_of("a"), 1.0)
    return place


def test_what_so_many_clips_can_promise_is_said_before_anything_runs():
    def said(count, **more):
        return certifiable(asked(**more), count)

    few = said(20)
    assert "20 clips for the promise can certify a mean loss of 13.9 points at 95% at best" in few
    assert "takes 299 clips" in few and "from 748 clips on" in few and "approximate" in few
    assert "whatever the videos are" in said(20, max_drop=40.0)
    assert "approximate" in said(20, max_drop=14.0) and "approximate" in said(299)
    assert "whatever the videos are" in said(748) and "approximate" in said(747)
    assert "approximate" in said(748, bound="approximate")
    assert "from" not in said(748, bound="approximate")
    assert "whatever" in said(299, bound="certain")
    assert "takes 1 clips" in said(20, max_drop=100.0, bound="approximate")


@pytest.mark.parametrize(
    ("confidence", "said"), [(0.95, "95%"), (0.999, "99.9%"), (0.99999, "99.999%")]
)
def test_a_confidence_is_never_said_to_be_all(confidence, said):
    told = certifiable(asked(confidence=confidence), 20)
    assert told.count(f"at {said}") == 2 and "100%" not in told
    promise = Promise(
        mean_loss=0, upper_bound=9, confidence=confidence, method=EXACT, clips=20, share=0.4, over=1
    )
    assert promise.text().startswith(f"at {said}, at most 40%")


def test_a_later_question_is_said_to_be_one():
    first, third = (certifiable(asked(), 20, question) for question in (1, 3))
    assert "question" not in first and third.startswith("question 3 of these clips: 20 clips")
    assert "at 95%, at most 45%" not in third and "at 95%, at most" in third


def test_without_an_accepted_loss_a_bound_is_certain_from_many_clips_on():
    def said(count):
        return certifiable(asked(target_speedup=1.2), count)

    lossless = certain_bound(np.zeros(299), 0.95).upper
    assert f"a mean loss of {lossless:.1f} points at 95% at best, whatever" in said(299)
    assert "approximate" in said(298) and "takes" not in said(298)
    assert "from 299 clips on" in said(298)


@pytest.mark.parametrize(("count", "max_drop"), [(20, 40.0), (748, 1.0), (299, 1.0)])
def test_the_mean_loss_that_a_certain_bound_carries_is_said_and_is_what_it_carries(count, max_drop):
    text = certifiable(asked(max_drop=max_drop, bound="certain"), count)
    carried = float(re.search(r"lose ([\d.]+) points", text)[1])
    alike = np.full(count, carried)
    assert certain_bound(alike, 0.95, max_drop).upper <= max_drop
    assert certain_bound(alike + 0.05 * max_drop, 0.95, max_drop).upper > max_drop


@pytest.mark.parametrize(("max_drop", "fewest"), [(1.0, 299), (40.0, 6)])
def test_a_bound_that_no_loss_at_all_would_meet_is_refused(max_drop, fewest):
    wanted = asked(bound="certain", max_drop=max_drop)
    check_reach(wanted, fewest)
    assert choose(np.zeros((fewest, 1)), [0], [1], 0.95, max_drop, "certain").index == 0
    with pytest.raises(InputError, match=f"expected {fewest} or more; .* --bound share") as caught:
        check_reach(wanted, fewest - 1)
    assert f"bound certain and max-drop {max_drop:g} given" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert choose(np.zeros((fewest - 1, 1)), [0], [1], 0.95, max_drop, "certain").index is None


def test_bounds_that_something_may_meet_are_not_refused():
    check_reach(asked(bound="approximate"), 3)
    check_reach(asked(), 3)
    check_reach(asked(bound="certain", target_speedup=1.2), 3)


@pytest.mark.parametrize("budget", [None, 1000.0])
def test_one_setting_is_tested_where_a_speedup_is_asked_for(budget, tmp_path):
    parts = ["a", "b"], list("cdef"), ALIKE
    tried, tested = afford(measured(tmp_path, budget=budget), *parts)
    assert tried > tested > 1
    fast = measured(tmp_path, budget=budget, target_speedup=1.2)
    assert afford(fast, *parts) == (tried, 1)


@pytest.mark.parametrize(("name", "searched"), [("b", True), ("c", False)])
def test_a_long_clip_takes_more_of_a_budget(name, searched, tmp_path):
    def allowed(budget, lengths):
        return afford(measured(tmp_path, budget=budget), ["a", "b"], ["c", "d", "e"], lengths)

    tried, tested = 4, 2
    # each of the search is tracked once whole, four times for the drift of three bases, and once whole a round
    whole = 2 * (5 + rounds_of(tried) + tried) + 3 * (1 + tested)
    assert allowed(whole, ALIKE) == (tried, tested) != allowed(whole - 1, ALIKE)
    lengths = ALIKE | {name: 7 * ALIKE[name]}
    more = 6 * (5 + rounds_of(tried) + tried if searched else 1 + tested)
    assert allowed(whole, lengths) != allowed(whole + more, lengths) == (tried, tested)


def test_a_clip_that_was_changed_is_measured_anew(tmp_path):
    place = measured(tmp_path, budget=1000.0)
    assert afford(place, ["a"], ["b"], ALIKE)
    (tmp_path / "a.mp4").write_bytes(b"another")
    with pytest.raises(InputError, match=r"a\.mp4"):  # it would be tracked, and is no video
        afford(place, ["a"], ["b"], ALIKE)


@pytest.mark.parametrize(
    ("bound", "named"), [("certain", "share"), ("share", "approximate"), ("approximate", None)]
)
def test_where_a_bound_fails_the_one_that_asks_for_less_is_named(bound, named):
    wanted = asked(bound=bound, max_drop=50.0)
    tested = [Candidate(BUILTIN["paper"], 0.5, 0.5, 0.5, 1.0)]
    wild = np.array([[0.0], [100.0], [80.0], [0.0], [0.0], [90.0]] * 2)
    failed = choose(wild, [0], [1.0], 0.95, wanted.level, bound)
    said = " ".join(limits(wanted, failed, tested))
    assert "no setting holds" in said
    assert re.findall(r"--bound (\w+)", said) == [named] * (named is not None)
    assert ("6 of 12 clips lose more than 50" in said) is (bound == "share")
    holds = choose(np.zeros((6, 1)), [0], [1.0], 0.95, wanted.level, bound)
    assert limits(wanted, holds, tested, 1.5) == [limits(wanted, holds, tested, 1.04)[0]]
    assert limits(wanted, holds, tested)[0].startswith("limit    none")
    assert "1.04x is not worth having" in limits(wanted, holds, tested, 1.04)[1]


def test_a_budget_that_allows_nothing_is_said_at_once(tmp_path, capsys):
    """A clip a second: the search tracks two clips seven times, the promise three clips twice."""
    parts = ["a", "b"], ["c", "d", "e"], ALIKE
    assert afford(measured(tmp_path, budget=19.0), *parts) == (1, 1)
    assert "too short: one setting alone takes some 20 s" in capsys.readouterr().err
    assert afford(measured(tmp_path, budget=20.0), *parts) == (1, 1)
    assert "allows 1 settings" in capsys.readouterr().err


def test_what_few_clips_state_exactly_is_said_before_anything_runs():
    few = certifiable(asked(), 5)
    assert "at 95%, at most 45% lose more than 1 points, which is exact" in few
    assert "asks that none of these do" in few and "too few for a bound on their mean" in few
    many = certifiable(asked(), 19)
    assert "at most 23% lose" in many and "asks that 1 of these do at most" in many
    assert "approximate" in many and "in simulation it covered" in many
