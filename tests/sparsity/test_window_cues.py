"""Cues of windows say what they are called, and a router picks by them."""

from __future__ import annotations

import pytest
import torch

from sparsity.profile import Router
from sparsity.select import WindowGrid
from sparsity.window_cues import CUES, LOGIT_CUES, MASK_CUES, needed, token_logits, window_cues

GRID = WindowGrid(16, 4)


def square(row: int, column: int, size: int = 16) -> torch.Tensor:
    """A mask [64, 64] of one square; windows are 16 wide at low resolution."""
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[row : row + size, column : column + size] = True
    return mask


def cue(cues: torch.Tensor, name: str) -> list[float]:
    return cues[:, CUES.index(name)].tolist()


def test_cues_tell_share_distance_and_score() -> None:
    best = square(16, 16)
    cues = window_cues(best[None], best, None, None, 3.0, 0.25, GRID)
    assert cues.shape == (16, len(CUES)) and len(set(CUES)) == len(CUES)
    assert [i for i, v in enumerate(cue(cues, "mask_share")) if v] == [5]
    assert cue(cues, "mask_share")[5] == 1.0
    assert sum(cue(cues, "within_0px")) == 1 and sum(cue(cues, "within_8px")) == 9
    assert set(cue(cues, "score")) == {3.0} and set(cue(cues, "mask_jump")) == {0.25}
    assert cue(cues, "area")[0] == 1 / 16 and cue(cues, "step")[0] == 0
    known = cues[:, [CUES.index(name) for name in MASK_CUES]]
    assert bool(known.isfinite().all()) and bool(cues[:, len(MASK_CUES) :].isnan().all())


def test_a_moving_mask_is_seen_ahead() -> None:
    best, before = square(16, 16), square(16, 8)
    still = window_cues(best[None], best, None, None, 0.0, 0.0, GRID)
    moving = window_cues(best[None], best, before, None, 0.0, 0.0, GRID)
    assert cue(still, "ahead_share")[6] == 0.0 and cue(moving, "ahead_share")[6] == 0.5
    assert cue(still, "ahead_within_0px")[6] == 0.0 and cue(moving, "ahead_within_0px")[6] == 1.0
    assert cue(moving, "step")[0] == 2.0, "8 low-resolution pixels are two tokens"
    back = window_cues(best[None], best, square(16, 24), None, 0.0, 0.0, GRID)
    assert cue(back, "ahead_share")[4] == 0.5 and cue(back, "ahead_share")[6] == 0.0


def test_logits_tell_windows_that_are_nearly_in_the_mask() -> None:
    best = torch.full((64, 64), -20.0)
    best[16:32, 16:32] = 6.0
    best[16:20, 32:36] = -1.5  # one token of the window to the right
    other = torch.full((64, 64), -20.0)
    other[0, 0] = -3.0
    logits = token_logits(torch.stack([best, other]), best)
    assert logits.shape == (2, 16, 16) and logits[0, 4, 8] == -1.5
    assert logits[0, 0, 0] == -20 and logits[1, 0, 0] == -3, "the candidates' largest"
    hard = best > 0
    cues = window_cues(hard[None], hard, None, logits, 0.0, 0.0, GRID)
    assert bool(cues.isfinite().all())
    assert cue(cues, "mask_logit")[5:7] == [6.0, -1.5] and cue(cues, "mask_logit")[0] == -15.0
    assert cue(cues, "mask_logit_over_-2")[6] == 1 and cue(cues, "mask_logit_over_-1")[6] == 0
    assert cue(cues, "mask_tokens_over_-2")[5:7] == [1.0, 1 / 16]
    assert cue(cues, "candidate_logit")[0] == -3.0


def test_padding_is_no_mask() -> None:
    """Windows of 14 on a grid of 16: the last ones are nearly empty."""
    grid = WindowGrid(16, 14)
    hard = torch.ones(64, 64, dtype=torch.bool)
    logits = torch.full((2, 16, 16), 3.0)
    cues = window_cues(hard[None], hard, None, logits, 0.0, 0.0, grid)
    assert cue(cues, "mask_logit") == [3.0] * 4
    assert cue(cues, "mask_tokens_over_-1") == pytest.approx([1, 2 / 14, 2 / 14, 4 / 196])


def router(cue: str, threshold: float) -> Router:
    return Router(
        cues=(cue,), mean=(0.5,), scale=(0.5,), coefficients=(2.0,), intercept=0.0, threshold=threshold
    )  # fmt: skip


@pytest.mark.parametrize(("threshold", "windows"), [(0.2, [5]), (0.9, [])])
def test_a_router_asks_for_windows_over_its_threshold(threshold: float, windows: list[int]) -> None:
    best = square(16, 16)
    cues = window_cues(best[None], best, None, None, 0.0, 0.0, GRID)
    assert needed(cues, router("mask_share", threshold)).nonzero().flatten().tolist() == windows
    with pytest.raises(ValueError, match="reads logits"):
        needed(cues, router(LOGIT_CUES[0], threshold))
