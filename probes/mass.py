"""Attention weights of calls: the mass each key receives, statistics of rows, and where tokens lie.

Pure functions of queries, keys and probabilities. An attention row ``p`` holds n non-negative weights that sum to
one. Everything is computed in float32, in blocks of rows; definitions and sources stand with each function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_BYTES = 8 * 2**20
"""Largest block of attention weights that statistics of rows are measured from at once."""

MASS_BYTES = 16 * 2**20
"""Size of the one buffer that blocks of attention weights are computed in, unless one row is larger."""

TOP = 0.1
"""Share of keys whose mass is `top_mass`."""


def attention_weights(q: Tensor, k: Tensor, there: Tensor | None = None) -> Tensor:
    """Softmax attention weights ``softmax(q kᵀ / √c)``, float32 ``[..., Nq, Nk]``.

    Parameters
    ----------
    q, k
        ``[..., Nq, c]`` and ``[..., Nk, c]``, in any dtype.
    there
        Which keys take part, bool that broadcasts to ``[..., Nq, Nk]``; None for all. Others have weight 0.
    """
    with torch.autocast(q.device.type, enabled=False):  # which would turn the product into bfloat16
        scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().mT
        if there is not None:
            scores = scores.masked_fill(~there, -math.inf)
        return torch.softmax(scores, -1)


def row_blocks(q: Tensor, k: Tensor, there: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of attention rows, never the whole matrix.

    Parameters
    ----------
    q, k
        ``[B, h, Nq, c]`` and ``[B, h, Nk, c]``.
    there
        Which keys take part, bool ``[B, 1, 1, Nk]``; None for all.

    Yields
    ------
    tuple
        Which query rows, and their weights float32 ``[B, h, rows, Nk]``, at most `BLOCK_BYTES`.
    """
    b, h, n, _ = q.shape
    rows = max(1, BLOCK_BYTES // (4 * b * h * k.shape[2]))
    for start in range(0, n, rows):
        block = slice(start, min(n, start + rows))
        yield block, attention_weights(q[:, :, block], k, there)


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


# ---------------------------------------------------------------------- mass of keys


def key_mass(
    q: Tensor, k: Tensor, weight: Tensor | None = None, there: Tensor | None = None
) -> Tensor:
    """Attention each key receives, ``Σ_q w_q p_q(i) / Σ_q w_q``: float32 ``[B, h, Nk]``, sums to one.

    Parameters
    ----------
    q, k
        ``[B, h, Nq, c]`` and ``[B, h, Nk, c]``, in any dtype.
    weight
        Of each query row, float32 ``[B, Nq]``, zero for rows that don't count; None for 1. Where a batch
        entry has no weight, its mass is zero.
    there
        Which keys take part, bool ``[B, 1, 1, Nk]``; None for all. Others have no mass.
    """
    mass = q.new_zeros(*q.shape[:2], k.shape[2], dtype=torch.float32)
    for batch, rows, p in _softmax_blocks(q, k, there):
        if weight is None:
            mass[batch] += p.sum(2)
        else:
            mass[batch] += (weight[batch, None, None, rows] @ p)[:, :, 0]
    if weight is None:
        return mass / q.shape[2]
    return mass / weight.sum(1).clamp(min=1e-30)[:, None, None]


def key_mass_by_frame(q: Tensor, k: Tensor, frames: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Key mass of memory attention, of all keys together and of each frame by itself, in one go.

    Parameters
    ----------
    q, k
        ``[B, h, Nq, c]`` and ``[B, h, Nk, c]``; the keys begin with `frames` times `tokens`.

    Returns
    -------
    tuple
        The joint mass, as `key_mass` gives it, and the conditional mass float32 ``[B, h, frames, tokens]``:
        mean over rows of the softmax over that frame's own keys, sums to one in each frame.
    """
    b, h, n, _ = q.shape
    inside = frames * tokens
    joint = q.new_zeros(b, h, k.shape[2], dtype=torch.float32)
    both = q.new_zeros(b, h, frames, 2, tokens, dtype=torch.float32)
    for batch, _, p in _softmax_blocks(q, k):
        by_frame = p[..., :inside].unflatten(-1, (frames, tokens)).transpose(2, 3)
        share = by_frame.sum(-1).clamp_(min=1e-30).reciprocal_()  # [b, h, frames, rows]
        both[batch] += torch.stack([torch.ones_like(share), share], -2) @ by_frame
        joint[batch, :, inside:] += p[..., inside:].sum(2)
    joint[..., :inside] = both[..., 0, :].flatten(2)
    return joint / n, both[..., 1, :] / n


def _softmax_blocks(
    q: Tensor, k: Tensor, there: Tensor | None = None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield attention weights block by block, all in one buffer that the next block overwrites.

    Yields
    ------
    tuple
        Which batch entries, which query rows, and their weights float32 ``[b, h, r, Nk]``.
    """
    b, h, n, c = q.shape
    m = k.shape[2]
    rows = min(n, max(1, MASS_BYTES // (4 * h * m)))
    entries = min(b, max(1, MASS_BYTES // (4 * h * m * rows)))
    buffer = q.new_empty(entries * h * rows * m, dtype=torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        for first in range(0, b, entries):
            batch = slice(first, min(b, first + entries))
            keys = k[batch].float().mT
            for start in range(0, n, rows):
                part = slice(start, min(n, start + rows))
                queries = q[batch, :, part].float() * c**-0.5
                shape = (*queries.shape[:3], m)
                p = buffer[: shape[0] * h * shape[2] * m].view(shape)
                torch.matmul(queries, keys, out=p)
                if there is not None:
                    p.masked_fill_(~there[batch], -math.inf)
                yield batch, part, torch.softmax(p, -1, out=p)


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


# ---------------------------------------------------------------------- statistics of rows


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


def normalised_entropy(nats: Tensor, keys: int | Tensor) -> Tensor:
    """Entropy over its maximum, ``-Σ p ln p / ln n``: 0 is one key, 1 is uniform. Not comparable across n.

    Parameters
    ----------
    nats
        See `entropy`.
    keys
        Number of keys of all rows, or of each.
    """
    if isinstance(keys, int):
        return nats / math.log(max(2, keys))
    return nats / keys.clamp(min=2).log()


def effective_support(nats: Tensor) -> Tensor:
    """``exp(-Σ p ln p)`` (perplexity), in keys, from 1 to n: among how many keys a row is spread.

    Parameters
    ----------
    nats
        See `entropy`.
    """
    return nats.exp()


def keys_for_mass(sorted_p: Tensor) -> Tensor:
    """N90: fewest keys that hold 90 % of the mass, in keys, from 1 to n.

    Parameters
    ----------
    sorted_p
        Rows from large to small, see `descending`.
    """
    cumulated = sorted_p.cumsum(-1)
    return ((cumulated < 0.9 * cumulated[..., -1:]).sum(-1) + 1).float()


@cache
def keep_count(keep: float, tokens: int) -> int:
    """Tokens that a share `keep` of them means: rounded down, at least one.

    >>> keep_count(0.1, 39), keep_count(0.3, 10), keep_count(0.01, 4)
    (3, 3, 1)
    """
    return max(1, math.floor(keep * tokens + 1e-9))


def gini(sorted_p: Tensor, keys: Tensor | None = None) -> Tensor:
    """Gini index ``Σ (2 i - n - 1) p_(i) / n``, i ascending; 0 uniform to (n - 1) / n (Hurley & Rickard 2009).

    Parameters
    ----------
    sorted_p
        Rows from large to small, see `descending`.
    keys
        Number n of keys of each row, int64, where some entries are no keys; None for all.
    """
    places = torch.arange(sorted_p.shape[-1], device=sorted_p.device)
    n = sorted_p.shape[-1] if keys is None else keys[..., None]
    total = sorted_p.sum(-1) * (n if keys is None else keys)
    return (sorted_p * (n - 1 - 2 * places)).sum(-1) / total


def top_mass(sorted_p: Tensor, keys: Tensor | None = None) -> Tensor:
    """Mass of the top tenth of keys (`keep_count`), in [0.1, 1].

    Parameters
    ----------
    sorted_p, keys
        As for `gini`.
    """
    if keys is None:
        return sorted_p[..., : keep_count(TOP, sorted_p.shape[-1])].sum(-1)
    counts = keys.new_tensor([keep_count(TOP, n) for n in keys.flatten().tolist()]).view_as(keys)
    top = torch.arange(sorted_p.shape[-1], device=sorted_p.device) < counts[..., None]
    return (sorted_p * top).sum(-1)


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


# ---------------------------------------------------------------------- where tokens lie


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


def token_coverage(mask: Tensor, grid: int) -> Tensor:
    """Share of each token that a mask ``[h, w]`` covers, float32 ``[grid**2]``; h and w divide by the grid."""
    pooled = F.adaptive_avg_pool2d(mask[None, None].float(), grid)
    return pooled.reshape(-1)
