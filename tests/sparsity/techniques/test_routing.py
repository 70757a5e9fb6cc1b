"""The routing decision: which windows or cells, and why a frame is dense."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity.techniques.routing import (
    NOISE_FLOOR,
    Decision,
    FrameCues,
    Guard,
    ObjectCues,
    Refresh,
    Routing,
    RoutingMemory,
    computed_parts,
    cue_row,
    cues_on_host,
    decide,
    left_out_windows,
    parts_of,
    refreshed,
)
from sparsity.techniques.select import WindowGrid, smallest_set

GRID = WindowGrid(16, 4)

CELLS = Routing(unit="cell")

SOME = torch.arange(GRID.count) < 4
"""Windows that are computed."""


def cue(
    touched: tuple[int, ...] = (5,),
    heaviest: int = 10,
    score: float = 9.0,
    jump: float = 0.0,
    parts: int = GRID.count,
) -> ObjectCues:
    """An object whose mask touches some windows or cells and whose saliency lies in one window."""
    hit = torch.zeros(parts, dtype=torch.bool)
    hit[list(touched)] = True
    mass = torch.full((GRID.count,), 0.2 / (GRID.count - 1))
    mass[heaviest] = 0.8
    return ObjectCues(hit, mass, score, jump)


def frame(*cues: ObjectCues | None, change: float = 0.0, since: int = 1) -> FrameCues:
    return FrameCues(dict(enumerate(cues)), change, since)


def decided(
    cues: FrameCues, routing: Routing | None = None, guard: Guard | None = None
) -> Decision:
    return decide(cues, routing or Routing(), guard or Guard(), GRID)


def windows(found: Decision) -> tuple[int, ...]:
    """The windows of a decision, which are computed whole."""
    assert found.cells is not None
    of = GRID.windows_of(found.cells)
    assert len(found.cells) == GRID.cells_within(of)
    return of


def test_masks_alone_choose_while_scores_are_high() -> None:
    found = decided(frame(cue((5,)), cue((6, 9))))
    assert (windows(found), found.reason) == ((5, 6, 9), "routed")


def test_a_low_score_of_any_object_adds_the_saliency_of_all() -> None:
    found = decided(frame(cue((5,), 10), cue((6,), 12, score=4.9)))
    assert (windows(found), found.reason) == ((5, 6, 10, 12), "saliency added")
    assert windows(decided(frame(cue((5,), 10), cue((6,), 12, score=5.0)))) == (5, 6)


def test_an_empty_mask_falls_back_on_saliency() -> None:
    assert windows(decided(frame(cue((), 3)))) == (3,)


@given(share=st.floats(0.05, 1.0))
def test_a_larger_share_keeps_no_fewer_windows(share: float) -> None:
    cues, guard = frame(cue((1,), score=0.0)), Guard(kept_share=1.0)
    fewer = decided(cues, Routing(saliency_mass=share / 2), guard)
    more = decided(cues, Routing(saliency_mass=share), guard)
    assert set(windows(fewer)) <= set(windows(more))


def drawn(data: st.DataObject, grid: WindowGrid, low: bool) -> list[ObjectCues]:
    """Cues of one to three objects whose masks touch some cells."""
    found = []
    for _ in range(data.draw(st.integers(1, 3))):
        touched = torch.zeros(grid.cells.count, dtype=torch.bool)
        touched[list(data.draw(st.sets(st.integers(0, grid.cells.count - 1), max_size=9)))] = True
        weights = data.draw(st.lists(st.integers(0, 9), min_size=grid.count, max_size=grid.count))
        mass = torch.tensor(weights, dtype=torch.float32) + 0.01
        found.append(ObjectCues(touched, mass / mass.sum(), 1.0 if low else 9.0))
    return found


@settings(deadline=None)
@given(
    st.data(),
    st.sampled_from([WindowGrid(16, 4), WindowGrid(16, 14), WindowGrid(24, 6)]),
    st.booleans(),
)
def test_cells_that_masks_touch_and_whole_windows_that_saliency_added(
    data: st.DataObject, grid: WindowGrid, low: bool
) -> None:
    cues = drawn(data, grid, low)
    found = decide(frame(*cues), CELLS, Guard(kept_share=1.0), grid)
    touched = {i for one in cues for i in torch.nonzero(one.touched)[:, 0].tolist()}
    of = grid.window_of_cell.tolist()
    near = {of[cell] for cell in touched}
    added = set[int]()
    if low or not touched:
        for one in cues:
            added |= set(torch.nonzero(smallest_set(one.mass, 0.7))[:, 0].tolist())
    whole = {cell for cell, window in enumerate(of) if window in added - near}
    assert found.cells == tuple(sorted(touched | whole))
    assert found.reason == ("saliency added" if low or not touched else "routed")
    assert set(grid.windows_of(found.cells)) == near | added


@settings(deadline=None)
@given(st.data(), st.booleans())
def test_by_windows_those_that_cells_lie_in_are_computed_whole(
    data: st.DataObject, low: bool
) -> None:
    """One unit is the other's, whole: the same masks and saliency choose the same windows."""
    cues, guard = drawn(data, GRID, low), Guard(kept_share=1.0)
    by_window = []
    for one in cues:
        touched = torch.zeros(GRID.count, dtype=torch.bool)
        touched[GRID.window_of_cell[one.touched]] = True
        by_window.append(ObjectCues(touched, one.mass, one.score))
    cells, whole = decided(frame(*cues), CELLS, guard), decided(frame(*by_window), None, guard)
    assert cells.reason == whole.reason
    assert windows(whole) == GRID.windows_of(cells.cells)
    assert set(cells.cells) <= set(whole.cells)


@pytest.mark.parametrize(
    ("cues", "guard", "reason"),
    [
        (frame(cue(), None), Guard(), "no adjacent result"),
        (frame(), Guard(), "no adjacent result"),
        (frame(cue(), since=5), Guard(refresh_every=5), "refresh"),
        (frame(cue(), change=0.31), Guard(scene_cut=0.3), "scene cut"),
        (frame(cue(), cue(jump=0.6)), Guard(mask_jump=0.5), "mask jump"),
        (frame(cue(score=1.0)), Guard(score_below=2.0), "low score"),
        (frame(cue(())), Guard(score_below=-100.0), "empty mask"),
        (frame(cue(tuple(range(15)))), Guard(kept_share=0.9), "most windows kept"),
    ],
)
def test_the_guard_says_why_a_frame_is_dense(cues: FrameCues, guard: Guard, reason: str) -> None:
    found = decided(cues, guard=guard)
    assert (found.cells, found.reason) == (None, reason)
    assert found.rescued == (reason in ("scene cut", "mask jump", "low score", "empty mask"))


@pytest.mark.parametrize(
    ("cues", "guard"),
    [
        (frame(cue(), since=4), Guard(refresh_every=5)),
        (frame(cue(), change=0.3), Guard(scene_cut=0.3)),
        (frame(cue(jump=0.5)), Guard(mask_jump=0.5)),
        (frame(cue(score=2.0)), Guard(score_below=2.0)),
        (frame(cue(tuple(range(14)))), Guard(kept_share=0.9)),
        (frame(cue(), change=1.0, since=1000), Guard()),
    ],
)
def test_at_the_threshold_a_frame_is_routed(cues: FrameCues, guard: Guard) -> None:
    found = decided(cues, guard=guard)
    assert found.cells is not None and not found.rescued


def test_a_refresh_adds_whole_windows_that_changed_most() -> None:
    """By windows one in six of twelve left out; by cells the mean change of what was left out of each counts."""
    rule = Refresh(one_in=6)
    some = torch.zeros(GRID.count, dtype=torch.bool)
    some[[5, 6, 9, 10]] = True
    change = torch.zeros(GRID.count)
    change[[2, 5, 14]] = torch.tensor([0.3, 9.0, 0.2])
    given = Decision(GRID.cells_of(some), "routed")
    found = refreshed(given, change, Routing(refresh=rule), GRID)
    assert (windows(found), found.reason) == ((2, 5, 6, 9, 10, 14), "routed")

    routing = Routing(unit="cell", refresh=Refresh(one_in=16))
    of = GRID.window_of_cell
    first = Decision((int(torch.nonzero(of == 5)[0]),), "routed")
    change = torch.zeros(GRID.cells.count)
    change[torch.nonzero(of == 5)[1:]] = 0.25  # of three that are left out of window 5
    change[of == 2] = 0.2
    computed = computed_parts(first.cells, "cell", GRID)
    assert left_out_windows(computed, routing, GRID) == 15.75  # one in sixteen of which is one
    assert windows(refreshed(first, change, routing, GRID)) == (5,)
    change[of == 2] = 0.3
    assert GRID.windows_of(refreshed(first, change, routing, GRID).cells) == (2, 5)


def test_windows_that_did_not_change_take_turns() -> None:
    """Behind one that changed; and none is refreshed where nothing changed, computed windows included."""
    routing, change = Routing(refresh=Refresh(one_in=6)), torch.full((GRID.count,), 0.1)
    given = Decision(GRID.cells_of(SOME), "routed")
    assert refreshed(given, change, routing, GRID, 0.1) == given
    change[0], turns = 0.2, set[int]()  # computed, and it moves
    for frame in range(6):
        added = set(windows(refreshed(given, change, routing, GRID, 0.1, frame))) - {0, 1, 2, 3}
        assert len(added) == 2 and not added & turns
        turns |= added
    assert turns == set(range(4, 16))
    change[9] = 0.3
    assert all(9 in windows(refreshed(given, change, routing, GRID, 0.1, t)) for t in range(6))


@pytest.mark.parametrize("unit", ["window", "cell"])
@settings(deadline=None, max_examples=10)
@given(sigma=st.floats(0.01, 0.1), seed=st.integers(0, 99))
def test_the_floor_lies_above_noise_and_below_motion(unit: str, sigma: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    still, memory = torch.rand(3, 256, 256, generator=generator), RoutingMemory()
    routing, first = Routing(unit=unit, refresh=Refresh(one_in=6)), None
    for frame in range(4):
        image = still + sigma * torch.randn(still.shape, generator=generator)
        if first is None:
            first = memory.pictures_of(frame, image, routing, GRID)
            continue
        change = memory.changes(first, frame - 1, frame, image, routing, GRID)
        assert float(change.max()) <= memory.noise_floor <= NOISE_FLOOR[1]
    image[:, :64, :64] = 1.0  # window 0
    moved = memory.changes(first, 3, 4, image, routing, GRID) > memory.noise_floor
    hit = moved if unit == "window" else moved[GRID.window_of_cell == 0]
    assert bool(hit[0]) and int(moved.sum()) == (1 if unit == "window" else 4)


def test_what_all_windows_left_out_changed_is_noise() -> None:
    """As after a key frame, which they stay behind; what changed by more than they moves, unless all of it is much."""
    routing, given = Routing(refresh=Refresh(one_in=12)), Decision(GRID.cells_of(SOME), "routed")
    lowest, highest = NOISE_FLOOR
    change = torch.where(SOME, 0.1, 1.5) * lowest
    assert refreshed(given, change, routing, GRID, lowest) == given
    change[9] = 5 * lowest
    assert set(windows(refreshed(given, change, routing, GRID, lowest))) - {0, 1, 2, 3} == {9}
    change = torch.where(SOME, 0.1, 1.1) * highest
    assert len(windows(refreshed(given, change, routing, GRID, lowest))) == 5


def test_a_frame_that_repeats_the_last_one_says_nothing_of_noise() -> None:
    memory, routing = RoutingMemory(), Routing(refresh=Refresh(one_in=6))
    images = torch.rand(3, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    first = memory.pictures_of(0, images[0], routing, GRID)
    memory.changes(first, 0, 1, images[0], routing, GRID)
    assert (list(memory.noise), memory.noise_floor) == ([], NOISE_FLOOR[0])
    memory.changes(first, 5, 6, images[1], routing, GRID)  # not of the adjacent frame
    assert list(memory.noise) == []
    memory.changes(first, 6, 7, images[2], routing, GRID)
    assert len(memory.noise) == 1 and memory.noise_floor > NOISE_FLOOR[0]


def test_parts_of_cells_are_their_windows_or_themselves() -> None:
    cells = GRID.cells_of(torch.arange(GRID.count) == 5)[:3]
    assert torch.nonzero(computed_parts(cells, "window", GRID)).flatten().tolist() == [5]
    assert torch.nonzero(computed_parts(cells, "cell", GRID)).flatten().tolist() == list(cells)


@pytest.mark.parametrize("unit", ["window", "cell"])
def test_cues_of_a_result(unit: str) -> None:
    candidates = torch.full((3, 64, 64), -1.0)
    candidates[0, 20, 20] = candidates[2, 40, 40] = 1.0
    saliency = torch.zeros(16, 16)
    saliency[15, 15] = 1.0
    before = torch.full((64, 64), -1.0)
    rule = Routing.model_validate({"unit": unit, "margin_px": 0})
    row = cue_row(candidates, candidates[2], before, saliency, 3.0, GRID, rule)
    found = cues_on_host(row[None], GRID)[0]
    both = {"window": [5, 10], "cell": [2 * 8 + 2, 5 * 8 + 5]}[unit]
    assert found.touched.nonzero().flatten().tolist() == both
    assert len(found.touched) == parts_of(unit, GRID).count
    assert float(found.mass[15]) == 1.0 and (found.score, found.jump) == (3.0, 1.0)
    rule = rule.model_copy(update={"candidates": "best"})
    row = cue_row(candidates, candidates[2], None, None, 3.0, GRID, rule)
    best = cues_on_host(row[None], GRID)[0]
    assert best.touched.nonzero().flatten().tolist() == both[1:]
    assert best.mass is None and best.jump == 0.0
