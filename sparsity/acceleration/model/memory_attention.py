"""Memory attention over kept tokens (SMR), in the fastest exact formulation.

The keys of each memory frame are gathered *before* they are projected, and every kept token keeps the
rotary phase of its own place on the grid (method 4.5). Three rewrites are exact: the rotation works on
channels sorted into real and imaginary halves (a permutation of the projections' rows, which no product of
q and k notices); where that is faster, values are the raw memory tokens and the value and output
projections follow as one map (softmax rows sum to one, so biases pass through); the first self-attention,
which no object has touched yet, is shared by all objects. Objects whose memory is alike but for its content are read in
one call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from sam2.modeling.memory_attention import MemoryAttentionLayer
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from probes.seam import Seam
from sparsity.acceleration.model.attention import CLEARLY, attend, blocked, fastest, fused
from sparsity.acceleration.model.bank import Alike, Collected, Memory, Read, join, key_ids, read
from sparsity.acceleration.model.graphs import Run, plainly
from sparsity.acceleration.model.linear import Linear, Mlp, Norm, Phases, halves, rotated
from sparsity.acceleration.model.saliency import Watch
from sparsity.acceleration.model.weights import new_version
from sparsity.acceleration.model.windows import to_device
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.select import top_tokens

Chosen = tuple[Tensor, Tensor, Tensor]
"""Places, features and positions of tokens, layer after layer."""


@dataclass
class Recall:
    """What came of it.

    Attributes
    ----------
    keys_used, prunable_used
        Keys read, and those of pruned frames among them, per layer.
    pruned_frames
        Memory frames that were read in part.
    chosen
        Newly chosen tokens by memory frame: places, features and positions as in
        `sparsity.techniques.retrieval.ChosenTokens`.
    queries_share
        Share of the frame's tokens that read memory.
    added
        What was added to the features, ``[tokens, C]`` float32, where it will be asked for.
    """

    keys_used: list[int] = field(default_factory=list)
    prunable_used: list[int] = field(default_factory=list)
    pruned_frames: int = 0
    chosen: dict[int, Chosen] = field(default_factory=dict)
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

Given = tuple[Tensor, Tensor, Tensor | None, Readers | None, list[Collected], list[Tensor]]

Made = tuple[Tensor, list[dict[int, Chosen]], Tensor | None]
"""Features of all objects, the tokens chosen of each bank's frames ``[B, ...]``, and what was added to the features."""


class SparseMemoryAttention:
    """SAM 2's memory attention on kept keys, with weights in one dtype.

    Parameters
    ----------
    model
        Its weights are cast and packed once.
    dtype
        Of the products.
    linear
        Kind of its linear layers.
    """

    def __init__(
        self, model: SAM2Base, dtype: torch.dtype, seam: Seam, linear: type[Linear] = Linear
    ) -> None:
        self.model, self.dtype, self.seam = model, dtype, seam
        self.layers = [MemoryLayer(layer, dtype, linear) for layer in model.memory_attention.layers]
        self.norm = model.memory_attention.norm
        self.version = new_version(dtype)
        self._phases: dict[tuple[int, torch.device], Phases] = {}

    def __call__(
        self,
        feature: Tensor,
        position: Tensor,
        banks: list[Alike],
        retrieval: Retrieval,
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
            Of all objects, those whose memory is alike together.
        retrieval
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

        def attend(given: Given) -> tuple[Made, list[tuple[Kept, Kept]]]:
            feature, position, sample, readers, collected, rows = given
            memories = [
                (of, join(self.model, self.dtype, bank, own))
                for (of, bank), own in zip(banks, collected, strict=True)
            ]
            made = self._attend(
                feature, position, memories, rows, retrieval, exact, sample, readers
            )
            held = [
                (_new(now.keys, before.keys), _new(now.values, before.values))
                for (_, memory), own in zip(memories, collected, strict=True)
                for now, before in zip(chain(*memory.held), chain(*own.held), strict=True)
            ]
            return made, held

        kind = "memory attention", exact, retrieval, tuple([(of, bank.kind) for of, bank in banks])
        collected = [bank.collected for _, bank in banks]
        rows = [to_device(torch.tensor(of), feature.device) for of, _ in banks if len(banks) > 1]
        given = feature, position, sample, readers, collected, rows
        (x, chosen, added), made = run(kind, attend, given)
        every = [one for own in collected for one in chain(*own.held)]
        for held, (keys, values) in zip(every, made, strict=True):
            held.keys.update(keys)
            held.values.update(values)
        share = 1.0 if readers is None else len(readers.places) / len(feature)
        recalls = [Recall(queries_share=share) for _ in range(len(x))]
        for (of, bank), by_frame in zip(banks, chosen, strict=True):
            kept = [bank.counts_of(layer) for layer in range(len(self.layers))]
            whole = bank.layout.keys - len(bank.pruned) * bank.layout.tokens
            for b, i in enumerate(of):
                recall = recalls[i]
                recall.keys_used = [whole + count for count in kept]
                recall.prunable_used, recall.pruned_frames = list(kept), len(bank.pruned)
                recall.added = None if added is None else added[i]
                for f, (places, features, place) in by_frame.items():
                    recall.chosen[f] = places[b], features[b], place[b]
        return x, recalls

    def _attend(
        self,
        feature: Tensor,
        position: Tensor,
        memories: list[tuple[tuple[int, ...], Memory]],
        rows: list[Tensor],
        retrieval: Retrieval,
        exact: bool,
        sample: Tensor | None,
        readers: Readers | None,
    ) -> Made:
        x, objects = feature.float(), sum(len(of) for of, _ in memories)
        if self.model.memory_attention.pos_enc_at_input:
            x = x + 0.1 * position.float()
        entry, phases, places = x[None], self._rotation(len(x), x.device), None
        own = phases
        if readers is None:
            x = entry.clone()
        else:
            places = readers.places
            x, own = entry.index_select(1, places), phases.at(places)
        if self.seam.editors("memory.layer0.self"):  # which may change each object's by itself
            x = x.expand(objects, -1, -1).clone()
        seen: list[dict[int, list[Tensor]]] = [{} for _ in memories]
        for index, layer in enumerate(self.layers):
            x = layer.remember_itself(x, own, index, self.seam, exact, places)
            if len(x) < objects:
                x = x.expand(objects, -1, -1).clone()
            y = layer.norm2(x)
            for n, ((of, memory), by_frame) in enumerate(zip(memories, seen, strict=True)):
                its = y.index_select(0, rows[n]) if rows else y
                queries = rotated(
                    layer.query(its.view(-1, its.shape[-1])).view(*its.shape[:2], -1), own
                )
                out, saliency = self._recall(
                    index, queries, of, memory, phases, exact, sample, places
                )
                for f, of_frame in zip(memory.bank.measure, saliency, strict=True):
                    by_frame.setdefault(f, []).append(of_frame)
                if rows:
                    x.index_add_(0, rows[n], out.to(x.dtype))
                else:
                    x.add_(out)
            layer.mlp(x)
        few = retrieval.counts(len(self.layers), len(phases.cos))
        chosen: list[dict[int, Chosen]] = [
            {
                f: memory.chosen(f, torch.cat(list(map(top_tokens, per_layer, few)), 1))
                for f, per_layer in by_frame.items()
            }
            for (_, memory), by_frame in zip(memories, seen, strict=True)
        ]
        if readers is not None:
            x = (entry + readers.added).index_copy_(1, readers.places, x)
        added = x - entry if retrieval.readers == "routed" else None
        with torch.autocast(x.device.type, enabled=False):
            return self.norm(x), chosen, added

    def _recall(
        self,
        index: int,
        queries: Tensor,
        of: tuple[int, ...],
        memory: Memory,
        phases: Phases,
        exact: bool,
        sample: Tensor | None,
        places: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Let one layer's queries ``[B, tokens, C]`` read the memory of objects that is alike; give saliency too."""
        layer, what, bank = self.layers[index], read(memory, index), memory.bank
        keys, values, tokens = (
            layer.keys(index, what, memory, phases),
            what.values,
            bank.layout.tokens,
        )
        watch = Watch(tuple(bank.whole.index(f) * tokens for f in bank.measure), tokens, sample)
        project = partial(layer.projected, index, values, memory)
        edited: dict[int, Tensor] = {}
        if self.seam.watched:
            projected, site = project(), f"memory.layer{index}.cross"
            for b, row in enumerate(of):
                q, k, v = (t[b][None, None] for t in (queries, keys, projected))
                ids = key_ids(memory, index, b)
                made = self.seam.pass_by(site, q, k, v, ids, row=row, queries=places)
                if made is not None:
                    edited[b] = layer.out(made.attended()[0, 0])
        # also where edits have the last word: saliency is that of q and k as they were
        out, saliency = layer.recall(queries, keys, values, project, watch, exact)
        for b, instead in edited.items():
            out[b] = instead
        return out, saliency

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


def _together(of_objects: list[Tensor]) -> Tensor:
    """One more dimension, of objects."""
    return of_objects[0][None] if len(of_objects) == 1 else torch.stack(of_objects)


def _new(now: Kept, before: Kept) -> Kept:
    return {index: made for index, made in now.items() if index not in before}


SAVING = 1 / CLEARLY
"""How many times as fast absorbed values must be in float32: they take 5/8 of the operations, which bind there."""


class MemoryLayer:
    """Weights of one memory-attention layer, rows of queries and keys sorted into halves."""

    def __init__(
        self, layer: MemoryAttentionLayer, dtype: torch.dtype, linear: type[Linear]
    ) -> None:
        own, cross = layer.self_attn, layer.cross_attn_image
        self.width = cross.k_proj.out_features
        self.norm1, self.norm2 = Norm(layer.norm1, dtype), Norm(layer.norm2, dtype)
        self.mlp = Mlp(layer.norm3, layer.linear1, layer.linear2, "relu", dtype, linear)
        self.own_query, self.own_key = (linear(*halves(p), dtype) for p in (own.q_proj, own.k_proj))
        self.own_value, self.own_out = linear.of(own.v_proj, dtype), linear.of(own.out_proj, dtype)
        self.query, self.key = (linear(*halves(p), dtype) for p in (cross.q_proj, cross.k_proj))
        self.value, self.out = linear.of(cross.v_proj, dtype), linear.of(cross.out_proj, dtype)
        outer, inner = cross.out_proj.weight.double(), cross.v_proj.weight.double()
        bias = outer @ cross.v_proj.bias.double() + cross.out_proj.bias.double()
        self.value_out = linear(outer @ inner, bias, dtype)

    def remember_itself(
        self, x: Tensor, phases: Phases, index: int, seam: Seam, exact: bool, places: Tensor | None
    ) -> Tensor:
        """Self-attention of ``[B, tokens, C]`` float32, overwritten."""
        b, n, c = x.shape
        y = self.norm1(x).view(b * n, c)
        q = rotated(self.own_query(y).view(b, 1, n, -1), phases)
        k = rotated(self.own_key(y).view(b, 1, n, -1), phases)
        v = self.own_value(y).view(b, 1, n, -1)
        made, site = None, f"memory.layer{index}.self"
        if seam.watched:
            made = seam.pass_by(site, q, k, v, places, queries=places)
        if made is not None:
            attended = made.attended()
        else:
            attended = attend(q, k, v) if exact else fused(q, k, v)
        return x.add_(self.own_out(attended.reshape(b * n, -1)).view(b, n, c))

    def keys(self, index: int, what: Read, memory: Memory, phases: Phases) -> Tensor:
        """Project keys ``[B, keys, C]`` and turn those of memory frames; those that are held, once for all frames to come."""
        tokens, width, known = memory.bank.layout.tokens, self.width, memory.held
        held, first = len(known) * tokens, len(memory.bank.whole) * tokens
        objects, last = len(what.keyed), first + what.kept.shape[1]
        keys = what.keyed.new_empty(*what.keyed.shape[:2], width)
        for n, pieces in enumerate(known):
            span = slice(n * tokens, (n + 1) * tokens)
            for b, piece in enumerate(pieces):
                if index not in piece.keys:
                    piece.keys[index] = rotated(self.key(what.keyed[b, span]), phases)
            keys[:, span] = _together([piece.keys[index] for piece in pieces])
        fresh = self.key(what.keyed[:, held:].flatten(0, 1))
        fresh = fresh.view(objects, what.keyed.shape[1] - held, width)
        rotated(
            fresh[:, : first - held].unflatten(1, (-1, tokens)),
            phases,
            out=keys[:, held:first].unflatten(1, (-1, tokens)),
        )
        rotated(fresh[:, first - held : last - held], phases.at(what.kept), out=keys[:, first:last])
        keys[:, last:] = fresh[:, last - held :]
        return keys

    def projected(self, index: int, values: Tensor, memory: Memory) -> Tensor:
        """Values ``[B, keys, mem]`` projected, those that are held once for all."""
        tokens, known = memory.bank.layout.tokens, memory.held
        held, made = len(known) * tokens, []
        for n, pieces in enumerate(known):
            for b, piece in enumerate(pieces):
                if index not in piece.values:
                    piece.values[index] = self.value(values[b, n * tokens : (n + 1) * tokens])
            made.append(_together([piece.values[index] for piece in pieces]))
        fresh = self.value(values[:, held:].flatten(0, 1))
        fresh = fresh.view(len(values), values.shape[1] - held, self.width)
        return torch.cat([*made, fresh], 1)

    def recall(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        project: Callable[[], Tensor],
        watch: Watch,
        exact: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """Cross-attention of ``[B, tokens, C]`` to memory ``[B, keys, C]``, ``[B, keys, mem]``; projected.

        Parameters
        ----------
        project
            Gives the values projected, ``[B, keys, C]``.
        watch
            Frames whose token saliency is wanted.
        exact
            Whether a formulation other than stock's may be taken.

        Returns
        -------
        tuple
            ``[B, tokens, C]``, and the saliency of each watched frame, ``[B, tokens]``.
        """
        q, k, shape = queries[:, None], keys[:, None], (*queries.shape[:2], -1)

        def projected() -> tuple[Tensor, list[Tensor]]:
            out = F.scaled_dot_product_attention(q, k, project()[:, None])
            out = self.out(out.flatten(0, 2)).view(shape)
            return out, watch.measure(queries, keys) if watch.firsts else []

        def absorbed() -> tuple[Tensor, list[Tensor]]:
            seen = [watch.seen(its) for its in queries]

            def see(weights: Tensor, row: int, b: int) -> None:
                for frame in seen[b]:
                    frame.see(weights, row)

            out = self.value_out(blocked(q, k, values[:, None], see).flatten(0, 2)).view(shape)
            return out, [torch.stack([f.result() for f in of]) for of in zip(*seen, strict=True)]

        candidates = {"fused": projected, "absorbed": absorbed} if exact else {"fused": projected}
        what = "recall and watch" if watch.firsts else "recall"
        clearly = SAVING if queries.dtype == torch.float32 else CLEARLY
        return fastest(what, candidates, queries, keys.shape[1], clearly)
