"""What memory attention reads of some objects on one frame: memory frames in whole or in part, and pointers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor

from probes.layout import MemoryLayout
from sparsity.acceleration.model.weights import Version
from sparsity.acceleration.model.windows import to_device
from sparsity.techniques import KEY
from sparsity.techniques.retrieval import ChosenTokens, Counts, Stored

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
class Collected:
    """Memory of B objects as it is stored.

    Attributes
    ----------
    features, place
        Of the W frames that are read whole, object after object, ``[B * W, mem, h, w]``; grid positions ``[1, mem, h, w]``
        where all have the same.
    some
        What is read of the frames that are read in part, frame after frame and on each layer after layer: features and
        positions ``[B, tokens, mem]``, and places on the grid, int64 ``[B, tokens]``; None where there are none.
    pointers, when
        Object pointers ``[B, pointers, C]`` and their temporal positions ``[pointers, mem]`` float32; None without.
    held
        Projections of the first ``len(held)`` whole frames, of each object.
    """

    features: Tensor
    place: Tensor
    some: tuple[Tensor, Tensor, Tensor] | None
    pointers: Tensor | None
    when: Tensor | None
    held: list[list[Held]]


@dataclass(frozen=True)
class Bank:
    """Memory of B objects that is alike but for its content.

    Attributes
    ----------
    layout
        Which key of a dense run is what; of the first object.
    counts
        How many tokens each layer reads of each frame in ``layout.frames``; None for all.
    measure
        Positions in ``layout.frames`` of (whole) frames whose token saliency is to be measured now.
    collected
        What lies there.
    """

    layout: MemoryLayout
    counts: tuple[Counts | None, ...]
    measure: tuple[int, ...]
    collected: Collected

    @cached_property
    def whole(self) -> tuple[int, ...]:
        """Positions in ``layout.frames`` of the frames that are read whole, ascending."""
        return tuple(f for f, counts in enumerate(self.counts) if counts is None)

    @cached_property
    def pruned(self) -> tuple[int, ...]:
        """Positions of those that are read in part."""
        return tuple(f for f, counts in enumerate(self.counts) if counts is not None)

    @cached_property
    def kind(self) -> Hashable:
        """All that tells one bank's operations from another's, but the sizes of tensors."""
        positions = tuple([entry.position for entry in self.layout.frames])
        pointer_tokens = self.layout.pointer_tokens
        return self.layout.tokens, pointer_tokens, positions, self.counts, self.measure

    def of_layer(self, tensor: Tensor, layer: int) -> list[Tensor]:
        """What a layer reads of each pruned frame, of a tensor ``[B, tokens, ...]`` as in `Collected.some`."""
        counts = [of_frame for of_frame in self.counts if of_frame is not None]
        pieces = tensor.split([count for of_frame in counts for count in of_frame], 1)
        return list(pieces)[layer :: len(counts[0])]

    def counts_of(self, layer: int) -> int:
        """How many tokens of pruned frames a layer reads."""
        return sum(counts[layer] for counts in self.counts if counts is not None)


@dataclass(frozen=True)
class Memory:
    """A bank joined to what is projected, in the products' dtype.

    Attributes
    ----------
    bank
        Which key is what.
    values
        Tokens of the frames that are read whole, then the pointers', ``[B, W * tokens + pointers, mem]``.
    keyed
        The same with positions added: the input of the key projection.
    some
        Values, keys' inputs and places of the frames that are read in part, as in `Collected.some`; None where there are none.
    stored
        Features and positions of the frames that are read whole, as they are stored, ``[B, W, tokens, mem]``.
    held
        As in `Collected`; what it comes to hold is its own.
    """

    bank: Bank
    values: Tensor
    keyed: Tensor
    some: tuple[Tensor, Tensor, Tensor] | None
    stored: tuple[Tensor, Tensor]
    held: list[list[Held]]

    def chosen(self, f: int, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Places ``[B, K]`` on a whole frame, and the features and positions ``[B, K, mem]`` that are stored there."""
        w = self.bank.whole.index(f)
        features, position = (of[:, w] for of in self.stored)
        at = places[..., None].expand(-1, -1, features.shape[-1])
        return places, features.gather(1, at), position.gather(1, at)


Alike = tuple[tuple[int, ...], Bank]
"""Which objects, and their memory."""


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

    @cached_property
    def counts(self) -> tuple[Counts | None, ...]:
        """How many tokens of each memory frame each layer reads; None for all."""
        return tuple([None if chosen is None else chosen.counts for chosen in self.tokens])

    @property
    def kind(self) -> Hashable:
        """Objects of which this is equal are read together."""
        return self.layout.kind, self.counts, self.measure, len(self.held)


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
    layout = first.layout
    whole = [f for f, counts in enumerate(first.counts) if counts is None]
    read = [one.stored[f] for one in plans for f in whole]
    places = [out["maskmem_pos_enc"][-1] for out in read]
    # sam2 makes them once, and every result has a view of these
    same = len({(place.data_ptr(), place.stride()[1:], place.device) for place in places}) == 1
    some = pointers = when = None
    if len(whole) < len(first.counts):
        chosen = [[tokens for tokens in one.tokens if tokens is not None] for one in plans]
        several = [[(c.features, c.position, c.places) for c in of] for of in chosen]
        features, position, kept = (
            _joined(parts, device).unflatten(0, (len(plans), -1))
            for parts in zip(*chain.from_iterable(several), strict=True)
        )
        some = features, position, kept
    if layout.pointers:
        every = [out["obj_ptr"] for one in plans for out in one.stored[len(layout.frames) :]]
        pointers = _joined(every, device).unflatten(0, (len(plans), -1))
        when = _pointed(model, layout, device) if model.add_tpos_enc_to_obj_ptrs else None
    held = [list(of_slot) for of_slot in zip(*(one.held for one in plans), strict=True)]
    collected = Collected(
        _joined([out["maskmem_features"] for out in read], device),
        _joined([places[0][0][None]] if same else places, device), some, pointers, when, held,
    )  # fmt: skip
    return Bank(layout, first.counts, first.measure, collected)


def _joined(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Tensors in one, on a device; what is there already isn't asked to go there, of many."""
    if len(parts) == 1:
        return parts[0].to(device)
    return torch.cat([part if part.device == device else part.to(device) for part in parts])


def _pointed(model: SAM2Base, layout: MemoryLayout, device: torch.device) -> Tensor:
    """Temporal positions of a layout's pointers, ``[pointers, mem]`` float32; their sines are taken on the host."""
    distances = torch.tensor([pointer.distance for pointer in layout.pointers])
    width = model.hidden_dim if model.proj_tpos_enc_in_obj_ptrs else model.mem_dim
    sines = get_1d_sine_pe(distances / (layout.pointer_limit - 1), dim=width)
    found: Tensor = model.obj_ptr_tpos_proj(to_device(sines, device)).float()
    return found


def join(model: SAM2Base, dtype: torch.dtype, bank: Bank, given: Collected) -> Memory:
    """Join what was collected for a bank to what is projected: values, and with positions keys' inputs."""
    layout, whole = bank.layout, bank.whole
    temporal = [
        model.maskmem_tpos_enc[model.num_maskmem - entry.position - 1].view(1, -1)
        for entry in layout.frames
    ]
    features = given.features.flatten(2).transpose(1, 2).unflatten(0, (-1, len(whole)))
    place = given.place.flatten(2).transpose(1, 2)
    place = place[None] if len(place) == 1 else place.unflatten(0, (-1, len(whole)))
    objects, mem = len(features), features.shape[-1]

    def joined(features: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        keyed = (features.float() + position).to(dtype)
        return features.reshape(objects, -1, mem).to(dtype), keyed.reshape(objects, -1, mem)

    parts = [joined(features, place + torch.stack([temporal[f] for f in whole]))]
    if given.pointers is not None:
        tokens = given.pointers.reshape(objects, -1, mem)  # pointer by pointer
        if given.when is None:
            parts.append((tokens.to(dtype), tokens.to(dtype)))
        else:
            when = given.when[:, None].expand(-1, layout.pointer_tokens, -1)
            parts.append(joined(tokens, when.reshape(-1, mem)))
    values, keyed = (
        of_kind[0] if len(of_kind) == 1 else torch.cat(of_kind, 1)
        for of_kind in zip(*parts, strict=True)
    )
    some = None
    if given.some is not None:
        read, position, places = given.some
        spans = [temporal[f].expand(sum(bank.counts[f] or ()), -1) for f in bank.pruned]
        some = *joined(read, position + torch.cat(spans)), places
    # what is held is a call's own, as its keys and values are made in it
    held = [[Held(h.version, dict(h.keys), dict(h.values)) for h in of] for of in given.held]
    return Memory(bank, values, keyed, some, (features, place.expand_as(features)), held)


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


def read(memory: Memory, layer: int) -> Read:
    """What a layer reads of a memory."""
    bank, values, keyed = memory.bank, memory.values, memory.keyed
    if memory.some is None:
        nothing = torch.empty(len(values), 0, dtype=torch.int64, device=values.device)
        return Read(values, keyed, nothing)
    first = len(bank.whole) * bank.layout.tokens

    def with_kept(all_of: Tensor, some: Tensor) -> Tensor:
        return torch.cat([all_of[:, :first], *bank.of_layer(some, layer), all_of[:, first:]], 1)

    some_values, some_keyed, places = memory.some
    kept = torch.cat(bank.of_layer(places, layer), 1)
    return Read(with_kept(values, some_values), with_kept(keyed, some_keyed), kept)


def key_ids(memory: Memory, layer: int, b: int) -> Tensor | None:
    """Which of a dense run's keys a layer reads of object `b`, int64 in the order of `read`; None for all of them."""
    bank, layout, device = memory.bank, memory.bank.layout, memory.values.device
    if memory.some is None:
        return None
    every = torch.arange(layout.tokens, device=device)
    pieces = [every + f * layout.tokens for f in bank.whole]
    kept = bank.of_layer(memory.some[2][b : b + 1], layer)
    pieces += [places[0] + f * layout.tokens for f, places in zip(bank.pruned, kept, strict=True)]
    pieces.append(torch.arange(layout.frame_keys, layout.keys, device=device))
    return torch.cat(pieces)
