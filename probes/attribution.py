"""Is low attention low effect? Take groups (windows, memory tokens) away and see how the mask changes.

How a group is taken away is the caller's: a function from the kept groups to the mask's logits. For memory
tokens `probes.memory_ablation` makes one, for windows that go through the shortcut `sparsity.ablation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from captum.attr import FeatureAblation
from scipy.stats import spearmanr
from torch import Tensor

Run = Callable[[Tensor], Tensor]
"""From the kept groups, bool ``[G]``, to mask logits ``[h, w]``."""


@dataclass(frozen=True)
class GroupEffects:
    """What taking each group away does to the mask.

    Attributes
    ----------
    iou_loss
        float32 ``[G]``: 1 - IoU with the mask of the whole run, in [0, 1].
    logit_change
        float32 ``[G]``: mean |difference| of the logits.
    passes
        How often the model ran.
    """

    iou_loss: Tensor
    logit_change: Tensor
    passes: int


class _Remembered:
    """Runs the model once for each set of kept groups."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.seen: dict[tuple[bool, ...], Tensor] = {}

    def __call__(self, kept: Tensor) -> Tensor:
        key = tuple(kept.tolist())
        if key not in self.seen:
            self.seen[key] = self.run(kept).detach().float().clone()
        return self.seen[key]


def ablate_groups(run: Run, groups: int) -> GroupEffects:
    """Take each group away in turn (captum's `FeatureAblation`): ``groups + 1`` passes of the model.

    Parameters
    ----------
    run
        From the kept groups to the mask's logits.
    groups
        Number of groups G.
    """
    remembered = _Remembered(run)
    whole = remembered(torch.ones(groups, dtype=torch.bool))

    def iou_to_whole(present: Tensor) -> Tensor:
        return torch.stack([iou(remembered(row > 0.5) > 0, whole > 0) for row in present])

    def likeness(present: Tensor) -> Tensor:
        return torch.stack([-(remembered(row > 0.5) - whole).abs().mean() for row in present])

    present = torch.ones(1, groups)
    iou_loss, change = (
        FeatureAblation(measure).attribute(present)[0] for measure in (iou_to_whole, likeness)
    )
    return GroupEffects(iou_loss.float(), change.float(), len(remembered.seen))


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of bool masks, in [0, 1]; 1 where both are empty."""
    either = (a | b).sum()
    return torch.where(either > 0, (a & b).sum() / either.clamp(min=1), torch.ones(()))


def rank_correlation(saliency: Tensor, effect: Tensor) -> float:
    """Spearman's rho of attention saliency and effect, both ``[G]``, in [-1, 1]; NaN where one is constant."""
    if saliency.unique().numel() < 2 or effect.unique().numel() < 2:
        return float("nan")
    return float(spearmanr(saliency.numpy(), effect.numpy()).statistic)


def removal_curve(
    run: Run, order: Sequence[int], counts: Sequence[int], *, insert: bool = False
) -> list[float]:
    """IoU with the whole run's mask while groups go (deletion) or come (insertion) in an order (Petsiuk et al. 2018).

    Parameters
    ----------
    run
        From the kept groups to the mask's logits.
    order
        Groups, the first to go or come first.
    counts
        How many have gone or come at each point.
    insert
        Start from none and add, instead of starting from all.

    Returns
    -------
    list
        One IoU a count. Their mean approximates the area under the curve.
    """
    groups = len(order)
    whole = run(torch.ones(groups, dtype=torch.bool)).detach().float() > 0
    found = []
    for count in counts:
        kept = torch.full((groups,), not insert)
        kept[list(order[:count])] = insert
        found.append(float(iou(run(kept).float() > 0, whole)))
    return found


def random_curve(
    run: Run,
    groups: int,
    counts: Sequence[int],
    *,
    insert: bool = False,
    orders: int = 5,
    seed: int = 0,
) -> list[float]:
    """Mean `removal_curve` over random orders: what any saliency must beat."""
    generator = torch.Generator().manual_seed(seed)
    curves = [
        removal_curve(
            run, torch.randperm(groups, generator=generator).tolist(), counts, insert=insert
        )
        for _ in range(orders)
    ]
    return torch.tensor(curves).mean(0).tolist()
