"""Statistics of attention calls while they stream: reduced block by block, merged, saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probes.mass import (
    descending,
    effective_support,
    foreground_lift,
    gini,
    grid_positions,
    keys_for_mass,
    mean_distance,
    normalised_entropy,
    row_blocks,
    sample_queries,
    top_mass,
    window_slots,
)
from probes.records import SLOTS
from probes.seam import AttentionCall

QUERY_ROWS = 256
"""Query rows, at least, that statistics are measured from by default: a stratified sample."""

ROW_STATISTICS = ("entropy", "support", "n90", "gini", "top10", "distance_px", "padding")
"""Means over query rows, see `probes.mass`; ``padding`` is the mass on padded slots of windows."""


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
        Key mass, float32 ``[O, h, keys]``: mean over rows of the attention each key receives. Encoder keys are
        tokens of the grid (padding left out), memory keys those of the dense layout (0 for unread ones).
    rows
        Query rows that were measured, per object.
    """

    site: str
    frame: int | None
    objects: tuple[int, ...]
    means: dict[str, Tensor]
    mass: Tensor
    rows: int


def measure(call: AttentionCall, rows: int | None = QUERY_ROWS, seed: int = 0) -> CallStatistics:
    """Reduce an attention call to its statistics, block by block; the full matrix never exists.

    Parameters
    ----------
    call
        As `observe` hands it over.
    rows
        Query rows to measure, at least, stratified; None for all.
    seed
        Of the sample.
    """
    site = call.where
    assert site is not None, "observe fills it in"
    windowed = site.part == "encoder"
    groups, heads, n, c = call.q.shape
    drawn = sample_queries(groups if windowed else 1, n, rows or groups * n, seed)
    drawn = drawn.to(call.q.device).expand(groups, -1)  # [groups, r]
    q = call.q
    if drawn.shape[1] < n:
        q = q.gather(2, drawn[:, None, :, None].expand(-1, heads, -1, c))
    tokens, query_at, key_at, valid = _geometry(call, drawn)
    weight = valid.float()[:, None, :]  # [groups, 1, r]
    sums = {name: q.new_zeros(groups, heads, dtype=torch.float32) for name in ROW_STATISTICS}
    mass = q.new_zeros(groups, heads, call.k.shape[2], dtype=torch.float32)
    for block, p in row_blocks(q, call.k):
        w = weight[..., block]
        ordered = descending(p)
        found = {
            "entropy": normalised_entropy(p),
            "support": effective_support(p),
            "n90": keys_for_mass(ordered),
            "gini": gini(ordered),
            "top10": top_mass(ordered),
            "padding": (p * (tokens < 0).view(groups, 1, 1, -1)).sum(-1),
        }
        if query_at is not None and key_at is not None:
            near = p[..., : len(key_at)]
            share = near.sum(-1).clamp(min=1e-12)
            found["distance_px"] = mean_distance(near, query_at[:, None, block], key_at) / share
        for name, values in found.items():
            sums[name] += (values * w).sum(-1)
        mass += (p * w[..., None]).sum(2)
    counts = weight.sum((1, 2))  # [groups]
    if query_at is None:
        sums["distance_px"] += math.nan
    if windowed:
        total = counts.sum()
        means = {name: (value.sum(0) / total)[None] for name, value in sums.items()}
        received = _on_grid(mass, tokens, site.grid) / total
        return CallStatistics(call.site, call.moment.frame, (), means, received, int(total))
    means = {name: value / counts[:, None] for name, value in sums.items()}
    received = mass / counts[:, None, None]
    if call.keys is not None:
        dense = received.new_zeros(groups, heads, call.moment.layouts[0].keys)
        received = dense.index_copy(2, call.keys, received)
    objects = call.moment.objects
    return CallStatistics(call.site, call.moment.frame, objects, means, received, int(counts[0]))


def _geometry(
    call: AttentionCall, drawn: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Say where queries and keys lie.

    Returns
    -------
    tuple
        Token of each key ``[groups, Nk]`` (-1: padding); positions in pixels of the drawn queries
        ``[groups, r, 2]`` and of the keys that have one ``[n, 2]``, or None; which drawn queries are real
        ``[groups, r]``.
    """
    site, device = call.where, call.q.device
    assert site is not None, "observe fills it in"
    groups, keys = len(call.q), call.k.shape[2]
    everything = torch.arange(keys, device=device).expand(groups, keys)
    real = torch.ones_like(drawn, dtype=torch.bool)
    if site.kind == "window":
        slots = window_slots(site.grid, site.window)
        side = site.window // site.pool
        pooled = window_slots(site.grid // site.pool, side)
        if call.keys is not None:
            chosen = call.keys.cpu()
            slots, pooled = slots[chosen], pooled[chosen]
        real = pooled.to(device).gather(1, drawn) >= 0
        at = grid_positions(side, float(site.stride * site.pool)).to(device)
        key_at = grid_positions(site.window, float(site.stride)).to(device)
        return slots.to(device), at[drawn], key_at, real
    if site.kind == "global" or site.part == "memory":
        at = grid_positions(site.grid, float(site.stride)).to(device)
        if site.kind == "cross":
            layout = call.moment.layouts[0]
            ids = everything[0] if call.keys is None else call.keys
            of_frames = ids[ids < layout.frame_keys]
            return everything, at[drawn], at[of_frames % layout.tokens], real
        ids = everything[0] if call.keys is None else call.keys
        return ids.expand(groups, keys), at[ids][drawn], at[ids], real
    return everything, None, None, real


def _on_grid(mass: Tensor, tokens: Tensor, grid: int) -> Tensor:
    """Lay key mass ``[groups, h, Nk]`` on the token grid, ``[1, h, grid**2]``; padding is dropped."""
    heads = mass.shape[1]
    flat = mass.new_zeros(heads, grid * grid + 1)
    place = torch.where(tokens < 0, grid * grid, tokens).reshape(-1)
    flat.index_add_(1, place, mass.transpose(0, 1).reshape(heads, -1))
    return flat[None, :, :-1]


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


class AttentionStatistics:
    """Accumulates statistics per site, head and object over frames; two halves merge to the whole.

    Parameters
    ----------
    rows, seed
        As in `measure`; the seed is advanced with each frame.

    Examples
    --------
    ``with observe(predictor, statistics.add, "*.global"): …; statistics.result()``
    """

    def __init__(self, rows: int | None = QUERY_ROWS, seed: int = 0) -> None:
        self.rows, self.seed = rows, seed
        self._sums: dict[tuple[str, int], dict[str, Tensor]] = {}

    def add(self, call: AttentionCall, foreground: Tensor | None = None) -> CallStatistics:
        """Add a call, and return its own statistics.

        Parameters
        ----------
        foreground
            Share of each token of the site's grid that the object covers, ``[grid**2]``; adds the
            foreground lift.
        """
        found = measure(call, self.rows, self.seed + (call.moment.frame or 0))
        for o, object_id in enumerate(found.objects or (-1,)):
            if o >= len(found.mass):  # a call that objects share
                break
            values = {name: mean[o] for name, mean in found.means.items()}
            if call.where is not None and call.where.kind == "cross":
                values["slots"] = slot_shares(found, call)[o]
            if foreground is not None and found.mass.shape[-1] == len(foreground):
                values["lift"] = foreground_lift(found.mass[o], foreground)
            sums = self._sums.setdefault((found.site, object_id), {})
            for name, value in values.items():
                kept = value.detach().double().cpu()
                known = torch.isfinite(kept)
                add = torch.stack([torch.where(known, kept, 0.0), known.double()])
                sums[name] = sums[name] + add if name in sums else add
        return found

    def merge(self, other: AttentionStatistics) -> None:
        """Add what another accumulator has seen."""
        for key, sums in other._sums.items():
            own = self._sums.setdefault(key, {})
            for name, value in sums.items():
                own[name] = own[name] + value if name in own else value.clone()

    def result(self) -> list[dict[str, Any]]:
        """Means over frames: one entry per site and object (-1: encoder), with a list over heads per statistic.

        ``slots`` is a list over `probes.records.SLOTS`. Every entry also says over how many ``calls``.
        """
        entries = []
        for (site, object_id), sums in sorted(self._sums.items()):
            entry: dict[str, Any] = {"site": site, "object": object_id}
            for name, (total, count) in sums.items():
                entry[name] = (total / count).tolist()
            entry["calls"] = int(sums["entropy"][1].max())
            entries.append(entry)
        return entries

    def state_dict(self) -> dict[str, Tensor]:
        """All sums, for `load_state_dict` and safetensors."""
        return {
            f"{site}|{object_id}|{name}": value
            for (site, object_id), sums in self._sums.items()
            for name, value in sums.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from saved sums."""
        self._sums = {}
        for key, value in state.items():
            site, object_id, name = key.split("|")
            self._sums.setdefault((site, int(object_id)), {})[name] = value.clone()


def token_coverage(mask: Tensor, grid: int) -> Tensor:
    """Share of each token that a mask ``[h, w]`` covers, float32 ``[grid**2]``; h and w divide by the grid."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(mask[None, None].float(), grid)
    return pooled.reshape(-1)


def mean_over(entries: Sequence[dict[str, Any]], name: str) -> float:
    """Mean of a statistic over entries of `AttentionStatistics.result` and heads."""
    values = [v for entry in entries if name in entry for v in entry[name] if v == v]
    return sum(values) / len(values) if values else math.nan
