"""The routing decision: which windows, and why a frame is dense."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsity.profile import Guard, Windows
from sparsity.routing import FrameCues, ObjectCues, cue_row, cues_on_host, decide
from sparsity.select import WindowGrid

GRID = WindowGrid(16, 4)


def cue(
    touched: tuple[int, ...] = (5,), heaviest: int = 10, score: float = 9.0, jump: float = 0.0
) -> ObjectCues:
    """An object whose mask touches some windows and whose saliency lies in one window."""
    hit = torch.zeros(GRID.count, dtype=torch.bool)
    hit[list(touched)] = True
    mass = torch.full((GRID.count,), 0.2 / (GRID.count - 1))
    mass[heaviest] = 0.8
    return ObjectCues(hit, mass, score, jump)


def frame(*cues: ObjectCues | None, change: float = 0.0, since: int = 1) -> FrameCues:
    return FrameCues(dict(enumerate(cues)), change, since)


def test_masks_alone_choose_while_scores_are_high() -> None:
    found = decide(frame(cue((5,)), cue((6, 9))), Windows(), Guard())
    assert (found.windows, found.reason) == ((5, 6, 9), "routed")


def test_a_low_score_of_any_object_adds_the_saliency_of_all() -> None:
    found = decide(frame(cue((5,), 10), cue((6,), 12, score=4.9)), Windows(), Guard())
    assert (found.windows, found.reason) == ((5, 6, 10, 12), "saliency added")
    assert decide(frame(cue((5,), 10), cue((6,), 12, score=5.0)), Windows(), Guard()).windows == (
        5,
        6,
    )


def test_an_empty_mask_falls_back_on_saliency() -> None:
    assert decide(frame(cue((), 3)), Windows(), Guard()).windows == (3,)


@given(share=st.floats(0.05, 1.0))
def test_a_larger_share_keeps_no_fewer_windows(share: float) -> None:
    cues = frame(cue((1,), score=0.0))
    fewer = decide(cues, Windows(saliency_mass=share / 2), Guard(kept_share=1.0))
    more = decide(cues, Windows(saliency_mass=share), Guard(kept_share=1.0))
    assert set(fewer.windows) <= set(more.windows)


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
    found = decide(cues, Windows(), guard)
    assert (found.windows, found.reason) == (None, reason)


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
    assert decide(cues, Windows(), guard).windows is not None


def test_cues_of_a_result() -> None:
    candidates = torch.full((3, 64, 64), -1.0)
    candidates[0, 20, 20] = candidates[2, 40, 40] = 1.0
    saliency = torch.zeros(16, 16)
    saliency[15, 15] = 1.0
    before = torch.full((64, 64), -1.0)
    row = cue_row(candidates, candidates[2], before, saliency, 3.0, GRID, Windows(margin_px=0))
    found = cues_on_host(row[None], GRID)[0]
    assert found.touched.nonzero().flatten().tolist() == [5, 10]
    assert float(found.mass[15]) == 1.0 and (found.score, found.jump) == (3.0, 1.0)
    row = cue_row(
        candidates, candidates[2], None, None, 3.0, GRID, Windows(margin_px=0, candidates="best")
    )
    best = cues_on_host(row[None], GRID)[0]
    assert best.touched.nonzero().flatten().tolist() == [10]
    assert best.mass is None and best.jump == 0.0
