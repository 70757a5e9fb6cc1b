"""Attention rows: what some queries of a call attend to, keys in their natural order."""

from __future__ import annotations

import torch
from torch import Tensor

from probes.errors import InputError
from probes.mass import attention_weights, window_slots
from probes.seam import AttentionCall
from probes.sites import AttentionSite


def attention_rows(
    call: AttentionCall, queries: Tensor | list[int] | None = None, *, row: int = 0
) -> Tensor:
    """Attention weights of some queries, keys in their natural order.

    Parameters
    ----------
    call
        As `observe` hands it over.
    queries
        Which: tokens of the query grid, row by row (the decoder's ``self`` and ``token_to_image``: its tokens);
        None for all.
    row
        Which of the call's objects; 0 for the encoder.

    Returns
    -------
    Tensor
        float32 ``[h, n, keys]``. Encoder keys are the grid's tokens (0 outside the query's window; the mass
        on padding is left out), memory keys the dense layout (0 where not read); else rows sum to one.

    Raises
    ------
    InputError
        A query does not exist or was not computed.
    """
    site = site_of(call)
    total = call.q.shape[2] if site.part == "decoder" else query_side(site) ** 2
    wanted = torch.arange(total) if queries is None else torch.as_tensor(queries).reshape(-1)
    if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < total:
        raise InputError(
            f"queries {int(wanted.min())} to {int(wanted.max())} were asked for; {call.site} has {total}; choose "
            "among them"
        )
    if site.kind == "window":
        return _window_rows(call, site, wanted)
    asked = computed_queries(call)
    at = wanted if asked is None else positions(wanted, asked, call.site)
    p = attention_weights(call.q[row][:, at.to(call.q.device)], call.k[row])
    return in_dense_order(call, p, row)


def computed_queries(call: AttentionCall) -> Tensor | None:
    """Which tokens of the grid the queries of a memory or global call are, int64 ``[Nq]``; None: all, in order."""
    if call.queries is None and site_of(call).kind == "global":
        return call.keys
    return call.queries


def in_dense_order(call: AttentionCall, values: Tensor, row: int = 0) -> Tensor:
    """Lay out one value a key of a memory or global call, ``[..., Nk]``, like the dense run's keys; 0 where not read."""
    if call.keys is None:
        return values
    site = site_of(call)
    count = call.moment.layouts[row].keys if site.kind == "cross" else site.grid**2
    return values.new_zeros(*values.shape[:-1], count).index_copy_(-1, call.keys, values)


def query_side(site: AttentionSite) -> int:
    """Tokens per side of the grid that a site's queries lie on."""
    return site.grid // site.pool


def positions(wanted: Tensor, keys: Tensor, site: str) -> Tensor:
    """Positions of tokens or windows among those that took part.

    Raises
    ------
    InputError
        One did not.
    """
    order = keys.cpu().argsort()
    at = torch.searchsorted(keys.cpu()[order], wanted).clamp(max=len(keys) - 1)
    if not torch.equal(keys.cpu()[order[at]], wanted):
        raise InputError(
            f"a token was asked for that {site} did not compute on this frame (its window was left out); expected "
            "one in a computed window; choose another, or a dense frame"
        )
    return order[at]


def site_of(call: AttentionCall) -> AttentionSite:
    """The site of a call that passed through `observe`."""
    assert call.where is not None, "observe fills it in"
    return call.where


def _window_rows(call: AttentionCall, site: AttentionSite, wanted: Tensor) -> Tensor:
    """Rows of tokens in windowed blocks, laid out on the grid of keys."""
    side = site.window // site.pool
    places = window_slots(query_side(site), side)
    lookup = torch.full((query_side(site) ** 2,), -1, dtype=torch.int64)
    slots = torch.arange(places.numel()).view_as(places)
    lookup[places[places >= 0]] = slots[places >= 0]
    group, slot = lookup[wanted] // side**2, lookup[wanted] % side**2
    keys = window_slots(site.grid, site.window)
    out = call.q.new_zeros(site.heads, len(wanted), site.grid**2 + 1, dtype=torch.float32)
    for g in group.unique().tolist():
        mine = (group == g).nonzero()[:, 0]
        at = g if call.keys is None else int(positions(torch.tensor([g]), call.keys, call.site))
        p = attention_weights(call.q[at][:, slot[mine].to(call.q.device)], call.k[at])
        place = torch.where(keys[g] < 0, site.grid**2, keys[g]).to(p.device)
        out[:, mine.to(p.device)] = out[:, mine.to(p.device)].index_add(2, place, p)
    return out[..., :-1]
