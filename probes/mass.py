"""Statistics of attention rows: pure functions of probabilities, and the blocks of rows they are fed with.

An attention row ``p`` holds n non-negative weights that sum to one. Everything is computed in float32,
row by row, and averaged over rows afterwards. Definitions and sources stand with each function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

BLOCK_BYTES = 8 * 2**20
"""Largest block of attention weights that statistics of rows are measured from at once."""


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Softmax attention weights ``softmax(q kᵀ / √c)``, float32 ``[..., Nq, Nk]``.

    Parameters
    ----------
    q, k
        ``[..., Nq, c]`` and ``[..., Nk, c]``, in any dtype.
    """
    with torch.autocast(q.device.type, enabled=False):  # which would turn the product into bfloat16
        return torch.softmax((q.float() * q.shape[-1] ** -0.5) @ k.float().mT, -1)


def row_blocks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of attention rows, never the whole matrix.

    Parameters
    ----------
    q, k
        ``[B, h, Nq, c]`` and ``[B, h, Nk, c]``.

    Yields
    ------
    tuple
        Which query rows, and their weights float32 ``[B, h, rows, Nk]``, at most `BLOCK_BYTES`.
    """
    b, h, n, _ = q.shape
    rows = max(1, BLOCK_BYTES // (4 * b * h * k.shape[2]))
    for start in range(0, n, rows):
        block = slice(start, min(n, start + rows))
        yield block, attention_weights(q[:, :, block], k)


def sample_queries(groups: int, rows: int, wanted: int, seed: int) -> Tensor:
    """Draw query rows: a stratified sample of its own in each group.

    Parameters
    ----------
    groups, rows
        Groups (windows, or 1), and query rows in each.
    wanted
        Rows to draw altogether, at least; all where there are no more.

    Returns
    -------
    Tensor
        int64 ``[groups, r]``, ascending in each group: one row from each of r equal strata.
    """
    count = min(rows, -(-wanted // groups))
    if count == rows:
        return torch.arange(rows).expand(groups, rows)
    generator = torch.Generator().manual_seed(seed)
    jitter = torch.rand(groups, count, generator=generator, dtype=torch.float64)
    return ((torch.arange(count) + jitter) * (rows / count)).long().clamp_(max=rows - 1)


def descending(p: Tensor) -> Tensor:
    """Sort rows from large to small; numpy's sort on a CPU is several times faster than torch's."""
    if p.device.type != "cpu":
        return p.sort(-1, descending=True).values
    flipped = np.negative(p.numpy())
    flipped.sort(axis=-1)
    return torch.from_numpy(np.negative(flipped, out=flipped))


def entropy(p: Tensor) -> Tensor:
    """Entropy of each row, ``-Σ p ln p`` in nats, in [0, ln n] (Shannon 1948)."""
    return torch.special.entr(p).sum(-1)


def normalised_entropy(nats: Tensor, keys: int) -> Tensor:
    """Entropy over its maximum, ``-Σ p ln p / ln n``: 0 is one key, 1 is uniform. Not comparable across n.

    Parameters
    ----------
    nats
        Of rows over so many keys, see `entropy`.
    """
    return nats / math.log(max(2, keys))


def effective_support(nats: Tensor) -> Tensor:
    """``exp(-Σ p ln p)`` (perplexity), in keys, from 1 to n: among how many keys a row is spread.

    Parameters
    ----------
    nats
        See `entropy`.
    """
    return nats.exp()


def keys_for_mass(sorted_p: Tensor, share: float = 0.9) -> Tensor:
    """N90: fewest keys that hold a share of the mass, in keys, from 1 to n.

    Parameters
    ----------
    sorted_p
        Rows from large to small, see `descending`.
    """
    cumulated = sorted_p.cumsum(-1)
    return ((cumulated < share * cumulated[..., -1:]).sum(-1) + 1).float()


def gini(sorted_p: Tensor) -> Tensor:
    """Gini index ``Σ (2 i - n - 1) p_(i) / n``, i ascending; 0 uniform to (n - 1) / n (Hurley & Rickard 2009).

    Parameters
    ----------
    sorted_p
        Rows from large to small, see `descending`.
    """
    n = sorted_p.shape[-1]
    rank = torch.arange(n, 0, -1, device=sorted_p.device, dtype=sorted_p.dtype)
    return (sorted_p * (2 * rank - n - 1)).sum(-1) / (n * sorted_p.sum(-1))


def top_mass(sorted_p: Tensor, share: float = 0.1) -> Tensor:
    """Mass of the top share of keys (rounded down, at least one), in [share, 1].

    Parameters
    ----------
    sorted_p
        Rows from large to small, see `descending`.
    """
    count = max(1, math.floor(share * sorted_p.shape[-1] + 1e-9))
    return sorted_p[..., :count].sum(-1)


def mean_distance(p: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Mean attention distance ``Σ p_i |x_q - x_i|``, in the unit of the positions (Dosovitskiy et al. 2021).

    Parameters
    ----------
    p
        ``[..., r, n]``.
    queries, keys
        Positions ``[r, 2]`` or ``[..., r, 2]``, and ``[n, 2]``.
    """
    return (p * torch.cdist(queries, keys.expand(*queries.shape[:-2], *keys.shape))).sum(-1)


def foreground_lift(mass: Tensor, foreground: Tensor) -> Tensor:
    """Mass on the object over its share of the area: 1 is chance, above 1 it is looked at more.

    Parameters
    ----------
    mass
        Key mass ``[..., n]``.
    foreground
        ``[n]``, in [0, 1]: how much of each token the object covers.

    Returns
    -------
    Tensor
        ``[...]``; NaN where the object covers nothing.
    """
    share = foreground.mean()
    if share == 0:
        return mass.new_full(mass.shape[:-1], math.nan)
    return (mass * foreground).sum(-1) / mass.sum(-1) / share


def window_slots(grid: int, window: int) -> Tensor:
    """Token of each slot of each window, int64 ``[windows, window**2]``; -1 is padding."""
    side = -(-grid // window)
    index = torch.full((side * window, side * window), -1, dtype=torch.int64)
    index[:grid, :grid] = torch.arange(grid * grid).view(grid, grid)
    return index.view(side, window, side, window).transpose(1, 2).reshape(-1, window * window)


def grid_positions(side: int, unit: float) -> Tensor:
    """Centres of a grid's cells, float32 ``[side**2, 2]`` as (x, y), for cells of `unit` pixels."""
    axis = (torch.arange(side, dtype=torch.float32) + 0.5) * unit
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2)
