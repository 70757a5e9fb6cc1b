"""One attention call reduced to its statistics, block by block.

Key mass, and with it slot shares and foreground lift, comes from every query row (`probes.mass`); entropy,
effective support, N90, Gini, top-10 % mass, distance and padding are means over a stratified sample of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.layout import MemoryLayout
from probes.maps import (
    computed_queries,
    in_dense_order,
    key_tokens,
    keys_there,
    on_grid,
    queries_there,
    site_of,
    softmax_site,
)
from probes.mass import (
    descending,
    effective_support,
    entropy,
    gini,
    grid_positions,
    key_mass,
    key_mass_by_frame,
    keys_for_mass,
    mean_distance,
    normalised_entropy,
    row_blocks,
    sample_queries,
    top_mass,
    window_slots,
)
from probes.records import QUERY_ROWS, SLOTS
from probes.seam import AttentionCall

FULL_ROW = 512
"""Keys of a row that counts whole: where rows are shorter, proportionally more of them are drawn."""

ROW_STATISTICS = ("entropy", "support", "n90", "gini", "top10", "distance_px", "padding")
"""Means over query rows, see `probes.mass`; ``padding`` is the mass on padded slots of windows. Distance is to keys
that have a place in the picture: neither padding nor pointers."""


@dataclass(frozen=True)
class CallStatistics:
    """One attention call, reduced. O objects (1 for encoder calls, whose windows are taken together), h heads.

    Attributes
    ----------
    site, frame, objects
        What was measured.
    means
        Mean over rows of each of `ROW_STATISTICS`, float32 ``[O, h]``; NaN where it has no meaning.
    mass
        Key mass, float32 ``[O, h, keys]``: mean over *all* rows of the attention each key receives. Encoder
        keys are tokens of the grid (padding left out), memory keys those of the dense layout (0 for unread
        ones).
    rows
        Query rows that `means` were measured from, per object.
    by_frame
        Conditional key mass of each memory frame, float32 ``[O, h, frames, tokens]``: mean over all rows of
        the softmax over that frame's own keys; NaN for a frame that was read in part. None where the call is no
        memory cross-attention.
    there
        Which keys took part, bool ``[keys]``; None for all.
    """

    site: str
    frame: int | None
    objects: tuple[int, ...]
    means: dict[str, Tensor]
    mass: Tensor
    rows: int
    by_frame: Tensor | None = None
    there: Tensor | None = None


def measure(call: AttentionCall, rows: int | None = QUERY_ROWS, seed: int = 0) -> CallStatistics:
    """Reduce an attention call to its statistics; the full matrix never exists.

    Parameters
    ----------
    call
        As `observe` hands it over.
    rows
        Query rows for `CallStatistics.means`, at least, stratified; more where rows are shorter than
        `FULL_ROW` keys. None for all; of trimmed windows, too, all that are there.
    seed
        Of the sample.
    """
    site = softmax_site(call)
    groups, heads, n, c = call.q.shape
    if rows is None or call.there is not None:
        wanted = groups * n
    else:
        wanted = rows * max(1, FULL_ROW // call.k.shape[2])
    drawn = sample_queries(groups if site.part == "encoder" else 1, n, wanted, seed)
    drawn = drawn.to(call.q.device).expand(groups, -1)  # [groups, r]
    q = call.q
    if drawn.shape[1] < n:
        q = q.gather(2, drawn[:, None, :, None].expand(-1, heads, -1, c))
    tokens, query_at, key_at, real = _geometry(call)
    weight = real.gather(1, drawn).float()[:, None, :]  # [groups, 1, r]
    if query_at is not None:
        query_at = query_at[drawn]
    sums = {name: q.new_zeros(groups, heads, dtype=torch.float32) for name in ROW_STATISTICS}
    padded = (tokens < 0).view(groups, 1, 1, -1)
    some_padded = bool(padded.any())
    keys = None if call.there is None else call.there.sum(-1)  # [groups, 1, 1]
    for block, p in row_blocks(q, call.k, call.there):
        w = weight[..., block]
        ordered = descending(p)
        nats = entropy(p)
        found = {
            "entropy": normalised_entropy(nats, p.shape[-1] if keys is None else keys),
            "support": effective_support(nats),
            "n90": keys_for_mass(ordered),
            "gini": gini(ordered, keys),
            "top10": top_mass(ordered, keys),
        }
        placed = p
        if some_padded:
            placed = p.masked_fill(padded, 0)
            found["padding"] = (p - placed).sum(-1)
        if query_at is not None and key_at is not None:
            near = placed[..., : len(key_at)]
            share = near.sum(-1).clamp(min=1e-12)
            found["distance_px"] = mean_distance(near, query_at[:, None, block], key_at) / share
        for name, values in found.items():
            sums[name] += (values * w).sum(-1)
    counts = weight.sum((1, 2))  # [groups]
    if query_at is None:
        sums["distance_px"] += math.nan
    (mass, by_frame), there = received(call), keys_there(call)
    if site.part == "encoder":
        total = counts.sum()
        means = {name: (value.sum(0) / total)[None] for name, value in sums.items()}
        return CallStatistics(
            call.site, call.moment.frame, (), means, mass, int(total), there=there
        )
    means = {name: value / counts[:, None] for name, value in sums.items()}
    return CallStatistics(
        call.site,
        call.moment.frame,
        call.moment.objects,
        means,
        mass,
        int(counts[0]),
        by_frame,
        there,
    )


def received(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
    """Attention that each key of a call receives, from every query row.

    Returns
    -------
    tuple
        `CallStatistics.mass` and `CallStatistics.by_frame`.
    """
    site = softmax_site(call)
    if site.kind == "cross":
        # a stock run has one object, an accelerated one tells object by object
        (layout,) = call.moment.layouts
        if call.keys is None:
            return key_mass_by_frame(call.q, call.k, len(layout.frames), layout.tokens)
        return _received_in_part(call, call.keys, layout)
    if site.part == "encoder":
        tokens, _, _, real = _geometry(call)
        share = real.sum(1) / real.sum()  # of all real rows, in each window
        mass = key_mass(call.q, call.k, real.float(), call.there) * share[:, None, None]
        return on_grid(mass, tokens, site.grid), None
    return in_dense_order(call, key_mass(call.q, call.k)), None


def _received_in_part(
    call: AttentionCall, keys: Tensor, layout: MemoryLayout
) -> tuple[Tensor, Tensor]:
    """`received` of memory that was read in part: what frames that were read whole get of their own is known."""
    frame = keys // layout.tokens  # beyond the last one for pointers
    read = torch.bincount(frame, minlength=len(layout.frames))[: len(layout.frames)]
    whole = (read == layout.tokens).nonzero()[:, 0]
    order = torch.where(torch.isin(frame, whole), keys, keys + layout.keys).argsort()
    mass, own = key_mass_by_frame(call.q, call.k[:, :, order], len(whole), layout.tokens)
    by_frame = own.new_full((*own.shape[:2], len(layout.frames), layout.tokens), math.nan)
    dense = mass.new_zeros(*mass.shape[:2], layout.keys)
    return dense.index_copy_(2, keys[order], mass), by_frame.index_copy_(2, whole, own)


def _geometry(call: AttentionCall) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Say where queries and keys lie.

    Returns
    -------
    tuple
        Token of each key ``[groups, Nk]`` (-1: padding); positions in pixels of the queries ``[Nq, 2]`` and of
        the keys that have one ``[n, 2]``, or None; which queries are real (neither padding nor absent)
        ``[groups, Nq]``.
    """
    site, device = site_of(call), call.q.device
    groups, keys = len(call.q), call.k.shape[2]
    everything = torch.arange(keys, device=device).expand(groups, keys)
    real = torch.ones(groups, call.q.shape[2], dtype=torch.bool, device=device)
    if site.kind == "window":
        side = site.window // site.pool
        pooled = window_slots(site.grid // site.pool, side)
        if call.keys is not None:
            pooled = pooled[call.keys.cpu()]
        real = pooled.to(device) >= 0
        taking = queries_there(call)
        if taking is not None:
            real &= taking
        at = grid_positions(side, float(site.stride * site.pool)).to(device)
        key_at = grid_positions(site.window, float(site.stride)).to(device)
        return key_tokens(call), at, key_at, real
    if site.kind == "global" or site.part == "memory":
        at = grid_positions(site.grid, float(site.stride)).to(device)
        asked = computed_queries(call)
        asking = at if asked is None else at[asked]
        ids = everything[0] if call.keys is None else call.keys
        if site.kind == "cross":
            layout = call.moment.layouts[0]
            of_frames = ids[ids < layout.frame_keys]
            return everything, asking, at[of_frames % layout.tokens], real
        return ids.expand(groups, keys), asking, at[ids], real
    return everything, None, None, real


def slot_shares(statistics: CallStatistics, call: AttentionCall) -> Tensor:
    """Share of the attention mass on each memory slot and on the pointers; sums to one.

    Returns
    -------
    Tensor
        float32 ``[O, slots]`` in the order of `probes.records.SLOTS`, mean over heads. All conditioning
        frames count as ``prompt``.
    """
    shares = statistics.mass.new_zeros(len(statistics.mass), len(SLOTS))
    for o, layout in enumerate(call.moment.layouts):
        mass = statistics.mass[o].mean(0)
        for index, entry in enumerate(layout.frames):
            start = index * layout.tokens
            shares[o, SLOTS.index(entry.slot)] += mass[start : start + layout.tokens].sum()
        shares[o, -1] = mass[layout.frame_keys :].sum()
    return shares
