"""Memory attention over kept tokens (SMR), in the fastest exact formulation.

The keys of each memory frame are gathered *before* they are projected, and every kept token keeps the
rotary phase of its own place on the grid (method 4.5). Three rewrites are exact: the rotation works on
channels sorted into real and imaginary halves (a permutation of the projections' rows, which no product of
q and k notices); where that is faster, values are the raw memory tokens and the value and output
projections follow as one map (softmax rows sum to one, so biases pass through); the first self-attention,
which no object has touched yet, is shared by all objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from probes.seam import Seam
from sparsity.acceleration.bank import Bank, BankTensors, Read, key_ids, read
from sparsity.acceleration.derived import Version
from sparsity.acceleration.graphs import Run, plainly
from sparsity.acceleration.memory_layer import MemoryLayer
from sparsity.acceleration.rotary import Phases, rotated
from sparsity.acceleration.token_saliency import Watch
from sparsity.profile import Memory
from sparsity.select import keep_count, top_tokens

_versions = count()
"""Tell one set of weights from another, also in a state that was copied."""


@dataclass
class Recall:
    """What came of it.

    Attributes
    ----------
    keys_used, prunable_used
        Keys read, and those of pruned frames among them, per layer.
    chosen
        Newly chosen tokens by memory frame, per layer.
    queries_share
        Share of the frame's tokens that read memory.
    added
        What was added to the features, ``[tokens, C]`` float32, where it will be asked for.
    """

    keys_used: list[int] = field(default_factory=list)
    prunable_used: list[int] = field(default_factory=list)
    chosen: dict[int, list[Tensor]] = field(default_factory=dict)
    queries_share: float = 1.0
    added: Tensor | None = None


@dataclass(frozen=True)
class Readers:
    """Tokens of the current frame that read memory, and what the others get instead.

    Attributes
    ----------
    places
        int64 ``[R]``. They attend to memory and among themselves.
    added
        For each object what memory attention added when each token read memory last, ``[objects, tokens, C]`` float32.
    """

    places: Tensor
    added: Tensor


Kept = dict[int, Tensor]
"""`Held.keys` or `Held.values`."""

Given = tuple[Tensor, Tensor, Tensor | None, Readers | None, list[BankTensors]]


class SparseMemoryAttention:
    """SAM 2's memory attention on kept keys, with weights in one dtype.

    Parameters
    ----------
    model
        Its weights are cast and packed once.
    dtype
        Of the products.
    """

    def __init__(self, model: SAM2Base, dtype: torch.dtype, seam: Seam) -> None:
        self.model, self.dtype, self.seam = model, dtype, seam
        self.layers = [MemoryLayer(layer, dtype) for layer in model.memory_attention.layers]
        self.norm = model.memory_attention.norm
        self.version: Version = (next(_versions), dtype)
        self._phases: dict[tuple[int, torch.device], Phases] = {}

    def __call__(
        self,
        feature: Tensor,
        position: Tensor,
        banks: list[Bank],
        memory: Memory,
        *,
        exact: bool,
        sample: Tensor | None,
        readers: Readers | None = None,
        run: Run = plainly,
    ) -> tuple[Tensor, list[Recall]]:
        """Condition a frame's features on each object's memory.

        Parameters
        ----------
        feature, position
            Of the current frame, ``[tokens, C]``; the same for all objects.
        banks
            One per object.
        memory
            Shares to keep and rows to measure saliency from.
        exact
            Whether formulations other than stock's fused attention may be taken.
        sample
            Query rows that saliency is measured from; None for all.
        readers
            The tokens that read memory; None for all.
        run
            Runs all of it: a function of tensors.

        Returns
        -------
        tuple
            ``[objects, tokens, C]`` float32, and what each object recalled.
        """

        def attend(given: Given) -> tuple[Tensor, list[Recall], list[tuple[Kept, Kept]]]:
            feature, position, sample, readers, tensors = given
            read = [bank.with_tensors(own) for bank, own in zip(banks, tensors, strict=True)]
            x, recalls = self._attend(feature, position, read, memory, exact, sample, readers)
            held = [
                (_new(now.keys, before.keys), _new(now.values, before.values))
                for bank, own in zip(read, tensors, strict=True)
                for now, before in zip(bank.held, own.held, strict=True)
            ]
            return x, recalls, held

        kind = "memory attention", exact, memory, tuple(bank.kind for bank in banks)
        tensors = [bank.tensors for bank in banks]
        x, recalls, made = run(kind, attend, (feature, position, sample, readers, tensors))
        for held, (keys, values) in zip((h for b in banks for h in b.held), made, strict=True):
            held.keys.update(keys)
            held.values.update(values)
        return x, recalls

    def _attend(
        self,
        feature: Tensor,
        position: Tensor,
        banks: list[Bank],
        memory: Memory,
        exact: bool,
        sample: Tensor | None,
        readers: Readers | None,
    ) -> tuple[Tensor, list[Recall]]:
        x = feature.float()
        if self.model.memory_attention.pos_enc_at_input:
            x = x + 0.1 * position.float()
        entry, phases, places = x[None], self._rotation(len(x), x.device), None
        own = phases
        if readers is None:
            x = entry.clone()
        else:
            places = readers.places
            x, own = entry.index_select(1, places), phases.at(places)
        recalls = [Recall(queries_share=x.shape[1] / entry.shape[1]) for _ in banks]
        for index, layer in enumerate(self.layers):
            x = layer.remember_itself(x, own, index, self.seam, exact, places)
            if len(x) < len(banks):
                x = x.expand(len(banks), -1, -1).clone()
            y = layer.norm2(x)
            for i, (bank, recall) in enumerate(zip(banks, recalls, strict=True)):
                queries = rotated(layer.query(y[i]), own)
                out = self._recall(
                    index, queries, bank, recall, memory, phases, exact, sample, i, places
                )
                x[i].add_(out)
            x.add_(layer.down(layer.up(layer.norm3(x).flatten(0, 1), "relu")).view_as(x))
        if readers is not None:
            x = (entry + readers.added).index_copy_(1, readers.places, x)
        if memory.readers == "routed":
            for recall, out in zip(recalls, x, strict=True):
                recall.added = out - entry[0]
        with torch.autocast(x.device.type, enabled=False):
            return self.norm(x), recalls

    def _recall(
        self,
        index: int,
        queries: Tensor,
        bank: Bank,
        recall: Recall,
        memory: Memory,
        phases: Phases,
        exact: bool,
        sample: Tensor | None,
        row: int,
        places: Tensor | None,
    ) -> Tensor:
        """Let one layer's queries ``[tokens, C]`` read one object's memory; note what was read and chosen."""
        layer, what, tokens = self.layers[index], read(bank, index), bank.layout.tokens
        share = memory.keep[index] if isinstance(memory.keep, tuple) else memory.keep
        few = keep_count(share, tokens)
        keys, values = self._keys(index, what, bank, phases), what.values
        firsts = tuple(bank.whole.index(f) * tokens for f in bank.measure)
        watch = Watch(firsts, tokens, sample)
        cut = None
        if bank.cut:  # what is left of the newest frame is chosen before it is read
            saliency = watch.measure(queries, keys)
            watch = replace(watch, firsts=())
            cut = top_tokens(saliency[-1], few)
            keys, values = (
                torch.cat([part[: firsts[-1]], part[firsts[-1] + cut], part[firsts[-1] + tokens :]])
                for part in (keys, values)
            )
        project = partial(self._projected, index, values, bank)
        if self.seam.observers:
            q, k, v = queries[None, None], keys[None, None], project()[None, None]
            ids, site = key_ids(bank, index, cut), f"memory.layer{index}.cross"
            self.seam.tell(site, q, k, v, ids, row=row, queries=places)
        out, seen = layer.recall(queries, keys, values, project, watch, exact)
        for f, found in zip(bank.measure, saliency if bank.cut else seen, strict=True):
            recall.chosen.setdefault(f, []).append(top_tokens(found, few))
        recall.keys_used.append(len(keys))
        recall.prunable_used.append(len(what.kept) + (0 if cut is None else few))
        return out

    def _keys(self, index: int, what: Read, bank: Bank, phases: Phases) -> Tensor:
        """Project keys and turn those of memory frames; those that are held, once for all frames to come."""
        layer, tokens, width = self.layers[index], bank.layout.tokens, self.layers[index].width
        held, first = len(bank.held) * tokens, len(bank.whole) * tokens
        last = first + len(what.kept)
        keys = what.keyed.new_empty(len(what.keyed), width)
        for piece, span in zip(bank.held, what.keyed[:held].split(tokens), strict=False):
            if index not in piece.keys:
                piece.keys[index] = rotated(layer.key(span), phases)
        for n, piece in enumerate(bank.held):
            keys[n * tokens : (n + 1) * tokens] = piece.keys[index]
        fresh = layer.key(what.keyed[held:])
        rotated(
            fresh[: first - held].view(-1, tokens, width),
            phases,
            out=keys[held:first].view(-1, tokens, width),
        )
        rotated(fresh[first - held : last - held], phases.at(what.kept), out=keys[first:last])
        keys[last:] = fresh[last - held :]
        return keys

    def _projected(self, index: int, values: Tensor, bank: Bank) -> Tensor:
        """Values ``[keys, mem]`` projected, those that are held once for all."""
        layer, tokens = self.layers[index], bank.layout.tokens
        held = len(bank.held) * tokens
        for piece, span in zip(bank.held, values[:held].split(tokens), strict=False):
            if index not in piece.values:
                piece.values[index] = layer.value(span)
        return torch.cat(
            [*(piece.values[index] for piece in bank.held), layer.value(values[held:])]
        )

    def _rotation(self, tokens: int, device: torch.device) -> Phases:
        key = (tokens, device)
        if key not in self._phases:
            side = round(tokens**0.5)
            attention = self.model.memory_attention.layers[0].cross_attn_image
            cis = attention.compute_cis(end_x=side, end_y=side).to(device)
            self._phases[key] = Phases(
                cis.real.contiguous().to(self.dtype), cis.imag.contiguous().to(self.dtype)
            )
        return self._phases[key]


def _new(now: Kept, before: Kept) -> Kept:
    return {index: made for index, made in now.items() if index not in before}
