"""What memory attention reads of some objects on one frame: memory frames in whole or in part, and pointers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor

from probes.layout import MemoryLayout
from sparsity.acceleration.model.weights import Version
from sparsity.acceleration.model.windows import to_device
from sparsity.techniques import KEY
from sparsity.techniques.retrieval import ChosenTokens, Stored

MOST_HELD = 2
"""Conditioning frames of an object whose projections are held: each takes as much memory as its layers' keys."""


@dataclass
class Held:
    """Projections of a conditioning frame, whose keys never change: its temporal position stays 0.

    Attributes
    ----------
    version
        Of the memory attention whose weights made them, and in which number format.
    keys, values
        By layer, ``[tokens, C]``; keys are turned.
    """

    version: Version
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class BankTensors:
    """The tensors of a `Bank`, in the products' dtype.

    Attributes
    ----------
    values
        Tokens of the frames that are read whole, then the pointers', ``[B, W * tokens + pointers, mem]``.
    keyed
        The same with positions added: the input of the key projection.
    pruned
        What is read of the frames that are read in part; None where there are none.
    held
        Projections of the first ``len(held)`` whole frames, of each object.
    """

    values: Tensor
    keyed: Tensor
    pruned: Pruned | None
    held: list[list[Held]]


@dataclass(frozen=True)
class Bank:
    """Memory of B objects that is alike but for its content.

    Attributes
    ----------
    layout
        Which key of a dense run is what; of the first object.
    whole
        Positions in ``layout.frames`` of the frames that are read whole, ascending.
    measure
        Positions in ``layout.frames`` of (whole) frames whose token saliency is to be measured now.
    tensors
        What lies there.
    """

    layout: MemoryLayout
    whole: tuple[int, ...]
    measure: tuple[int, ...]
    tensors: BankTensors

    @property
    def kind(self) -> Hashable:
        """All that tells one bank's operations from another's, but the sizes of tensors."""
        return self.layout.tokens, self.whole, self.measure

    def with_tensors(self, tensors: BankTensors) -> Bank:
        """The same with other tensors; what it comes to hold is its own."""
        held = [[Held(h.version, dict(h.keys), dict(h.values)) for h in of] for of in tensors.held]
        return replace(self, tensors=replace(tensors, held=held))


Alike = tuple[tuple[int, ...], Bank]
"""Which objects, and their memory."""


@dataclass(frozen=True)
class Pruned:
    """Memory frames of which layer `l` reads some tokens.

    Attributes
    ----------
    frames
        Their positions in the layout.
    kept
        The places of these tokens, of object `b` on frame `f` for layer `l`: int64 ``[K]`` at ``kept[b][f][l]``.
    values, keyed
        The tokens, frame after frame and on each layer after layer, ``[B, tokens, mem]``.
    """

    frames: tuple[int, ...]
    kept: list[list[list[Tensor]]]
    values: Tensor
    keyed: Tensor

    def of_layer(self, tensor: Tensor, layer: int) -> list[Tensor]:
        """What a layer reads of each frame, of `values` or `keyed`."""
        sizes = [len(places) for of_frame in self.kept[0] for places in of_frame]
        return list(tensor.split(sizes, 1))[layer :: len(self.kept[0][0])]


@dataclass(frozen=True)
class Read:
    """What one layer reads: keys in the order of whole frames, kept tokens, pointers.

    Attributes
    ----------
    values, keyed
        ``[B, keys, mem]``.
    kept
        Grid places of the kept tokens of pruned frames, int64 ``[B, K]``.
    """

    values: Tensor
    keyed: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Plan:
    """What is to be read of one object's memory.

    Attributes
    ----------
    layout, stored
        Of the frame that is to be tracked, and the results that it names.
    tokens
        Kept tokens of each memory frame, or None for a whole frame.
    measure
        Positions in `layout.frames` whose saliency is to be measured.
    held
        What is held of the first whole frames.
    """

    layout: MemoryLayout
    stored: Stored
    tokens: list[ChosenTokens | None]
    measure: tuple[int, ...]
    held: list[Held]

    @property
    def kind(self) -> Hashable:
        """Objects of which this is equal are read together."""
        frames = tuple(
            (entry.position, None if chosen is None else tuple(map(len, chosen.per_layer)))
            for entry, chosen in zip(self.layout.frames, self.tokens, strict=True)
        )
        pointers = tuple(pointer.distance for pointer in self.layout.pointers)
        split = self.layout.tokens, self.layout.pointer_tokens, self.layout.pointer_limit
        return frames, pointers, split, self.measure, len(self.held)


def plan(
    model: SAM2Base,
    layout: MemoryLayout,
    stored: Stored,
    prompts: Iterable[dict[str, Any]],
    tokens: list[ChosenTokens | None],
    measure: list[int],
    version: Version,
) -> Plan:
    """Say what is to be read of an object's memory.

    Parameters
    ----------
    prompts
        The object's results on all conditioning frames.
    version
        Of the memory attention that will read it.
    """
    held, whole = list[Held](), 0
    for entry, out, chosen in zip(layout.frames, stored, tokens, strict=False):
        if chosen is None:
            if entry.conditioning and entry.position == 0 and whole == len(held) < MOST_HELD:
                held += _held(out, version, model.maskmem_tpos_enc.device)
            whole += 1
    _release(prompts, held)
    return Plan(layout, stored, tokens, tuple(measure), held)


def collect(model: SAM2Base, dtype: torch.dtype, plans: list[Plan]) -> list[Alike]:
    """Collect the memory of objects, of those together whose plans are of one kind."""
    alike: dict[Hashable, list[int]] = {}
    for i, one in enumerate(plans):
        alike.setdefault(one.kind, []).append(i)
    return [(tuple(of), _bank(model, dtype, [plans[i] for i in of])) for of in alike.values()]


def _bank(model: SAM2Base, dtype: torch.dtype, plans: list[Plan]) -> Bank:
    """The memory of objects whose plans are of one kind."""
    device, (first, *_) = model.maskmem_tpos_enc.device, plans
    cut = tuple(f for f, chosen in enumerate(first.tokens) if chosen is not None)
    whole = tuple(f for f, chosen in enumerate(first.tokens) if chosen is None)
    temporal = [
        model.maskmem_tpos_enc[model.num_maskmem - entry.position - 1].view(1, -1)
        for entry in first.layout.frames
    ]
    read = [memory_tokens(one.stored[f], device) for one in plans for f in whole]
    sizes = [first.layout.tokens] * len(whole)
    parts = [_joined(model, read, [temporal[f] for f in whole], sizes, len(plans), dtype)]
    if first.layout.pointers:
        parts.append(_pointers(model, plans, device, dtype))
    values, keyed = (
        of_kind[0] if len(of_kind) == 1 else torch.cat(of_kind, 1)
        for of_kind in zip(*parts, strict=True)
    )
    pruned = None
    if cut:
        chosen = [[tokens for tokens in one.tokens if tokens is not None] for one in plans]
        some = [(c.features.to(device), c.position.to(device)) for of in chosen for c in of]
        sizes = [len(features) for features, _ in some[: len(cut)]]
        kept = [[c.per_layer for c in of] for of in chosen]
        pruned = Pruned(
            cut, kept, *_joined(model, some, [temporal[f] for f in cut], sizes, len(plans), dtype)
        )
    held = [list(of_slot) for of_slot in zip(*(one.held for one in plans), strict=True)]
    tensors = BankTensors(values, keyed, pruned, held)
    return Bank(first.layout, whole, first.measure, tensors)


def _joined(
    model: SAM2Base,
    read: list[tuple[Tensor, Tensor]],
    temporal: list[Tensor],
    sizes: list[int],
    objects: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Values and keys' inputs of some memory frames, object after object and of each frame after frame.

    Parameters
    ----------
    read
        Features and grid positions of their tokens, ``[tokens, mem]`` each.
    temporal, sizes
        Temporal position and number of tokens of each frame.

    Returns
    -------
    tuple
        ``[objects, tokens, mem]`` each.
    """
    if not read:
        nothing = model.maskmem_tpos_enc.new_empty(objects, 0, model.mem_dim, dtype=dtype)
        return nothing, nothing
    features, place = (
        torch.cat(parts).view(objects, sum(sizes), model.mem_dim)
        for parts in zip(*read, strict=True)
    )
    when = torch.cat([row.expand(size, -1) for row, size in zip(temporal, sizes, strict=True)])
    return features.to(dtype), (features.float() + (place + when)).to(dtype)


def memory_tokens(
    out: Mapping[str, Any], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Features and positions of a memory frame, ``[tokens, mem]`` each, on a device or where they are stored."""
    parts = out["maskmem_features"], out["maskmem_pos_enc"][-1]
    features, place = (part.to(device or part.device)[0].flatten(1).t() for part in parts)
    return features, place


def _held(out: dict[str, Any], version: Version, device: torch.device) -> list[Held]:
    """What is held of a conditioning frame, anew where a client has put another memory there.

    Nothing where results are kept away from the device to save memory.
    """
    if out["maskmem_features"].device != device:
        return []
    notes, features = out.setdefault(KEY, {}), out["maskmem_features"]
    before, copied = notes.get("held from", (None, None))
    rewritten = before is not features or (copied is not None and not torch.equal(copied, features))
    if "held" not in notes or notes["held"].version != version or rewritten:
        notes["held"] = Held(version)
        # what a client writes into a tensor can be noticed on a CPU alone: elsewhere the host would wait
        notes["held from"] = features, features.clone() if device.type == "cpu" else None
    return [notes["held"]]


def _release(prompts: Iterable[dict[str, Any]], held: list[Held]) -> None:
    """Let go of projections of conditioning frames that are not read as such now."""
    for out in prompts:
        notes = out.get(KEY, {})
        if "held" in notes and not any(notes["held"] is one for one in held):
            del notes["held"], notes["held from"]


def read(bank: Bank, layer: int) -> Read:
    """What a layer reads of a bank."""
    whole, pruned = bank.tensors, bank.tensors.pruned
    if pruned is None:
        nothing = torch.empty(len(whole.values), 0, dtype=torch.int64, device=whole.values.device)
        return Read(whole.values, whole.keyed, nothing)
    first = len(bank.whole) * bank.layout.tokens

    def with_kept(all_of: Tensor, some: Tensor) -> Tensor:
        return torch.cat([all_of[:, :first], *pruned.of_layer(some, layer), all_of[:, first:]], 1)

    kept = torch.cat([of_frame[layer] for of in pruned.kept for of_frame in of])
    values, keyed = with_kept(whole.values, pruned.values), with_kept(whole.keyed, pruned.keyed)
    return Read(values, keyed, kept.view(len(pruned.kept), -1))


def key_ids(bank: Bank, layer: int, b: int) -> Tensor | None:
    """Which of a dense run's keys a layer reads of object `b`, int64 in the order of `read`; None for all of them."""
    layout, pruned, device = bank.layout, bank.tensors.pruned, bank.tensors.values.device
    if pruned is None:
        return None
    every = torch.arange(layout.tokens, device=device)
    pieces = [every + f * layout.tokens for f in bank.whole]
    for f, per_layer in zip(pruned.frames, pruned.kept[b], strict=True):
        pieces.append(per_layer[layer] + f * layout.tokens)
    pieces.append(torch.arange(layout.frame_keys, layout.keys, device=device))
    return torch.cat(pieces)


def _pointers(
    model: SAM2Base, plans: list[Plan], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Values and keys' inputs of object pointers split into tokens, ``[objects, pointers * tokens, mem]`` each."""
    layout = plans[0].layout
    found = [out["obj_ptr"].to(device) for one in plans for out in one.stored[len(layout.frames) :]]
    tokens = torch.cat(found).reshape(len(plans), -1, model.mem_dim)  # pointer by pointer
    values = tokens.to(dtype)
    if not model.add_tpos_enc_to_obj_ptrs:
        return values, values
    distances = to_device(torch.tensor([p.distance for p in layout.pointers]), device)
    limit = layout.pointer_limit - 1
    width = model.hidden_dim if model.proj_tpos_enc_in_obj_ptrs else model.mem_dim
    position = model.obj_ptr_tpos_proj(get_1d_sine_pe(distances / limit, dim=width)).float()
    when = position.repeat_interleave(layout.pointer_tokens, dim=0)
    return values, (tokens.float() + when).to(dtype)
