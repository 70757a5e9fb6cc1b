"""What so many clips can promise: said before anything runs, and refused where it can't be what is asked."""

from __future__ import annotations

import re

import numpy as np
import pytest

from probes.errors import InputError
from sparsity.calibration.bounds import certain_bound
from sparsity.calibration.clips import ClipSource
from sparsity.calibration.promise import choose
from sparsity.calibration.reach import certifiable, check_reach
from sparsity.calibration.request import Request
from sparsity.calibration.search import Candidate
from sparsity.calibration.telling import limits
from sparsity.calibration.watching import afford
from sparsity.options import ModelChoice
from sparsity.profiles import BUILTIN

NAMES = tuple("abcdef")

ALIKE = dict.fromkeys(NAMES, 10)
"""Lengths of clips."""


def asked(source=None, **more):
    return Request(source or ClipSource(), NAMES, ModelChoice(), **more)


def measured(folder):
    """Make a source whose clip a was tracked in a second."""
    (folder / "a.mp4").touch()
    (folder / "a.png").touch()
    source = ClipSource(folder, folder)
    (folder / f"seconds.a.{source.listing('a')[:12]}.json").write_text("1.0")
    return source


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
    assert "4.8 points in expectation" in said(20, bound="expectation")
    assert "takes 1 clips" in said(20, max_drop=100.0, bound="approximate")


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


@pytest.mark.parametrize(
    ("bound", "max_drop", "fewest"),
    [
        ("certain", 1.0, 299),
        ("certain", 40.0, 6),
        ("expectation", 1.0, 99),
        ("expectation", 0.3, 333),
    ],
)
def test_a_bound_that_no_loss_at_all_would_meet_is_refused(bound, max_drop, fewest):
    wanted = asked(bound=bound, max_drop=max_drop)
    check_reach(wanted, fewest)
    assert choose(np.zeros((fewest, 1)), [0], [1], 0.95, max_drop, bound).index == 0
    with pytest.raises(
        InputError, match=f"expected {fewest} or more; .* --bound approximate"
    ) as caught:
        check_reach(wanted, fewest - 1)
    assert f"bound {bound} and max-drop {max_drop:g} given" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert choose(np.zeros((fewest - 1, 1)), [0], [1], 0.95, max_drop, bound).index is None


def test_bounds_that_something_may_meet_are_not_refused():
    check_reach(asked(bound="approximate"), 3)
    check_reach(asked(), 3)
    check_reach(asked(bound="certain", target_speedup=1.2), 3)


@pytest.mark.parametrize("budget", [None, 1000.0])
def test_one_setting_is_tested_where_a_speedup_is_asked_for(budget, tmp_path):
    clips = measured(tmp_path)
    parts = ["a", "b"], list("cdef"), ALIKE
    tried, tested = afford(asked(clips, budget=budget), *parts, tmp_path)
    assert tried > tested > 1
    fast = asked(clips, budget=budget, target_speedup=1.2)
    assert afford(fast, *parts, tmp_path) == (tried, 1)


@pytest.mark.parametrize(("name", "searched"), [("b", True), ("c", False)])
def test_a_long_clip_takes_more_of_a_budget(name, searched, tmp_path):
    clips = measured(tmp_path)  # in a second

    def allowed(budget, lengths):
        return afford(asked(clips, budget=budget), ["a", "b"], ["c", "d", "e"], lengths, tmp_path)

    tried, tested = 4, 2
    whole = 2 * (2 + 1 + tried) + 3 * (
        1 + tested
    )  # each of the search is tracked twice for the drift
    assert allowed(whole, ALIKE) == (tried, tested) != allowed(whole - 1, ALIKE)
    lengths = ALIKE | {name: 7 * ALIKE[name]}
    more = 6 * (2 + 1 + tried if searched else 1 + tested)
    assert allowed(whole, lengths) != allowed(whole + more, lengths) == (tried, tested)


def test_a_clip_that_was_changed_is_measured_anew(tmp_path):
    clips = measured(tmp_path)
    wanted = asked(clips, budget=1000.0)
    assert afford(wanted, ["a"], ["b"], ALIKE, tmp_path)
    (clips.videos / "a.mp4").write_bytes(b"another")
    with pytest.raises(InputError, match=r"a\.mp4"):  # it would be tracked, and is no video
        afford(wanted, ["a"], ["b"], ALIKE, tmp_path)


@pytest.mark.parametrize(("bound", "named"), [("certain", True), ("approximate", False)])
def test_where_a_certain_bound_fails_the_approximate_one_is_named(bound, named):
    wanted = asked(bound=bound, max_drop=50.0)
    tested = [Candidate(BUILTIN["paper"], 0.5, 0.5, 0.5, 1.0)]
    wild = np.array([[0.0], [100.0], [80.0], [0.0], [0.0], [90.0]])
    failed = choose(wild, [0], [1.0], 0.95, wanted.level, bound)
    said = " ".join(limits(wanted, failed, tested))
    assert "no setting holds" in said and ("--bound approximate" in said) is named
    holds = choose(np.zeros((6, 1)), [0], [1.0], 0.95, wanted.level, bound)
    assert limits(wanted, holds, tested)[0].startswith("limit    none")
