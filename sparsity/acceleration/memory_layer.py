"""One layer of memory attention, with weights in one dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sam2.modeling.memory_attention import MemoryAttentionLayer
from torch import Tensor

from probes.seam import Seam
from sparsity.acceleration.attention import CLEARLY, attend, blocked, fastest, fused
from sparsity.acceleration.compiled import compilable
from sparsity.acceleration.linear import Linear, Norm
from sparsity.acceleration.rotary import Phases, halves, rotated
from sparsity.acceleration.token_saliency import Watch

SAVING = 1 / CLEARLY
"""How many times as fast absorbed values must be in float32: they take 5/8 of the operations, which bind there."""


class MemoryLayer:
    """Weights of one memory-attention layer, rows of queries and keys sorted into halves."""

    def __init__(self, layer: MemoryAttentionLayer, dtype: torch.dtype) -> None:
        own, cross = layer.self_attn, layer.cross_attn_image
        self.width = cross.k_proj.out_features
        self.norm1, self.norm2, self.norm3 = (
            Norm(n, dtype) for n in (layer.norm1, layer.norm2, layer.norm3)
        )
        self.own_query, self.own_key = (Linear(*halves(p), dtype) for p in (own.q_proj, own.k_proj))
        self.own_value, self.own_out = Linear.of(own.v_proj, dtype), Linear.of(own.out_proj, dtype)
        self.query, self.key = (Linear(*halves(p), dtype) for p in (cross.q_proj, cross.k_proj))
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

    def recall(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        project: Callable[[], Tensor],
        watch: Watch,
        exact: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """Cross-attention of ``[tokens, C]`` to memory ``[keys, C]``, ``[keys, mem]``; projected.

        Parameters
        ----------
        project
            Gives the values projected, ``[keys, C]``.
        watch
            Frames whose token saliency is wanted.
        exact
            Whether a formulation other than stock's may be taken.

        Returns
        -------
        tuple
            ``[tokens, C]``, and the saliency of each watched frame.
        """

        def projected() -> tuple[Tensor, list[Tensor]]:
            out = fused(queries[None, None], keys[None, None], project()[None, None])
            return self.out(out[0, 0]), watch.measure(queries, keys)

        def absorbed() -> tuple[Tensor, list[Tensor]]:
            seen = watch.seen(queries)

            def see(weights: Tensor, row: int) -> None:
                for frame in seen:
                    frame.see(weights, row)

            out = blocked(queries[None, None], keys[None, None], values[None, None], see)
            return self.value_out(out[0, 0]), [frame.result() for frame in seen]

        candidates = {"fused": projected, "absorbed": absorbed} if exact else {"fused": projected}
        what = "recall and watch" if watch.firsts else "recall"
        clearly = SAVING if queries.dtype == torch.float32 else CLEARLY
        return fastest(what, candidates, queries, len(keys), clearly)
