"""Which tokens of a memory frame attention reads: the saliency that pruning goes by (method 4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sparsity.acceleration.linear import product
from sparsity.acceleration.transfer import to_device
from sparsity.select import sample_rows

SALIENCY_ROWS = 512
"""Query rows of one block when token saliency is measured."""

SUMMED_ROWS = 64
"""Rows, at most, that are summed in the products' dtype before float32 takes over."""


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
        queries = queries.index_select(0, _sample(len(queries), rows, seed, queries.device))
    total = torch.zeros(len(keys), device=keys.device)
    scaled = queries * queries.shape[-1] ** -0.5
    for block in scaled.split(SALIENCY_ROWS):
        weights = product(block, keys)
        torch.softmax(weights, -1, out=weights)
        parts = weights.view(-1, math.gcd(len(weights), SUMMED_ROWS), len(keys)).sum(1)
        total += parts.sum(0, dtype=torch.float32)
    return total / len(queries)


@lru_cache(maxsize=8)
def _sample(rows: int, count: int, seed: int, device: torch.device) -> Tensor:
    """`sample_rows` on a device; layers and objects of a frame share it."""
    return to_device(sample_rows(rows, count, seed), device)


class SeenSaliency:
    """The same from attention weights that are computed anyway, over more keys than the frame's own.

    Inside the frame's columns they are the frame's own attention up to each row's sum. A row that gives the
    frame less than can be told from zero says nothing about it and does not count.

    Parameters
    ----------
    first, tokens
        The frame's columns.
    rows, of
        Query rows to read, out of how many.
    seed
        Of the sample.
    """

    def __init__(
        self, first: int, tokens: int, rows: int, of: int, seed: int, device: torch.device
    ) -> None:
        self.columns = slice(first, first + tokens)
        self.total = torch.zeros(tokens, device=device)
        self.counts = torch.zeros(of, device=device)
        self.counts[_sample(of, rows, seed, device)] = 1.0

    def see(self, weights: Tensor, row: int) -> None:
        """Take in a block of weights ``[rows, keys]``, the first of which is query `row`."""
        own = weights[:, self.columns]
        mass = own.sum(-1, dtype=torch.float32)
        counts = self.counts[row : row + len(own)]
        told = mass > torch.finfo(own.dtype).tiny  # of less the inverse may overflow
        share = torch.where(told, counts / mass, 0.0).to(own.dtype)
        self.total += torch.mv(own.t(), share)

    def result(self) -> Tensor:
        """float32 ``[tokens]``, sums to one."""
        return self.total / self.total.sum()


@dataclass(frozen=True)
class Watch:
    """Frames whose token saliency is wanted from one call: where each one's keys begin, and how it is sampled."""

    firsts: tuple[int, ...]
    tokens: int
    rows: int
    seed: int

    def measure(self, queries: Tensor, keys: Tensor) -> list[Tensor]:
        """Of each frame, by products of its own."""
        spans = [keys[first : first + self.tokens] for first in self.firsts]
        return [token_saliency(queries, span, self.rows, self.seed) for span in spans]

    def seen(self, queries: Tensor) -> list[SeenSaliency]:
        """Of each frame, to be read off the attention's weights."""
        shape = self.tokens, self.rows, len(queries), self.seed, queries.device
        return [SeenSaliency(first, *shape) for first in self.firsts]
