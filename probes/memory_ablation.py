"""Memory tokens taken away by saliency rank, as groups for `probes.attribution`.

Tokens are removed after projection and rotary phases, from the very call of attention: what is left is
attended to exactly as if the others had never been remembered. Object pointers always stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from probes.attribution import Run
from probes.errors import InputError
from probes.measure import received
from probes.observing import observe
from probes.seam import AttentionCall
from probes.tracking import check_stock


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
    every = range(len(groups.of_token))
    chosen = list(every) if layers is None else list(layers)
    if not chosen or not set(chosen) <= set(every):
        raise InputError(
            f"layers {chosen} were given; the model has memory layers {list(every)}; choose among them"
        )

    def run(kept: Tensor) -> Tensor:
        if bool(kept.all()):
            return _mask_logits(predictor, state, frame, object_id)
        left = {layer: kept[groups.of_token[layer]].nonzero()[:, 0] for layer in chosen}
        with _reading_only(predictor, left, groups.of_token.shape[1]):
            return _mask_logits(predictor, state, frame, object_id)

    return run


@torch.inference_mode()
def _mask_logits(predictor: Any, state: dict[str, Any], frame: int, object_id: int) -> Tensor:
    """Track an object into a frame, the way it was tracked or comes next, and store nothing."""
    check_stock(predictor)
    index = state["obj_id_to_idx"].get(object_id)
    known = None if index is None else state["output_dict_per_obj"][index]
    if known is None or frame in known["cond_frame_outputs"] or not known["cond_frame_outputs"]:
        raise InputError(
            f"object {object_id} on frame {frame} was given; expected an object that was tracked, on a frame "
            f"without a prompt; the video has objects {list(state['obj_ids'])}; choose another"
        )
    tracked = state["frames_tracked_per_obj"][index]
    nearest = tracked.get(frame, tracked.get(frame + 1, {"reverse": False}))
    _, logits = predictor._run_single_frame_inference(
        inference_state=state,
        output_dict=known,
        frame_idx=frame,
        batch_size=1,
        is_init_cond_frame=False,
        point_inputs=None,
        mask_inputs=None,
        reverse=nearest["reverse"],
        run_mem_encoder=False,
    )
    found: Tensor = logits[0, 0]
    return found


class _FewerKeys(TorchFunctionMode):
    """Leaves keys out of scaled dot product attention, as long as `keys` says which stay."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and self.keys is not None:
            q, k, v = args
            at = self.keys.to(k.device)
            args = (q, k.index_select(2, at), v.index_select(2, at))
        return func(*args, **(kwargs or {}))


@contextmanager
def _reading_only(predictor: Any, left: dict[int, Tensor], tokens: int) -> Iterator[None]:
    """Let some layers of memory attention read only the frame tokens `left` and what comes after all `tokens`."""
    mode = _FewerKeys()

    def begin(layer: int) -> Any:
        def hook(module: Any, args: Any, named: dict[str, Any]) -> None:
            pointers = torch.arange(tokens, named["k"].shape[1])
            mode.keys = torch.cat([left[layer], pointers])

        return hook

    def end(module: Any, args: Any, output: Any) -> None:
        mode.keys = None

    handles = []
    for layer in left:
        module = predictor.memory_attention.layers[layer].cross_attn_image
        handles.append(module.register_forward_pre_hook(begin(layer), with_kwargs=True))
        handles.append(module.register_forward_hook(end))
    try:
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()
