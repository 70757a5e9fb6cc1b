"""Floating-point operations, counted from the operators that really run.

`torch.utils.flop_counter` knows the public matrix products, convolutions and the GPU's fused attentions. It
does not know the CPU's fused attention nor oneDNN's linear operator, which would count as nothing; here
they have formulas too. A multiplication and an addition count as two; element-wise work doesn't count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[int, ...]


def attention_flops(query: Shape, key: Shape, value: Shape, *rest: Any, **options: Any) -> int:
    """Count ``softmax(q kᵀ) v`` for shapes ``[B, h, N, c]``, ``[B, h, M, c]``, ``[B, h, M, d]``.

    >>> attention_flops((1, 1, 10, 4), (1, 1, 20, 4), (1, 1, 20, 8))
    4800
    """
    b, h, n, c = query
    m, d = key[2], value[3]
    return 2 * b * h * n * m * (c + d)


def linear_flops(x: Shape, weight: Shape, *rest: Any, out_shape: Shape, **options: Any) -> int:
    """Count a linear layer ``[n, i] -> [n, o]``; a packed weight's own shape says nothing.

    >>> linear_flops((10, 4), (8, 4), out_shape=(10, 8))
    640
    """
    rows = 1
    for size in x[:-1]:
        rows *= size
    return 2 * rows * x[-1] * out_shape[-1]


def _formulas() -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for library, name, formula in (
        ("aten", "_scaled_dot_product_flash_attention_for_cpu", attention_flops),
        ("mkldnn", "_linear_pointwise", linear_flops),
    ):
        operator = getattr(getattr(torch.ops, library), name, None)
        if operator is not None:
            found[operator] = formula
    return found


@contextmanager
def counted_flops() -> Iterator[FlopCounterMode]:
    """Count inside the context; ``get_total_flops()`` of what is yielded says how many so far.

    Slows everything down: never inside a timed section.
    """
    with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        yield counter
