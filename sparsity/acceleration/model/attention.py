"""Attention by the fastest exact formulation of device, dtype and shape, found by measuring.

`F.scaled_dot_product_attention` is the fastest on a GPU and on CPUs with matrix units; on other CPUs its
bfloat16 kernel runs at float32 speed, and products in row blocks are up to four times faster. The first
large call of each shape class times the candidates on its own tensors; the default stays unless
another one is clearly faster, so that processes on one machine rarely choose differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from probes.seam import Seam
from sparsity.acceleration.model.choice import chosen
from sparsity.acceleration.model.linear import product
from sparsity.acceleration.model.windows import WindowTokens

CLEARLY = 1.5
"""How many times faster than the fused kernel another formulation must be to replace it."""

TRIES = 3
"""Of each formulation."""

ROWS = 512
"""Query rows of one block: the block of weights then fits the last-level cache."""

WORTH_TIMING = 2**21
"""Attention weights of a call below which the default is taken: the clock would decide by chance."""

Result = TypeVar("Result")


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's fused attention. Shapes ``[B, h, N, c]``, ``[B, h, M, c]`` twice."""
    return F.scaled_dot_product_attention(q, k, v)


def batched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two batched products around a softmax; for many small windows."""
    b, h, n, c = q.shape
    weights = torch.bmm((q * c**-0.5).reshape(b * h, n, c), k.transpose(2, 3).reshape(b * h, c, -1))
    torch.softmax(weights, -1, out=weights)
    return torch.bmm(weights, v.reshape(b * h, -1, v.shape[-1])).view(b, h, n, -1)


def blocked(
    q: Tensor, k: Tensor, v: Tensor, see: Callable[[Tensor, int, int], None] | None = None
) -> Tensor:
    """Products in blocks of query rows; values may be narrower than keys, ``[B, h, M, d]``.

    `see` is shown each block of attention weights ``[rows, M]``, the index of its first row, and of which of B it is.
    """
    b, h, n, c = q.shape
    out = q.new_empty(b, h, n, v.shape[-1])
    scaled = q * c**-0.5
    buffer = q.new_empty(min(ROWS, n), k.shape[2])
    for i in range(b):
        for j in range(h):
            keys, values = k[i, j].contiguous(), v[i, j].t().contiguous()
            for row in range(0, n, ROWS):
                rows = scaled[i, j, row : row + ROWS].contiguous()
                weights = product(rows, keys, out=buffer[: len(rows)])
                torch.softmax(weights, -1, out=weights)
                if see is not None:
                    see(weights, row, i)
                out[i, j, row : row + ROWS] = product(weights, values)
    return out


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention ``softmax(q kᵀ / √c) v`` for ``[B, h, N, c]``, ``[B, h, M, c]``, ``[B, h, M, c]``."""
    other = blocked if q.shape[2] * k.shape[2] > 1024**2 else batched
    candidates = {"fused": lambda: fused(q, k, v), other.__name__: lambda: other(q, k, v)}
    return fastest("attend", candidates, q, k.shape[2])


class Attention:
    """Attention of one trunk block inside each of its windows, or of a sequence that counts as one.

    Parameters
    ----------
    heads
        Their number.
    site
        Its name, for observers.
    """

    def __init__(self, heads: int, site: str, seam: Seam) -> None:
        self.heads, self.site, self.seam = heads, site, seam

    def __call__(
        self,
        qkv: Tensor,
        size: int,
        where: WindowTokens | None = None,
        keys: Tensor | None = None,
        pool: int = 0,
    ) -> Tensor:
        """Attend inside each window of ``[windows * size, 3C]``, to the slots that `where` has, if given.

        Returns ``[windows * size, C]``, a quarter of it with queries pooled in windows of side `pool`.
        """
        windows = len(qkv) // size
        q, k, v = qkv.view(windows, size, 3, self.heads, -1).unbind(2)  # [windows, size, h, c]
        if pool:
            q = max_pool(q.reshape(windows, pool, pool, -1)).view(
                windows, size // 4, self.heads, -1
            )
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        there = None if where is None else where.keys
        made = None
        if self.seam.watched:
            ids = keys if where is None else where.ids
            made = self.seam.pass_by(self.site, q, k, v, keys=ids, there=there)
        if made is not None:
            attended = made.attended()
        elif there is None:
            attended = attend(q, k, v)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=there)
        return attended.transpose(1, 2).reshape(windows * q.shape[2], -1)

    def of_some(self, qkv: Tensor, places: Tensor) -> Tensor:
        """Attention of the tokens at some places to all of ``[P, 3C]``, ``[R, C]``."""
        q, k, v = qkv.view(1, len(qkv), 3, self.heads, -1).transpose(1, 3).unbind(2)
        q = q.index_select(2, places)
        made = self.seam.pass_by(self.site, q, k, v, queries=places) if self.seam.watched else None
        attended = attend(q, k, v) if made is None else made.attended()
        return attended.transpose(1, 2).reshape(len(places), -1)


def max_pool(x: Tensor) -> Tensor:
    """Maximum over 2 x 2 neighbours of ``[B, H, W, C]``, without changing the layout."""
    b, h, w, c = x.shape
    x = x.view(b, h // 2, 2, w // 2, 2, c)
    return torch.maximum(
        torch.maximum(x[:, :, 0, :, 0], x[:, :, 0, :, 1]),
        torch.maximum(x[:, :, 1, :, 0], x[:, :, 1, :, 1]),
    )


def fastest(
    what: str,
    candidates: dict[str, Callable[[], Result]],
    q: Tensor,
    keys: int,
    clearly: float = CLEARLY,
) -> Result:
    """Run the formulation that is the fastest for this class of calls; the first one unless another is clearly faster.

    A class is what is asked for, the candidates' names, dtype, thread count and the shapes up to a factor of two.

    Parameters
    ----------
    what
        Calls that are the same but for shapes.
    candidates
        By name, the default first. All compute the same.
    q
        Queries, ``[..., N, c]``.
    keys
        Number of keys.
    clearly
        How many times as fast as the first another must be. Below one it is taken even if it is somewhat slower:
        for candidates that save operations.
    """
    default = next(iter(candidates))
    small = q.numel() // q.shape[-1] * keys < WORTH_TIMING
    if len(candidates) == 1 or small or q.device.type != "cpu":
        return candidates[default]()
    shape = tuple(size.bit_length() for size in (*q.shape, keys))
    return candidates[chosen((what, shape, q.dtype), candidates, clearly, TRIES)]()
