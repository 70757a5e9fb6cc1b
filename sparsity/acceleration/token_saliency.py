"""Which tokens of a memory frame attention reads: the saliency that pruning goes by (method 4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsity.acceleration.linear import product
from sparsity.acceleration.transfer import to_device
from sparsity.select import sample_rows

SALIENCY_ROWS = 512
"""Query rows of one block when token saliency is measured."""

SUMMED_ROWS = 64
"""Rows, at most, that are summed in the products' dtype before float32 takes over."""


def token_saliency(queries: Tensor, keys: Tensor, sample: Tensor | None) -> Tensor:
    """Mean attention that each token of one memory frame receives among that frame's own tokens (method 4.2).

    Parameters
    ----------
    queries, keys
        After RoPE, ``[N, C]`` and ``[tokens, C]``.
    sample
        Query rows to read, from `query_sample`; None for all.

    Returns
    -------
    Tensor
        float32 ``[tokens]``, sums to one.
    """
    if sample is not None:
        queries = queries.index_select(0, sample)
    total = torch.zeros(len(keys), device=keys.device)
    scaled = queries * queries.shape[-1] ** -0.5
    for block in scaled.split(SALIENCY_ROWS):
        weights = product(block, keys)
        torch.softmax(weights, -1, out=weights)
        parts = weights.view(-1, math.gcd(len(weights), SUMMED_ROWS), len(keys)).sum(1)
        total += parts.sum(0, dtype=torch.float32)
    return total / len(queries)


def query_sample(
    rows: int, count: int | Literal["all"], seed: int, device: torch.device
) -> Tensor | None:
    """`sample_rows` on a device; None for all rows."""
    if count == "all" or count >= rows:
        return None
    return to_device(sample_rows(rows, count, seed), device)


class SeenSaliency:
    """The same from attention weights that are computed anyway, over more keys than the frame's own.

    Inside the frame's columns they are the frame's own attention up to each row's sum. A row that gives the
    frame less than can be told from zero says nothing about it and does not count.

    Parameters
    ----------
    first, tokens
        The frame's columns.
    queries
        Number of query rows.
    sample
        Those that are read; None for all.
    """

    def __init__(
        self, first: int, tokens: int, queries: int, sample: Tensor | None, device: torch.device
    ) -> None:
        self.columns = slice(first, first + tokens)
        self.total = torch.zeros(tokens, device=device)
        if sample is None:
            self.counts = torch.ones(queries, device=device)
        else:
            self.counts = torch.zeros(queries, device=device).index_fill_(0, sample, 1.0)

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
    sample: Tensor | None

    def measure(self, queries: Tensor, keys: Tensor) -> list[Tensor]:
        """Of each frame, by products of its own."""
        spans = [keys[first : first + self.tokens] for first in self.firsts]
        return [token_saliency(queries, span, self.sample) for span in spans]

    def seen(self, queries: Tensor) -> list[SeenSaliency]:
        """Of each frame, to be read off the attention's weights."""
        rest = self.tokens, len(queries), self.sample, queries.device
        return [SeenSaliency(first, *rest) for first in self.firsts]
