"""What one object's memory attention reads on one frame: memory frames in whole or in part, and pointers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor

from probes.layout import MemoryLayout, stored_result

Results = Mapping[str, Mapping[int, Any]]
"""An object's results: ``cond_frame_outputs`` and ``non_cond_frame_outputs`` by frame."""


@dataclass
class Bank:
    """Memory of one object, in the products' dtype.

    Attributes
    ----------
    layout
        Which key of a dense run is what.
    whole
        Positions in ``layout.frames`` of the frames that are read whole, ascending.
    values
        Their tokens, then the pointers', ``[W * tokens + pointers, mem]``.
    keyed
        The same with positions added: the input of the key projection.
    pruned
        Frames that are read in part.
    measure
        Positions in ``layout.frames`` of (whole) frames whose token saliency is to be measured now.
    """

    layout: MemoryLayout
    whole: list[int]
    values: Tensor
    keyed: Tensor
    pruned: list[PrunedFrame]
    measure: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class PrunedFrame:
    """A memory frame of which each layer reads the tokens ``kept[layer]``, int64 ``[K]``.

    `features` and `position` are those of all tokens, ``[tokens, mem]``.
    """

    f: int
    features: Tensor
    position: Tensor
    kept: list[Tensor]


@dataclass(frozen=True)
class Read:
    """What one layer reads: keys in the order of whole frames, kept tokens, pointers.

    Attributes
    ----------
    values, keyed
        ``[keys, mem]``.
    kept
        Grid places of the kept tokens of pruned frames, int64 ``[K]``.
    """

    values: Tensor
    keyed: Tensor
    kept: Tensor


def collect(
    model: SAM2Base,
    dtype: torch.dtype,
    layout: MemoryLayout,
    results: Results,
    tokens: list[list[Tensor] | None],
    measure: list[int],
) -> Bank:
    """Collect an object's memory.

    Parameters
    ----------
    layout
        Of the frame that is to be tracked.
    results
        The object's results.
    tokens
        Kept tokens per memory frame and layer, or None for a whole frame.
    measure
        Positions in `layout.frames` whose saliency is to be measured.
    """
    device = model.maskmem_tpos_enc.device
    whole, values, keyed, pruned = [], [], [], []
    for f, entry in enumerate(layout.frames):
        out = stored_result(results, entry)
        features = out["maskmem_features"].to(device)[0].flatten(1).t()  # [tokens, mem]
        place = out["maskmem_pos_enc"][-1].to(device)[0].flatten(1).t()
        temporal = model.maskmem_tpos_enc[model.num_maskmem - entry.position - 1].view(1, -1)
        kept = tokens[f]
        if kept is None:
            whole.append(f)
            values.append(features.to(dtype))
            keyed.append((features.float() + (place + temporal)).to(dtype))
        else:
            pruned.append(PrunedFrame(f, features, place + temporal, kept))
    if layout.pointers:
        pointers, position = _pointers(model, layout, results, device)
        values.append(pointers.to(dtype))
        keyed.append((pointers.float() + position).to(dtype))
    return Bank(layout, whole, torch.cat(values), torch.cat(keyed), pruned, measure)


def read(bank: Bank, layer: int) -> Read:
    """What a layer reads of a bank."""
    if not bank.pruned:
        nothing = torch.empty(0, dtype=torch.int64, device=bank.values.device)
        return Read(bank.values, bank.keyed, nothing)
    first = len(bank.whole) * bank.layout.tokens
    dtype = bank.values.dtype
    features, position = [], []
    for frame in bank.pruned:
        features.append(frame.features.index_select(0, frame.kept[layer]))
        position.append(frame.position.index_select(0, frame.kept[layer]))
    values = torch.cat(features)
    keyed = (values.float() + torch.cat(position)).to(dtype)
    return Read(
        torch.cat([bank.values[:first], values.to(dtype), bank.values[first:]]),
        torch.cat([bank.keyed[:first], keyed, bank.keyed[first:]]),
        torch.cat([frame.kept[layer] for frame in bank.pruned]),
    )


def key_ids(bank: Bank, layer: int) -> Tensor | None:
    """Which of a dense run's keys a layer reads, int64 in the order of `read`; None for all of them."""
    if not bank.pruned:
        return None
    layout, device = bank.layout, bank.values.device
    every = torch.arange(layout.tokens, device=device)
    pieces = [every + f * layout.tokens for f in bank.whole]
    pieces += [frame.kept[layer] + frame.f * layout.tokens for frame in bank.pruned]
    pieces.append(torch.arange(layout.frame_keys, layout.keys, device=device))
    return torch.cat(pieces)


def _pointers(
    model: SAM2Base, layout: MemoryLayout, results: Results, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Object pointers split into tokens, and their temporal positions, ``[pointers * tokens, mem]`` each."""
    found = [stored_result(results, pointer)["obj_ptr"].to(device) for pointer in layout.pointers]
    tokens = torch.cat(found).reshape(-1, model.mem_dim)  # pointer by pointer
    if not model.add_tpos_enc_to_obj_ptrs:
        return tokens, torch.zeros_like(tokens)
    distances = torch.tensor([pointer.distance for pointer in layout.pointers], device=device)
    limit = layout.pointer_limit - 1
    width = model.hidden_dim if model.proj_tpos_enc_in_obj_ptrs else model.mem_dim
    position = model.obj_ptr_tpos_proj(get_1d_sine_pe(distances / limit, dim=width)).float()
    return tokens, position.repeat_interleave(layout.pointer_tokens, dim=0)
