"""Attribution: effects of groups that are known; memory tokens that are taken away matter more the more attended they were.

With no token away the mask is stock's, and the state stays as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from probes.attribution import (
    MemoryGroups,
    ablate_groups,
    memory_groups,
    memory_tokens_removed,
    random_curve,
    rank_correlation,
    removal_curve,
)
from probes.errors import InputError
from probes.tracking import begin_video
from probes.video import open_video
from sparsity import accelerate

FRAME, GROUPS = 4, 8

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


@pytest.fixture(scope="module")
def tracked(demo_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray) -> dict[str, Any]:
    """The state of the clip, tracked to the frame."""
    with torch.inference_mode():
        state = begin_video(demo_stock, open_video(clip_frames))
        demo_stock.add_new_mask(state, 0, 1, clip_mask)
        list(demo_stock.propagate_in_video(state, max_frame_num_to_track=FRAME))
    return state


@pytest.fixture(scope="module")
def groups(demo_stock: Any, tracked: dict[str, Any]) -> MemoryGroups:
    with torch.inference_mode():
        return memory_groups(demo_stock, tracked, FRAME, 1, GROUPS)


def stored(state: dict[str, Any]) -> Tensor:
    """The mask that tracking stored."""
    found: Tensor = state["output_dict_per_obj"][0]["non_cond_frame_outputs"][FRAME]["pred_masks"]
    return found[0, 0]


def test_groups_are_ranks_of_the_attention(groups: MemoryGroups) -> None:
    sizes = torch.stack([row.bincount(minlength=GROUPS) for row in groups.of_token])
    assert groups.of_token.shape == (4, 4 * 256) and (sizes == 128).all()
    assert (groups.mass.diff(dim=1) <= 0).all() and (groups.mass.sum(1) < 1).all()
    assert not torch.equal(groups.of_token[0], groups.of_token[1])
    assert torch.allclose(groups.saliency(), groups.mass.mean(0))
    assert not torch.allclose(groups.saliency([0]), groups.saliency([3]))


def test_nothing_away_is_the_stock_mask_and_nothing_is_left_behind(
    demo_stock: Any, tracked: dict[str, Any], groups: MemoryGroups
) -> None:
    before = stored(tracked).clone()
    with torch.inference_mode():
        run = memory_tokens_removed(demo_stock, tracked, FRAME, 1, groups)
        whole = run(torch.ones(GROUPS, dtype=torch.bool))
        none = run(torch.zeros(GROUPS, dtype=torch.bool))
        again = run(torch.ones(GROUPS, dtype=torch.bool))
    assert torch.equal(whole, before) and torch.equal(again, before)
    assert not torch.allclose(none, before, atol=1e-2)
    assert torch.equal(stored(tracked), before)
    assert set(tracked["output_dict_per_obj"][0]["non_cond_frame_outputs"]) == {1, 2, 3, 4}
    for layer in demo_stock.memory_attention.layers:
        module = layer.cross_attn_image
        assert not module._forward_pre_hooks and not module._forward_hooks


def test_attended_tokens_matter_more_and_layers_differ(
    demo_stock: Any, tracked: dict[str, Any], groups: MemoryGroups
) -> None:
    with torch.inference_mode():
        run = memory_tokens_removed(demo_stock, tracked, FRAME, 1, groups)
        found = ablate_groups(run, GROUPS)
        last = ablate_groups(
            memory_tokens_removed(demo_stock, tracked, FRAME, 1, groups, layers=[3]), GROUPS
        )
        best_first = removal_curve(run, range(GROUPS), (1, 4, 7))
        worst_first = removal_curve(run, range(GROUPS)[::-1], (1, 4, 7))
        chance = random_curve(run, GROUPS, (1, 4, 7), orders=2)
        inserted = removal_curve(run, range(GROUPS), (1, 4, 8), insert=True)
    assert found.passes == GROUPS + 1
    assert found.logit_change[0] > found.logit_change[-1]
    assert rank_correlation(groups.saliency(), found.logit_change) > 0
    assert not torch.allclose(found.logit_change, last.logit_change)
    assert sum(best_first) <= sum(worst_first) and all(0 <= v <= 1 for v in chance)
    assert inserted[-1] == 1


def test_no_gradients_are_needed_or_made(
    demo_stock: Any, tracked: dict[str, Any], groups: MemoryGroups
) -> None:
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    found = memory_groups(demo_stock, tracked, FRAME, 1, GROUPS)
    assert torch.equal(found.of_token, groups.of_token)
    before = memory_groups(demo_stock, tracked, FRAME - 1, 1, GROUPS)
    assert not torch.equal(before.mass, groups.mass)
    run = memory_tokens_removed(demo_stock, tracked, FRAME, 1, found)
    effects = ablate_groups(run, GROUPS)
    assert effects.passes == GROUPS + 1 and effects.logit_change[0] > 0


def test_a_clip_that_was_tracked_back_is_read_back(
    demo_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    with torch.inference_mode():
        state = begin_video(demo_stock, open_video(clip_frames))
        demo_stock.add_new_mask(state, 7, 1, clip_mask)
        list(demo_stock.propagate_in_video(state, 7, 6, reverse=True))
    groups = memory_groups(demo_stock, state, 2, 1, GROUPS)
    assert groups.of_token.shape[1] == 5 * 256  # frames 7, 3, 4, 5, 6
    whole = torch.ones(GROUPS, dtype=torch.bool)
    mask = memory_tokens_removed(demo_stock, state, 2, 1, groups)(whole)
    outputs = state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
    assert torch.equal(mask, outputs[2]["pred_masks"][0, 0])
    assert not torch.equal(mask, outputs[3]["pred_masks"][0, 0])
    # frame 0 is the next to be tracked, in the direction of its neighbour
    assert memory_groups(demo_stock, state, 0, 1, GROUPS).of_token.shape[1] == 7 * 256


def test_bad_input_is_refused(
    demo_stock: Any, tracked: dict[str, Any], groups: MemoryGroups
) -> None:
    with torch.inference_mode():
        for frame, object_id in ((0, 1), (FRAME, 7)):
            with pytest.raises(InputError, match="without a prompt"):
                memory_groups(demo_stock, tracked, frame, object_id, 2)
        with pytest.raises(InputError, match="2000 groups of 1024 memory tokens"):
            memory_groups(demo_stock, tracked, FRAME, 1, 2000)
    with pytest.raises(InputError, match="memory layers"):
        memory_tokens_removed(demo_stock, tracked, FRAME, 1, groups, layers=[4])
    with pytest.raises(InputError, match="ablation starts from a dense run"):
        memory_tokens_removed(accelerate(demo_stock, "paper"), tracked, FRAME, 1, groups)
