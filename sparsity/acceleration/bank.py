"""What one object's memory attention reads on one frame: memory frames in whole or in part, and pointers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor

from probes.layout import MemoryLayout, stored_result
from sparsity.acceleration.derived import Version
from sparsity.acceleration.session import KEY, ChosenTokens, FrameExtras, Held
from sparsity.acceleration.transfer import to_device

Results = Mapping[str, Mapping[int, Any]]
"""An object's results: ``cond_frame_outputs`` and ``non_cond_frame_outputs`` by frame."""


Remembered = tuple[Tensor, Tensor, Tensor]
"""Features, grid positions and temporal positions of tokens of one memory frame, ``[tokens, mem]`` each."""

MOST_HELD = 2
"""Conditioning frames of an object whose projections are held: each takes as much memory as its layers' keys."""


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
    held
        Projections of the first ``len(held)`` whole frames.
    measure
        Positions in ``layout.frames`` of (whole) frames whose token saliency is to be measured now.
    cut
        Whether the last whole frame is measured and cut before it is read.
    """

    layout: MemoryLayout
    whole: list[int]
    values: Tensor
    keyed: Tensor
    pruned: list[PrunedFrame]
    held: list[Held]
    measure: list[int] = field(default_factory=list)
    cut: bool = False

    @property
    def kind(self) -> Hashable:
        """All that tells one bank's operations from another's, but the sizes of tensors."""
        return self.layout.tokens, tuple(self.whole), tuple(self.measure), self.cut

    @property
    def tensors(self) -> BankTensors:
        """Its tensors alone."""
        return BankTensors(self.values, self.keyed, self.pruned, self.held)

    def with_tensors(self, tensors: BankTensors) -> Bank:
        """The same with other tensors; what it comes to hold is its own."""
        held = [Held(h.version, dict(h.keys), dict(h.values)) for h in tensors.held]
        return replace(
            self, values=tensors.values, keyed=tensors.keyed, pruned=tensors.pruned, held=held
        )


@dataclass(frozen=True)
class BankTensors:
    """The tensors of a `Bank`, as there."""

    values: Tensor
    keyed: Tensor
    pruned: list[PrunedFrame]
    held: list[Held]


@dataclass(frozen=True)
class PrunedFrame:
    """A memory frame of which layer `l` reads the tokens ``kept[l]``, int64 ``[K]``.

    `values` and `keyed` are those tokens by layer, ``[K, mem]``.
    """

    f: int
    kept: list[Tensor]
    values: tuple[Tensor, ...]
    keyed: tuple[Tensor, ...]


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
    tokens: list[ChosenTokens | None],
    measure: list[int],
    *,
    cut: bool,
    version: Version,
) -> Bank:
    """Collect an object's memory.

    Parameters
    ----------
    layout
        Of the frame that is to be tracked.
    results
        The object's results.
    tokens
        Kept tokens of each memory frame, or None for a whole frame.
    measure
        Positions in `layout.frames` whose saliency is to be measured.
    cut
        Whether the last whole frame is cut before it is read.
    version
        Of the memory attention that will read it.
    """
    device = model.maskmem_tpos_enc.device
    whole, cut_down, held = list[int](), list[int](), list[Held]()
    read_whole, read_in_part = list[Remembered](), list[Remembered]()
    for f, entry in enumerate(layout.frames):
        out = stored_result(results, entry)
        temporal = model.maskmem_tpos_enc[model.num_maskmem - entry.position - 1].view(1, -1)
        chosen = tokens[f]
        if chosen is not None:
            cut_down.append(f)
            features, place = chosen.features.to(device), chosen.position.to(device)
            read_in_part.append((features, place, temporal.expand(len(features), -1)))
            continue
        if entry.conditioning and entry.position == 0 and len(whole) == len(held) < MOST_HELD:
            held += _held(out, version, device)
        whole.append(f)
        features, place = memory_tokens(out, device)
        read_whole.append((features, place, temporal.expand(len(features), -1)))
    _release(results, held)
    nothing = model.maskmem_tpos_enc.new_empty(0, model.mem_dim)
    values, keyed = _joined(read_whole or [(nothing, nothing, nothing)], dtype)
    if layout.pointers:
        pointers, position = _pointers(model, layout, results, device)
        values = torch.cat([values, pointers.to(dtype)])
        keyed = torch.cat([keyed, (pointers.float() + position).to(dtype)])
    pruned = _pruned_frames(cut_down, tokens, *_joined(read_in_part, dtype)) if cut_down else []
    return Bank(layout, whole, values, keyed, pruned, held, measure, cut)


def _joined(read: list[Remembered], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values and keys' inputs of some memory frames, frame after frame, ``[tokens, mem]`` each."""
    features, place, temporal = (torch.cat(parts) for parts in zip(*read, strict=True))
    return features.to(dtype), (features.float() + (place + temporal)).to(dtype)


def _pruned_frames(
    frames: list[int], tokens: list[ChosenTokens | None], values: Tensor, keyed: Tensor
) -> list[PrunedFrame]:
    """Cut what is read in part by frame and layer."""
    kept = [chosen.per_layer for f in frames if (chosen := tokens[f]) is not None]
    sizes = [len(places) for per_layer in kept for places in per_layer]
    cut = zip(values.split(sizes), keyed.split(sizes), strict=True)
    return [
        PrunedFrame(f, per_layer, *zip(*islice(cut, len(per_layer)), strict=True))
        for f, per_layer in zip(frames, kept, strict=True)
    ]


def memory_tokens(
    out: Mapping[str, Any], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Features and positions of a memory frame, ``[tokens, mem]`` each, on a device or where they are stored."""
    parts = out["maskmem_features"], out["maskmem_pos_enc"][-1]
    features, place = (part.to(device or part.device)[0].flatten(1).t() for part in parts)
    return features, place


def _held(out: dict[str, Any], version: Version, device: torch.device) -> list[Held]:
    """What is held of a conditioning frame; nothing where results are kept away from the device to save memory."""
    if out["maskmem_features"].device != device:
        return []
    extras = out.setdefault(KEY, FrameExtras())
    if extras.held is None or extras.held.version != version:
        extras.held = Held(version)
    return [extras.held]


def _release(results: Results, held: list[Held]) -> None:
    """Let go of projections of conditioning frames that are not read as such now."""
    for out in results["cond_frame_outputs"].values():
        if KEY in out and not any(out[KEY].held is one for one in held):
            out[KEY].held = None


def read(bank: Bank, layer: int) -> Read:
    """What a layer reads of a bank."""
    if not bank.pruned:
        nothing = torch.empty(0, dtype=torch.int64, device=bank.values.device)
        return Read(bank.values, bank.keyed, nothing)
    first = len(bank.whole) * bank.layout.tokens
    values = [frame.values[layer] for frame in bank.pruned]
    keyed = [frame.keyed[layer] for frame in bank.pruned]
    return Read(
        torch.cat([bank.values[:first], *values, bank.values[first:]]),
        torch.cat([bank.keyed[:first], *keyed, bank.keyed[first:]]),
        torch.cat([frame.kept[layer] for frame in bank.pruned]),
    )


def key_ids(bank: Bank, layer: int, cut: Tensor | None) -> Tensor | None:
    """Which of a dense run's keys a layer reads, int64 in the order of `read`; None for all of them.

    `cut` are the tokens that are left of the last whole frame, where it is cut.
    """
    if not bank.pruned and cut is None:
        return None
    layout, device = bank.layout, bank.values.device
    every = torch.arange(layout.tokens, device=device)
    whole = bank.whole if cut is None else bank.whole[:-1]
    pieces = [every + f * layout.tokens for f in whole]
    if cut is not None:
        pieces.append(cut + bank.whole[-1] * layout.tokens)
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
    distances = to_device(torch.tensor([p.distance for p in layout.pointers]), device)
    limit = layout.pointer_limit - 1
    width = model.hidden_dim if model.proj_tpos_enc_in_obj_ptrs else model.mem_dim
    position = model.obj_ptr_tpos_proj(get_1d_sine_pe(distances / limit, dim=width)).float()
    return tokens, position.repeat_interleave(layout.pointer_tokens, dim=0)
