"""Memory attention over kept tokens (SMR), in the fastest exact formulation.

The keys of each memory frame are gathered *before* they are projected, and every kept token keeps the
rotary phase of its own place on the grid (method 4.5). Three rewrites are exact: the rotation works on
channels sorted into real and imaginary halves (a permutation of the projections' rows, which no product of
q and k notices); where that is faster, values are the raw memory tokens and the value and output
projections follow as one map (softmax rows sum to one, so biases pass through); the first self-attention,
which no object has touched yet, is shared by all objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from sam2.modeling.memory_attention import MemoryAttentionLayer
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from probes.seam import Seam
from sparsity.acceleration.attention import attend, blocked, fastest, fused
from sparsity.acceleration.bank import Bank, key_ids, read
from sparsity.acceleration.compiled import compilable
from sparsity.acceleration.linear import Linear, Norm, product
from sparsity.profile import Memory
from sparsity.select import keep_count, sample_rows, top_tokens

SALIENCY_ROWS = 512
"""Query rows of one block when token saliency is measured."""

SUMMED_ROWS = 64
"""Rows that are summed in the products' dtype before float32 takes over."""


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


def why_not_sparse(model: SAM2Base) -> str | None:
    """Say why this memory attention does not fit a model, or None if it does."""
    for layer in model.memory_attention.layers:
        if layer.self_attn.num_heads != 1 or layer.cross_attn_image.num_heads != 1:
            return "its memory attention has several heads"
        if (
            layer.pos_enc_at_attn
            or layer.pos_enc_at_cross_attn_queries
            or not layer.pos_enc_at_cross_attn_keys
        ):
            return "its memory attention adds positions elsewhere than SAM 2's"
        if layer.activation_str != "relu":
            return f"its memory attention uses {layer.activation_str}, not relu"
    return None


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
        self.layers = [_Layer(layer, dtype) for layer in model.memory_attention.layers]
        self.norm = model.memory_attention.norm
        self._phases: dict[tuple[int, torch.device], Phases] = {}

    def __call__(
        self,
        feature: Tensor,
        position: Tensor,
        banks: list[Bank],
        memory: Memory,
        *,
        exact: bool,
        seed: int,
        readers: Readers | None = None,
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
        seed
            For the sample of query rows.
        readers
            The tokens that read memory; None for all.

        Returns
        -------
        tuple
            ``[objects, tokens, C]`` float32, and what each object recalled.
        """
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
                what = read(bank, index)
                keys = self._keys(layer, what.keyed, len(bank.whole), what.kept, phases)
                self._choose(index, queries, keys, bank, recall, memory, seed)
                recall.keys_used.append(len(keys))
                recall.prunable_used.append(len(what.kept))
                if self.seam.observers:
                    q, k, v = queries[None, None], keys[None, None], layer.value(what.values)
                    ids = key_ids(bank, index)
                    site = f"memory.layer{index}.cross"
                    self.seam.tell(site, q, k, v[None, None], ids, row=i, queries=places)
                x[i].add_(layer.recall(queries, keys, what.values, exact))
            x.add_(layer.down(layer.up(layer.norm3(x).flatten(0, 1), "relu")).view_as(x))
        if readers is not None:
            x = (entry + readers.added).index_copy_(1, readers.places, x)
        if memory.readers == "routed":
            for recall, out in zip(recalls, x, strict=True):
                recall.added = out - entry[0]
        with torch.autocast(x.device.type, enabled=False):
            return self.norm(x), recalls

    def _choose(
        self,
        index: int,
        queries: Tensor,
        keys: Tensor,
        bank: Bank,
        recall: Recall,
        memory: Memory,
        seed: int,
    ) -> None:
        """Choose tokens of frames that a layer recollects for the first time."""
        tokens = bank.layout.tokens
        share = memory.keep[index] if isinstance(memory.keep, tuple) else memory.keep
        rows = tokens if memory.queries == "all" else memory.queries
        for f in bank.measure:
            first = bank.whole.index(f) * tokens
            saliency = token_saliency(queries, keys[first : first + tokens], rows, seed)
            recall.chosen.setdefault(f, []).append(top_tokens(saliency, keep_count(share, tokens)))

    def _keys(
        self, layer: _Layer, keyed: Tensor, whole: int, kept: Tensor, phases: Phases
    ) -> Tensor:
        """Project keys and turn those of memory frames: `whole` whole ones, then the tokens `kept`."""
        keys = layer.key(keyed)
        tokens = len(phases.cos)
        first, last = whole * tokens, whole * tokens + len(kept)
        turned = torch.empty_like(keys)
        turned[last:] = keys[last:]
        rotated(
            keys[:first].view(whole, tokens, -1), phases, out=turned[:first].view(whole, tokens, -1)
        )
        rotated(keys[first:last], phases.at(kept), out=turned[first:last])
        return turned

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


class _Layer:
    """Weights of one memory-attention layer, rows of queries and keys sorted into halves."""

    def __init__(self, layer: MemoryAttentionLayer, dtype: torch.dtype) -> None:
        own, cross = layer.self_attn, layer.cross_attn_image
        self.norm1, self.norm2, self.norm3 = (
            Norm(n, dtype) for n in (layer.norm1, layer.norm2, layer.norm3)
        )
        self.own_query, self.own_key = (
            Linear(*_halves(p), dtype) for p in (own.q_proj, own.k_proj)
        )
        self.own_value, self.own_out = Linear.of(own.v_proj, dtype), Linear.of(own.out_proj, dtype)
        self.query, self.key = (Linear(*_halves(p), dtype) for p in (cross.q_proj, cross.k_proj))
        self.value, self.out = Linear.of(cross.v_proj, dtype), Linear.of(cross.out_proj, dtype)
        outer, inner = cross.out_proj.weight.double(), cross.v_proj.weight.double()
        bias = outer @ cross.v_proj.bias.double() + cross.out_proj.bias.double()
        self.value_out = Linear(outer @ inner, bias, dtype)
        self.up, self.down = Linear.of(layer.linear1, dtype), Linear.of(layer.linear2, dtype)

    @compilable
    def remember_itself(
        self,
        x: Tensor,
        phases: Phases,
        index: int,
        seam: Seam,
        exact: bool,
        places: Tensor | None,
    ) -> Tensor:
        """Self-attention of ``[B, tokens, C]`` float32, overwritten."""
        b, n, c = x.shape
        y = self.norm1(x).view(b * n, c)
        q, k = (rotated(p(y).view(b, 1, n, -1), phases) for p in (self.own_query, self.own_key))
        v = self.own_value(y).view(b, 1, n, -1)
        if seam.observers:
            seam.tell(f"memory.layer{index}.self", q, k, v, places, queries=places)
        attended = attend(q, k, v) if exact else fused(q, k, v)
        return x.add_(self.own_out(attended.reshape(b * n, -1)).view(b, n, c))

    def recall(self, queries: Tensor, keys: Tensor, values: Tensor, exact: bool) -> Tensor:
        """Cross-attention of ``[tokens, C]`` to memory ``[keys, C]``, ``[keys, mem]``; projected."""

        def projected() -> Tensor:
            out = fused(queries[None, None], keys[None, None], self.value(values)[None, None])
            return self.out(out[0, 0])

        def absorbed() -> Tensor:
            out = blocked(queries[None, None], keys[None, None], values[None, None])
            return self.value_out(out[0, 0])

        candidates = {"fused": projected, "absorbed": absorbed} if exact else {"fused": projected}
        return fastest("recall", candidates, queries, len(keys))


@dataclass(frozen=True)
class Phases:
    """Cosine and sine of the rotary phases of grid places, ``[tokens, C / 2]`` each, in the products' dtype."""

    cos: Tensor
    sin: Tensor

    def at(self, places: Tensor) -> Phases:
        """Those of some places, int64 ``[K]``."""
        return Phases(self.cos.index_select(0, places), self.sin.index_select(0, places))


def rotated(x: Tensor, phases: Phases, out: Tensor | None = None) -> Tensor:
    """Turn channels by their rotary phases.

    Parameters
    ----------
    x
        ``[..., N, C]``; the first half of the channels is the real part, the second the imaginary one.
    phases
        Of `N` places.
    out
        Where to write.
    """
    real, imaginary = x.chunk(2, dim=-1)
    if torch.compiler.is_compiling():  # which fuses this, but can't write into views
        turned = (
            real * phases.cos - imaginary * phases.sin,
            real * phases.sin + imaginary * phases.cos,
        )
        return torch.cat(turned, -1)
    out = torch.empty_like(x) if out is None else out
    turned_real, turned_imaginary = out.chunk(2, dim=-1)
    torch.mul(real, phases.cos, out=turned_real).addcmul_(imaginary, phases.sin, value=-1)
    torch.mul(real, phases.sin, out=turned_imaginary).addcmul_(imaginary, phases.cos)
    return out


def token_saliency(queries: Tensor, keys: Tensor, rows: int, seed: int) -> Tensor:
    """Mean attention that each token of one memory frame receives among that frame's own tokens (method 4.2).

    Parameters
    ----------
    queries, keys
        After RoPE, ``[N, C]`` and ``[tokens, C]``.
    rows
        Query rows to read, a stratified sample unless all.
    seed
        Of the sample.

    Returns
    -------
    Tensor
        float32 ``[tokens]``, sums to one.
    """
    if rows < len(queries):
        queries = queries.index_select(0, sample_rows(len(queries), rows, seed).to(queries.device))
    total = torch.zeros(len(keys), device=keys.device)
    scaled = queries * queries.shape[-1] ** -0.5
    for block in scaled.split(SALIENCY_ROWS):
        weights = product(block, keys)
        torch.softmax(weights, -1, out=weights)
        for part in weights.split(SUMMED_ROWS):
            total += part.sum(0)
    return total / len(queries)


def _halves(layer: torch.nn.Linear) -> tuple[Tensor, Tensor]:
    """Sort a projection's rows so that real parts come first: pairs (2i, 2i + 1) become (i, C/2 + i)."""
    weight = torch.cat([layer.weight[0::2], layer.weight[1::2]])
    return weight, torch.cat([layer.bias[0::2], layer.bias[1::2]])
