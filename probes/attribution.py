"""Is low attention low effect? Take groups (windows, memory tokens) away and see how the mask changes.

How a group is taken away is the caller's: a function from the kept groups to the mask's logits. For memory
tokens `memory_tokens_removed` makes one. `probes.gradients` asks the same of gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from probes.errors import InputError
from probes.measure import received
from probes.observing import edit, observe
from probes.seam import AttentionCall
from probes.tracking import check_stock, tracked_object

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


def ablate_groups(run: Run, groups: int) -> GroupEffects:
    """Take each group away in turn: ``groups + 1`` passes of the model.

    Parameters
    ----------
    run
        From the kept groups to the mask's logits.
    groups
        Number of groups G.
    """
    whole = run(torch.ones(groups, dtype=torch.bool)).detach().float().clone()
    losses, changes = [], []
    for group in range(groups):
        kept = torch.ones(groups, dtype=torch.bool)
        kept[group] = False
        logits = run(kept).detach().float()
        losses.append(1 - iou(logits > 0, whole > 0))
        changes.append((logits - whole).abs().mean())
    return GroupEffects(torch.stack(losses), torch.stack(changes), groups + 1)


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
    run: Run, groups: int, counts: Sequence[int], *, orders: int = 5, seed: int = 0
) -> list[float]:
    """Mean `removal_curve` over random orders: what any saliency must beat."""
    generator = torch.Generator().manual_seed(seed)
    curves = [
        removal_curve(run, torch.randperm(groups, generator=generator).tolist(), counts)
        for _ in range(orders)
    ]
    return torch.tensor(curves).mean(0).tolist()


@dataclass(frozen=True)
class MemoryGroups:
    """Memory tokens of one object on one frame, grouped by how much attention they get there.

    Attributes
    ----------
    of_token
        Group of each token of the memory frames, by layer, int64 ``[L, tokens]``; 0 is the most attended.
        Groups are of the same size, to one token.
    mass
        Share of all attention that falls on each group, by layer, float32 ``[L, G]``; with what falls on the
        pointers it sums to one.
    """

    of_token: Tensor
    mass: Tensor

    @property
    def count(self) -> int:
        """Number of groups G."""
        return self.mass.shape[1]

    def saliency(self, layers: Sequence[int] | None = None) -> Tensor:
        """Mean mass of each group over some layers (None: all), ``[G]``."""
        return self.mass[list(range(len(self.mass)) if layers is None else layers)].mean(0)


def memory_groups(
    predictor: Any, state: dict[str, Any], frame: int, object_id: int, count: int
) -> MemoryGroups:
    """Rank an object's memory tokens on a frame by key mass from all queries, and cut the ranking into groups.

    Parameters
    ----------
    predictor
        The stock predictor.
    state
        Tracked up to the frame before (going back: after), at least; it is not changed.
    frame, object_id
        Where to look.
    count
        Number of groups.

    Raises
    ------
    InputError
        The predictor is accelerated, the object is unknown or prompted on the frame, or there are fewer
        tokens than groups, or no pointers that would be left when all of them are gone.
    """
    masses: dict[str, Tensor] = {}
    keys = 0

    def note(call: AttentionCall) -> None:
        nonlocal keys
        (layout,) = call.moment.layouts
        keys = layout.keys
        masses[call.site] = received(call)[0][0, :, : layout.frame_keys].mean(0).float().cpu()

    with observe(predictor, note, "memory.*.cross"):
        _mask_logits(predictor, state, frame, object_id)
    mass = torch.stack([masses[site] for site in sorted(masses)])  # [L, tokens]
    tokens = mass.shape[1]
    if not 1 <= count <= tokens or keys == tokens:
        raise InputError(
            f"{count} groups of {tokens} memory tokens and {keys - tokens} pointer tokens were asked for; expected "
            "1 to as many groups as tokens, and a pointer that stays; choose another number or frame"
        )
    order = mass.argsort(dim=1, descending=True, stable=True)
    group = (torch.arange(tokens) * count // tokens).expand(len(mass), -1)
    of_token = torch.empty_like(order).scatter_(1, order, group)
    shares = mass.new_zeros(len(mass), count).scatter_add_(1, of_token, mass)
    return MemoryGroups(of_token, shares)


def memory_tokens_removed(
    predictor: Any,
    state: dict[str, Any],
    frame: int,
    object_id: int,
    groups: MemoryGroups,
    layers: Sequence[int] | None = None,
) -> Run:
    """Make a function from kept groups to an object's mask logits ``[h, w]`` on a frame.

    It runs memory attention and decoder once, on cached features of the frame, and leaves the state as it is.

    Parameters
    ----------
    predictor, state, frame, object_id
        As for `memory_groups`.
    groups
        What it found there.
    layers
        Layers of memory attention that lose the tokens, each by its own ranking; None for all.

    Raises
    ------
    InputError
        A layer does not exist, or as `memory_groups`.
    """
    check_stock(predictor)
    every, tokens = range(len(groups.of_token)), groups.of_token.shape[1]
    chosen = list(every) if layers is None else list(layers)
    if not chosen or not set(chosen) <= set(every):
        raise InputError(
            f"layers {chosen} were given; the model has memory layers {list(every)}; choose among them"
        )

    def run(kept: Tensor) -> Tensor:
        if bool(kept.all()):
            return _mask_logits(predictor, state, frame, object_id)
        left = {
            f"memory.layer{layer}.cross": kept[groups.of_token[layer]].nonzero()[:, 0]
            for layer in chosen
        }

        def fewer(call: AttentionCall) -> AttentionCall:
            chosen = left[call.site].to(call.k.device)
            pointers = torch.arange(tokens, call.k.shape[2], device=call.k.device)
            return call.keep(torch.cat([chosen, pointers]))

        with edit(predictor, fewer, list(left)):
            return _mask_logits(predictor, state, frame, object_id)

    return run


@torch.inference_mode()
def _mask_logits(predictor: Any, state: dict[str, Any], frame: int, object_id: int) -> Tensor:
    """Track an object into a frame, the way it was tracked or comes next, and store nothing."""
    known, reverse = tracked_object(predictor, state, frame, object_id)
    _, logits = predictor._run_single_frame_inference(
        inference_state=state, output_dict=known, frame_idx=frame, batch_size=1, is_init_cond_frame=False,
        point_inputs=None, mask_inputs=None, reverse=reverse, run_mem_encoder=False,
    )  # fmt: skip
    found: Tensor = logits[0, 0]
    return found
