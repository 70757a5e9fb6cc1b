"""Operations are counted whatever operator does the work."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparsity.acceleration.model.linear import Linear
from sparsity.evaluation.meters import counted_flops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_linear_layer_counts_like_the_public_one(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(24, 40)
    x = torch.randn(7, 24)
    with torch.inference_mode():
        packed = Linear.of(layer, dtype)
        with counted_flops() as ours:
            packed(x.to(dtype), "gelu")
        with counted_flops() as stock:
            F.gelu(layer(x))
    assert ours.get_total_flops() == stock.get_total_flops() == 2 * 7 * 24 * 40


def test_more_rows_count_more() -> None:
    with torch.inference_mode(), counted_flops() as counter:
        Linear.of(torch.nn.Linear(24, 40), torch.float32)(torch.randn(8, 24))
    assert counter.get_total_flops() == 2 * 8 * 24 * 40


@pytest.mark.parametrize("keys", [11, 22])
def test_fused_attention_counts_both_products(keys: int) -> None:
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, keys, 8)
    with torch.inference_mode(), counted_flops() as counter:
        F.scaled_dot_product_attention(q, k, k)
    assert counter.get_total_flops() == 2 * (2 * 3 * 5 * keys * 8) * 2
