"""Attribution: effects of groups that are known, and of real windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from probes.attribution import ablate_groups, random_curve, rank_correlation, removal_curve
from probes.errors import InputError
from sparsity import accelerate
from sparsity.ablation import windows_through_shortcut

WEIGHTS = torch.tensor([0.0, 1.0, 2.0, 4.0])


def known(kept: Tensor) -> Tensor:
    """A mask of 7 pixels, of which each group holds as many as its weight."""
    owner = torch.repeat_interleave(torch.arange(4), WEIGHTS.long())
    return torch.where(kept[owner], 1.0, -1.0)[None]


def test_effects_of_known_groups() -> None:
    found = ablate_groups(known, 4)
    assert torch.allclose(found.iou_loss, WEIGHTS / 7)
    assert torch.allclose(found.logit_change, 2 * WEIGHTS / 7)
    assert found.passes == 5
    assert rank_correlation(WEIGHTS, found.iou_loss) == pytest.approx(1)
    assert rank_correlation(-WEIGHTS, found.iou_loss) == pytest.approx(-1)
    assert np.isnan(rank_correlation(torch.ones(4), found.iou_loss))


def test_curves_of_known_orders() -> None:
    best_last, counts = [0, 1, 2, 3], (1, 2, 3)
    assert removal_curve(known, best_last, counts) == pytest.approx([1, 6 / 7, 4 / 7])
    assert removal_curve(known, best_last[::-1], counts, insert=True) == pytest.approx(
        [4 / 7, 6 / 7, 1]
    )
    chance = random_curve(known, 4, counts)
    assert sum(removal_curve(known, best_last[::-1], counts)) < sum(chance)
    assert sum(chance) < sum(removal_curve(known, best_last, counts))


def test_windows_of_a_real_frame(
    demo_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    predictor = accelerate(demo_stock, "paper")
    with torch.inference_mode():
        state = predictor.init_state(clip_frames)
        predictor.add_new_mask(state, 0, 1, clip_mask)
        masks = {f: m for f, _, m in predictor.propagate_in_video(state, max_frame_num_to_track=3)}
        run = windows_through_shortcut(predictor, state, 3, 1)
        found = ablate_groups(run, 16)
        again = ablate_groups(run, 16)
    assert found.passes <= 20
    assert torch.equal(found.iou_loss, again.iou_loss)
    assert (found.logit_change > 0).any() and found.iou_loss.max() <= 1
    assert masks.keys() == {0, 1, 2, 3}
    with pytest.raises(InputError, match="routes no windows"):
        windows_through_shortcut(accelerate(demo_stock, "exact"), state, 3, 1)
    with pytest.raises(InputError, match="reuses what windows gave on earlier frames"):
        windows_through_shortcut(accelerate(demo_stock, "recommended"), state, 3, 1)
