"""Memory attention over kept tokens (SMR), in the fastest exact formulation.

The keys of each memory frame are gathered *before* they are projected, and every kept token keeps the
rotary phase of its own place on the grid (method 4.5). Three rewrites are exact: the rotation works on
channels sorted into real and imaginary halves (a permutation of the projections' rows, which no product of
q and k notices); values are the raw memory tokens and the value and output projections follow as one map
(softmax rows sum to one, so biases pass through); the first self-attention, which no object has touched
yet, is shared by all objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from sam2.modeling.memory_attention import MemoryAttentionLayer
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor

from probes.layout import MemoryLayout, stored_result
from probes.observe import Seam
from sparsity.acceleration.attention import attend, blocked, fastest, fused
from sparsity.acceleration.linear import Linear, Norm, product
from sparsity.profile import Memory
from sparsity.select import keep_count, sample_rows, top_tokens

SALIENCY_ROWS = 512
"""Query rows of one block when token saliency is measured."""


@dataclass
class Bank:
    """What one object's memory attention reads on one frame.

    Attributes
    ----------
    layout
        Which key is what.
    memory
        Tokens of frames, then pointers, ``[keys, mem]`` in the products' dtype: the values.
    keyed
        The same with positions added: the input of the key projection.
    kept
        For each memory frame the kept tokens per layer, int64 ``[K]`` each, or None for a whole frame.
    measure
        Memory frames whose token saliency is to be measured now.
    """

    layout: MemoryLayout
    memory: Tensor
    keyed: Tensor
    kept: list[list[Tensor] | None]
    measure: list[int] = field(default_factory=list)


@dataclass
class Recall:
    """What came of it: keys read per layer, and newly chosen tokens per memory frame and layer."""

    keys_used: list[int] = field(default_factory=list)
    prunable_used: list[int] = field(default_factory=list)
    chosen: dict[int, list[Tensor]] = field(default_factory=dict)


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
        self._phases: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def bank(
        self,
        layout: MemoryLayout,
        output_dict: dict,
        tokens: list[list[Tensor] | None],
        measure: list[int],
    ) -> Bank:
        """Collect an object's memory.

        Parameters
        ----------
        layout
            Of the frame that is to be tracked.
        output_dict
            The object's results.
        tokens
            Kept tokens per memory frame and layer, or None for a whole frame.
        measure
            Positions in `layout.frames` whose saliency is to be measured.
        """
        model, device = self.model, self.model.maskmem_tpos_enc.device
        memory, keyed = [], []
        for entry in layout.frames:
            out = stored_result(output_dict, entry)
            features = out["maskmem_features"].to(device)[0].flatten(1).t()  # [tokens, mem]
            place = out["maskmem_pos_enc"][-1].to(device)[0].flatten(1).t()
            temporal = model.maskmem_tpos_enc[model.num_maskmem - entry.position - 1].view(1, -1)
            memory.append(features.to(self.dtype))
            keyed.append((features.float() + (place + temporal)).to(self.dtype))
        if layout.pointers:
            pointers, position = self._pointers(layout, output_dict, device)
            memory.append(pointers.to(self.dtype))
            keyed.append((pointers.float() + position).to(self.dtype))
        return Bank(layout, torch.cat(memory), torch.cat(keyed), tokens, measure)

    def _pointers(
        self, layout: MemoryLayout, output_dict: dict, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Object pointers split into tokens, and their temporal positions, ``[pointers * tokens, mem]`` each."""
        model = self.model
        stacked = torch.cat(
            [
                stored_result(output_dict, pointer)["obj_ptr"].to(device)
                for pointer in layout.pointers
            ]
        )
        tokens = stacked.reshape(-1, model.mem_dim)  # pointer by pointer
        if not model.add_tpos_enc_to_obj_ptrs:
            return tokens, torch.zeros_like(tokens)
        distances = torch.tensor([pointer.distance for pointer in layout.pointers], device=device)
        limit = layout.pointer_limit - 1
        width = model.hidden_dim if model.proj_tpos_enc_in_obj_ptrs else model.mem_dim
        position = model.obj_ptr_tpos_proj(get_1d_sine_pe(distances / limit, dim=width)).float()
        return tokens, position.repeat_interleave(layout.pointer_tokens, dim=0)

    def __call__(
        self,
        feature: Tensor,
        position: Tensor,
        banks: list[Bank],
        memory: Memory,
        *,
        exact: bool,
        seed: int,
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

        Returns
        -------
        tuple
            ``[objects, tokens, C]`` float32, and what each object recalled.
        """
        x = feature.float()
        if self.model.memory_attention.pos_enc_at_input:
            x = x + 0.1 * position.float()
        x = x[None].clone()
        phases = self._rotation(x.shape[1], x.device)
        recalls = [Recall() for _ in banks]
        for index, layer in enumerate(self.layers):
            x = layer.remember_itself(x, phases, f"memory.layer{index}.self", self.seam, exact)
            if len(x) < len(banks):
                x = x.expand(len(banks), -1, -1).clone()
            y = layer.norm2(x)
            for i, (bank, recall) in enumerate(zip(banks, recalls, strict=True)):
                x[i].add_(
                    self._recall(layer, index, y[i], bank, recall, phases, memory, exact, seed, i)
                )
            x.add_(layer.down(layer.up(layer.norm3(x).flatten(0, 1), "relu")).view_as(x))
        with torch.autocast(x.device.type, enabled=False):
            return self.norm(x), recalls

    def _recall(
        self,
        layer: _Layer,
        index: int,
        y: Tensor,
        bank: Bank,
        recall: Recall,
        phases: tuple[Tensor, Tensor],
        memory: Memory,
        exact: bool,
        seed: int,
        row: int,
    ) -> Tensor:
        """One cross-attention of one object, ``[tokens, C]`` to ``[tokens, C]``."""
        layout = bank.layout
        kept = [None if tokens is None else tokens[index] for tokens in bank.kept]
        pieces, starts, cos, sin, start = [], [], [], [], 0
        for f, tokens in enumerate(kept):
            first = f * layout.tokens
            ids = (
                torch.arange(first, first + layout.tokens, device=y.device)
                if tokens is None
                else first + tokens
            )
            pieces.append(ids)
            starts.append(start)
            start += len(ids)
            cos.append(phases[0] if tokens is None else phases[0].index_select(0, tokens))
            sin.append(phases[1] if tokens is None else phases[1].index_select(0, tokens))
        rotated = start
        pieces.append(torch.arange(layout.frame_keys, layout.keys, device=y.device))
        ids = torch.cat(pieces)
        everything = len(ids) == layout.keys
        values = bank.memory if everything else bank.memory.index_select(0, ids)
        keys = layer.key(bank.keyed if everything else bank.keyed.index_select(0, ids))
        rotate_(keys[:rotated], torch.cat(cos), torch.cat(sin))
        queries = rotate_(layer.query(y), *phases)
        recall.keys_used.append(len(ids))
        recall.prunable_used.append(sum(len(tokens) for tokens in kept if tokens is not None))
        if self.seam.observers:
            shown = layer.value(values)[None, None]
            site = f"memory.layer{index}.cross"
            part = None if everything else ids
            self.seam.tell(site, queries[None, None], keys[None, None], shown, keys=part, row=row)
        for f in bank.measure:
            share = memory.keep[index] if isinstance(memory.keep, tuple) else memory.keep
            count = layout.tokens if memory.queries == "all" else memory.queries
            saliency = token_saliency(
                queries, keys[starts[f] : starts[f] + layout.tokens], count, seed
            )
            recall.chosen.setdefault(f, []).append(
                top_tokens(saliency, keep_count(share, layout.tokens))
            )

        def projected() -> Tensor:
            out = fused(queries[None, None], keys[None, None], layer.value(values)[None, None])
            return layer.out(out[0, 0])

        def absorbed() -> Tensor:
            out = blocked(queries[None, None], keys[None, None], values[None, None])
            return layer.value_out(out[0, 0])

        candidates = {"fused": projected, "absorbed": absorbed} if exact else {"fused": projected}
        return fastest("recall", candidates, queries, len(ids))

    def _rotation(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each grid place's phases, ``[tokens, C / 2]`` float32."""
        key = (tokens, device)
        if key not in self._phases:
            side = round(tokens**0.5)
            cis = (
                self.model.memory_attention.layers[0]
                .cross_attn_image.compute_cis(end_x=side, end_y=side)
                .to(device)
            )
            self._phases[key] = cis.real.contiguous().float(), cis.imag.contiguous().float()
        return self._phases[key]


class _Layer:
    """Weights of one memory-attention layer, rows of queries and keys sorted into halves."""

    def __init__(self, layer: MemoryAttentionLayer, dtype: torch.dtype) -> None:
        own, cross = layer.self_attn, layer.cross_attn_image
        self.norm1, self.norm2, self.norm3 = (
            Norm(n, dtype) for n in (layer.norm1, layer.norm2, layer.norm3)
        )
        own_qkv = [_halves(own.q_proj), _halves(own.k_proj), (own.v_proj.weight, own.v_proj.bias)]
        self.own = Linear(
            torch.cat([w for w, _ in own_qkv]), torch.cat([b for _, b in own_qkv]), dtype
        )
        self.own_out = Linear.of(own.out_proj, dtype)
        self.query, self.key = (
            Linear(*_halves(cross.q_proj), dtype),
            Linear(*_halves(cross.k_proj), dtype),
        )
        self.value, self.out = Linear.of(cross.v_proj, dtype), Linear.of(cross.out_proj, dtype)
        outer, inner = cross.out_proj.weight.double(), cross.v_proj.weight.double()
        bias = outer @ cross.v_proj.bias.double() + cross.out_proj.bias.double()
        self.value_out = Linear(outer @ inner, bias, dtype)
        self.up, self.down = Linear.of(layer.linear1, dtype), Linear.of(layer.linear2, dtype)

    def remember_itself(
        self, x: Tensor, phases: tuple[Tensor, Tensor], site: str, seam: Seam, exact: bool
    ) -> Tensor:
        """Self-attention of ``[B, tokens, C]`` float32, overwritten."""
        b, n, c = x.shape
        q, k, v = self.own(self.norm1(x).view(b * n, c)).view(b, n, 3, -1).unbind(2)
        q, k = (rotate_(part.contiguous(), *phases)[:, None] for part in (q, k))
        v = v[:, None]
        if seam.observers:
            seam.tell(site, q, k, v)
        attended = attend(q, k, v) if exact else fused(q, k, v)
        return x.add_(self.own_out(attended.reshape(b * n, -1)).view(b, n, c))


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channels by their rotary phases, in place.

    Parameters
    ----------
    x
        ``[..., N, C]``; the first half of the channels is the real part, the second the imaginary one.
    cos, sin
        ``[N, C / 2]`` float32; the product is taken in float32 as stock does.
    """
    real, imaginary = x.float().chunk(2, dim=-1)
    turned = (
        torch.addcmul(real * cos, imaginary, sin, value=-1),
        torch.addcmul(real * sin, imaginary, cos),
    )
    half = x.shape[-1] // 2
    x[..., :half], x[..., half:] = turned
    return x


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
        total += weights.sum(0, dtype=torch.float32)
    return total / len(queries)


def _halves(layer: torch.nn.Linear) -> tuple[Tensor, Tensor]:
    """Sort a projection's rows so that real parts come first: pairs (2i, 2i + 1) become (i, C/2 + i)."""
    return torch.cat([layer.weight[0::2], layer.weight[1::2]]), torch.cat(
        [layer.bias[0::2], layer.bias[1::2]]
    )
