"""The rules of memory policies: what is kept from frame to frame."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sam2.utils.amg import calculate_stability_score

from sparsity.techniques import KEY
from sparsity.techniques.memory_policy import (
    NAME,
    Mark,
    MemoryPolicy,
    Motion,
    Remembered,
    box_iou,
    mark_on_host,
    mark_rows,
    remembered,
    stability,
    worth,
)

MOST = 4
HERE = (0.5, 0.5, 0.2, 0.2)
AWAY = (0.1, 0.1, 0.1, 0.1)
GOOD, GONE, UNSURE = Mark(5.0, 0.9, HERE), Mark(-5.0, 0.9, None), Mark(5.0, 0.1, HERE)
JUMPED, NEAR_ANOTHER = Mark(5.0, 0.9, AWAY), Mark(5.0, 0.9, HERE, alone=0.4)


def kept(kind: str, marks: list[Mark | None], stride: int = 1, **settings: Any) -> list[Remembered]:
    """What is kept after each frame."""
    state = Remembered(MemoryPolicy(kind=kind, **settings), reverse=False)
    found = []
    for frame, mark in enumerate(marks):
        state = state.after(frame, mark, MOST, stride)
        found.append(state)
    return found


def test_quality_keeps_the_newest_good_frames() -> None:
    for bad in (GONE, UNSURE):
        states = kept("quality", [GOOD] * 6 + [bad] * 5)
        assert states[5].frames == (2, 3, 4, 5)
        assert states[-1].frames == (3, 4, 5, 10), "the newest is there, the other bad ones are not"
    assert kept("quality", [GOOD] * 11)[-1].frames == (7, 8, 9, 10)


def test_motion_tells_a_frame_on_which_the_mask_jumped() -> None:
    states = kept("quality", [GOOD] * 6 + [JUMPED] * 2)
    assert [one.good for one in states[6].kept] == [True, True, True, False]
    assert states[7].frames == (3, 4, 5, 7), "it stayed there, so it is taken for the object"


def test_anchors_stay_and_make_room_for_newer_ones() -> None:
    marks = [GOOD, NEAR_ANOTHER, *[GOOD] * 9, NEAR_ANOTHER, *[GOOD] * 4]
    states = kept("distractor", marks, recent=2)
    assert states[10].frames == (1, 8, 9, 10)
    assert states[-1].frames == (1, 11, 14, 15)
    assert kept("distractor", [GOOD] * 11, recent=2)[-1].frames == (7, 8, 9, 10)
    close = kept("distractor", [NEAR_ANOTHER] * 4 + [GOOD] * 6, recent=2)[-1]
    assert close.frames == (0, 7, 8, 9), "anchors lie apart"


def test_spread_keeps_what_looks_unlike() -> None:
    looks = [0.0, 0.01, 1.0, 1.01, 0.5, 0.51, 0.02, 0.03]  # angles
    state = Remembered(MemoryPolicy(kind="spread", recent=1), reverse=False)
    for frame, look in enumerate(looks):
        alike = tuple(math.cos(look - looks[t]) for t in state.frames)
        state = state.after(frame, Mark(5.0, 0.9, HERE, alike=alike), MOST, 1)
    assert state.frames[-1] == 7
    assert {round(looks[t], 1) for t in state.frames} == {0.0, 0.5, 1.0}


@given(
    st.sampled_from(["quality", "distractor", "spread"]),
    st.lists(st.sampled_from([GOOD, GONE, UNSURE, JUMPED, NEAR_ANOTHER, None]), max_size=30),
    st.integers(1, 6),
    st.integers(1, 3),
)
def test_memory_is_full_and_has_the_newest_frame(
    kind: str, marks: list[Mark | None], recent: int, stride: int
) -> None:
    for frame, state in enumerate(kept(kind, marks, stride, recent=recent)):
        assert state.frames[-1] == frame and list(state.frames) == sorted(set(state.frames))
        assert len(state.frames) == min(MOST, 1 + -(-frame // stride)), "as many as there are"
        assert all(t % stride == 0 for t in state.frames[:-1])


def test_results_without_notes_are_taken_as_they_come() -> None:
    policy = MemoryPolicy(kind="quality")
    results: dict[str, dict[int, Any]] = {
        "cond_frame_outputs": {0: {}},
        "non_cond_frame_outputs": {t: {} for t in range(1, 9)},
    }
    found = remembered(results, 9, False, policy, MOST, 1)
    assert found.frames == (5, 6, 7, 8)
    known = Remembered(policy, False).after(2, GOOD, MOST, 1)
    results["non_cond_frame_outputs"][6] = {KEY: {NAME: known}}
    assert remembered(results, 9, False, policy, MOST, 1).frames == (2, 7, 8)
    for other in (MemoryPolicy(kind="spread"), policy.model_copy(update={"iou_above": 0.7})):
        assert remembered(results, 9, False, other, MOST, 1).frames == (5, 6, 7, 8)
    assert remembered(results, 3, True, policy, MOST, 1).frames == (7, 6, 5, 4)


def test_constant_velocity() -> None:
    motion = Motion(HERE)
    for step in range(1, 12):
        found = (0.5 + 0.02 * step, 0.5, 0.2, 0.2)
        motion = motion.follow(found)
    assert motion.next == pytest.approx((0.74, 0.5, 0.2, 0.2), abs=2e-3)
    assert motion.follow(None).next[0] == pytest.approx(motion.next[0] + 0.02, abs=2e-3)
    assert motion.follow(AWAY) == Motion(AWAY)


@given(*(st.floats(0.05, 0.95) for _ in range(4)), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_overlap_of_boxes(x: float, y: float, u: float, v: float, w: float, h: float) -> None:
    a, b = (x, y, w, h), (u, v, h, w)
    assert box_iou(a, a) == pytest.approx(1) and box_iou(a, b) == pytest.approx(box_iou(b, a))
    assert 0 <= box_iou(a, b) <= 1.001 and box_iou(a, (x + 2, y, w, h)) == 0


def test_what_a_result_says() -> None:
    best = torch.full((2, 16, 16), -1.0)
    best[0, 4:8, 2:10] = 1
    far, stray = best[:1].clone(), best[:1].clone()
    far[0, 4:12, 8:16], stray[0, 15, 15] = 1, 1
    empty = best[1:].clone()
    pointers = torch.eye(2, 4)
    for other, alone in ((best[:1], 1.0), (stray, 1.0), (far, 12 / 78)):
        candidates = torch.stack([torch.cat([best[:1], other]), empty.expand(2, -1, -1)])
        stored = [[pointers[:1], pointers[1:]], []]
        rows = mark_rows(candidates, best, pointers, stored)
        there = mark_on_host(rows[0].tolist(), 3.0, 0.7)
        gone = mark_on_host(rows[1].tolist(), -1.0, 0.1)
        assert there.box == (6 / 16, 6 / 16, 8 / 16, 4 / 16)
        assert there.alone == pytest.approx(alone) and there.alike == (1.0, 0.0)
        assert (there.iou, there.score) == (pytest.approx(0.7), 3.0)
        assert gone == Mark(-1.0, 0.1, None) and gone.box is None


def test_stability_is_that_of_sam() -> None:
    logits = 2 * torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    logits[0, 0], logits[1, 1] = -5, 0
    expected = calculate_stability_score(logits, 0.0, 1.0).nan_to_num(1.0)
    assert torch.equal(stability(logits), expected)
    assert expected[0, 0] == 1 and expected[1, 1] == 0, (
        "no mask is stable, one that is all edge is not"
    )


def test_candidates_are_taken_by_stability_where_the_best_is_unstable() -> None:
    ious = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.8, 0.3]])
    logits = torch.full((2, 3, 4, 4), -5.0)
    for b, m, sure, unsure in (
        (0, 0, 1, 3),
        (0, 1, 3, 1),
        (0, 2, 2, 2),
        (1, 0, 4, 0),
        (1, 1, 3, 1),
    ):
        logits[b, m, 0, :sure], logits[b, m, 1, :unsure] = 5, 0
    chosen = worth(logits, ious, 0.7)
    assert torch.equal(chosen[0], torch.tensor([0.25, 0.75, 0.5])), "0.25 is unstable"
    assert torch.equal(chosen[1], ious[1]), "0.75 is stable enough"
    assert torch.equal(worth(logits, ious, 0.25), ious)
