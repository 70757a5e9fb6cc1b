"""Attention by the fastest exact formulation of device, dtype and shape, found by measuring.

`F.scaled_dot_product_attention` is the fastest on a GPU and on CPUs with matrix units; on other CPUs its
bfloat16 kernel runs at float32 speed, and products in row blocks are up to four times faster. The first
large call of each shape class times the candidates on its own tensors; the default stays unless
another one is clearly faster, so that processes on one machine rarely choose differently.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsity.acceleration.linear import product

CLEARLY = 1.5
"""How many times faster than the fused kernel another formulation must be to replace it."""

ROWS = 512
"""Query rows of one block: the block of weights then fits the last-level cache."""

WORTH_TIMING = 2**21
"""Attention weights of a call below which the default is taken: the clock would decide by chance."""

Result = TypeVar("Result")

_chosen: dict[tuple[object, ...], str] = {}


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
    q: Tensor, k: Tensor, v: Tensor, see: Callable[[Tensor, int], None] | None = None
) -> Tensor:
    """Products in blocks of query rows; values may be narrower than keys, ``[B, h, M, d]``.

    `see` is shown each block of attention weights ``[rows, M]`` and the index of its first row.
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
                    see(weights, row)
                out[i, j, row : row + ROWS] = product(weights, values)
    return out


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention ``softmax(q kᵀ / √c) v`` for ``[B, h, N, c]``, ``[B, h, M, c]``, ``[B, h, M, c]``."""
    if torch.compiler.is_compiling() and q.device.type == "cpu":
        return opaque_attend(q, k, v).transpose(1, 2)
    other = blocked if q.shape[2] * k.shape[2] > 1024**2 else batched
    candidates = {"fused": lambda: fused(q, k, v), other.__name__: lambda: other(q, k, v)}
    return fastest("attend", candidates, q, k.shape[2])


@torch.library.custom_op("efficient_sam2::attend", mutates_args=())
def opaque_attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend` as one operator of compiled code, which can't measure; ``[B, N, h, c]``."""
    return attend(q, k, v).transpose(1, 2).contiguous()


@opaque_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


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
    if len(candidates) == 1 or small or q.device.type != "cpu" or torch.compiler.is_compiling():
        return candidates[default]()
    shape = tuple(size.bit_length() for size in (*q.shape, keys))
    key = (what, *candidates, shape, q.dtype, torch.get_num_threads())
    if key not in _chosen:
        seconds = {name: min(_seconds(run) for _ in range(3)) for name, run in candidates.items()}
        first = seconds.pop(default)
        best = min(seconds, key=seconds.__getitem__)
        _chosen[key] = best if seconds[best] * clearly < first else default
    return candidates[_chosen[key]]()


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
