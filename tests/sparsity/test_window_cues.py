"""Cues of windows say what they are called, and a router picks by them."""

from __future__ import annotations

import pytest
import torch

from sparsity.profile import Router
from sparsity.select import WindowGrid
from sparsity.window_cues import CUES, needed, window_cues

GRID = WindowGrid(16, 4)


def square(row: int, column: int, size: int = 16) -> torch.Tensor:
    """A mask [64, 64] of one square; windows are 16 wide at low resolution."""
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[row : row + size, column : column + size] = True
    return mask


def cue(cues: torch.Tensor, name: str) -> list[float]:
    return cues[:, CUES.index(name)].tolist()


def test_cues_tell_share_distance_and_saliency() -> None:
    best = square(16, 16)
    saliency = torch.zeros(16, 16)
    saliency[0, 0] = 1.0
    cues = window_cues(best[None], best, None, saliency, 3.0, 0.25, GRID)
    assert cues.shape == (16, len(CUES))
    assert [i for i, v in enumerate(cue(cues, "mask_share")) if v] == [5]
    assert cue(cues, "mask_share")[5] == 1.0
    assert sum(cue(cues, "within_0px")) == 1 and sum(cue(cues, "within_8px")) == 9
    assert cue(cues, "saliency_rank")[0] == 0.0
    assert set(cue(cues, "score")) == {3.0} and set(cue(cues, "mask_jump")) == {0.25}


def test_a_moving_mask_is_seen_ahead() -> None:
    best, before = square(16, 16), square(16, 8)
    still = window_cues(best[None], best, None, None, 0.0, 0.0, GRID)
    moving = window_cues(best[None], best, before, None, 0.0, 0.0, GRID)
    assert cue(still, "ahead_share")[6] == 0.0 and cue(moving, "ahead_share")[6] == 0.5
    back = window_cues(best[None], best, square(16, 24), None, 0.0, 0.0, GRID)
    assert cue(back, "ahead_share")[4] == 0.5 and cue(back, "ahead_share")[6] == 0.0


@pytest.mark.parametrize(("threshold", "windows"), [(0.2, [5]), (0.9, [])])
def test_a_router_asks_for_windows_over_its_threshold(threshold: float, windows: list[int]) -> None:
    router = Router(
        cues=("mask_share",),
        mean=(0.5,),
        scale=(0.5,),
        coefficients=(2.0,),
        intercept=0.0,
        threshold=threshold,
    )
    best = square(16, 16)
    cues = window_cues(best[None], best, None, None, 0.0, 0.0, GRID)
    assert needed(cues, router).nonzero().flatten().tolist() == windows
