"""Which tokens of a memory frame attention reads: the saliency that pruning goes by (method 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsity.acceleration.linear import product
from sparsity.select import sample_rows

SALIENCY_ROWS = 512
"""Query rows of one block when token saliency is measured."""

SUMMED_ROWS = 64
"""Rows that are summed in the products' dtype before float32 takes over."""


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
