"""Attention rows and maps on the token grid: what a pixel looks at, who looks at it, where an object's prompt looks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from probes.errors import InputError, some_of
from probes.mass import attention_weights, key_mass, row_blocks, window_slots
from probes.seam import AttentionCall
from probes.sites import AttentionSite

OUTPUT_TOKENS = 6
"""The decoder's own tokens, which come before those of the prompt: object score, IoU, four masks."""


def site_of(call: AttentionCall) -> AttentionSite:
    """The site of a call that passed through `observe`."""
    assert call.where is not None, "observe fills it in"
    return call.where


def softmax_site(call: AttentionCall) -> AttentionSite:
    """The same, of a call whose weights follow from q and k.

    Raises
    ------
    InputError
        An edit has set them.
    """
    if call.weights is not None:
        raise InputError(
            f"the weights of {call.site} were set by an edit; expected a call whose weights are the softmax of q and k; read "
            "call.weights itself, or observe without the edit"
        )
    return site_of(call)


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
    site = softmax_site(call)
    total = call.q.shape[2] if site.part == "decoder" else _query_side(site) ** 2
    wanted = torch.arange(total) if queries is None else torch.as_tensor(queries).reshape(-1)
    if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < total:
        raise InputError(
            f"queries {int(wanted.min())} to {int(wanted.max())} were asked for; {call.site} has {total}; choose "
            "among them"
        )
    if site.kind == "window":
        return _window_rows(call, site, wanted)
    asked = computed_queries(call)
    at = wanted if asked is None else _positions(wanted, asked, call.site)
    p = attention_weights(call.q[row][:, at.to(call.q.device)], call.k[row])
    return in_dense_order(call, p, row)


def _window_rows(call: AttentionCall, site: AttentionSite, wanted: Tensor) -> Tensor:
    """Rows of tokens in windowed blocks, laid out on the grid of keys."""
    side = site.window // site.pool
    places = window_slots(_query_side(site), side)
    lookup = torch.full((_query_side(site) ** 2,), -1, dtype=torch.int64)
    slots = torch.arange(places.numel()).view_as(places)
    lookup[places[places >= 0]] = slots[places >= 0]
    group, slot = lookup[wanted] // side**2, lookup[wanted] % side**2
    keys = window_slots(site.grid, site.window)
    taking = queries_there(call)
    out = call.q.new_zeros(site.heads, len(wanted), site.grid**2 + 1, dtype=torch.float32)
    for g in group.unique().tolist():
        mine, at = (group == g).nonzero()[:, 0], _window_at(call, g)
        asked = slot[mine].to(call.q.device)
        if taking is not None and not bool(taking[at][asked].all()):
            raise _not_computed(call.site)
        there = None if call.there is None else call.there[at]
        p = attention_weights(call.q[at][:, asked], call.k[at], there)
        place = torch.where(keys[g] < 0, site.grid**2, keys[g]).to(p.device)
        out[:, mine.to(p.device)] = out[:, mine.to(p.device)].index_add(2, place, p)
    return out[..., :-1]


# ---------------------------------------------------------------------- which tokens took part


def computed_queries(call: AttentionCall) -> Tensor | None:
    """Which tokens of the grid the queries of a memory or global call are, int64 ``[Nq]``; None: all, in order."""
    if call.queries is None and site_of(call).kind == "global":
        return call.keys
    return call.queries


def queries_there(call: AttentionCall) -> Tensor | None:
    """Which queries of trimmed windows take part, bool ``[B, Nq]``: those with a key that does; None: all."""
    if call.there is None:
        return None
    pool = site_of(call).pool
    side = site_of(call).window // pool
    return call.there.view(-1, side, pool, side, pool).any(4).any(2).flatten(1)


def keys_there(call: AttentionCall, row: int = 0) -> Tensor | None:
    """Which keys of the dense run took part, bool ``[keys]`` in their natural order, windowed blocks' on the grid; None: all."""
    if call.keys is None and call.there is None:
        return None
    site, device = site_of(call), call.k.device
    if site.kind != "window":
        return in_dense_order(
            call, torch.ones(call.k.shape[2], dtype=torch.bool, device=device), row
        )
    slots = key_tokens(call)
    slots = slots.flatten() if call.there is None else slots[call.there.flatten(1)]
    found = torch.zeros(site.grid**2, dtype=torch.bool, device=device)
    found[slots[slots >= 0]] = True
    return found


def key_tokens(call: AttentionCall) -> Tensor:
    """Token of the site's grid that each key of a call is, int64 ``[groups, Nk]``; -1 for padding, pointers and the decoder's
    own tokens. Groups are windows, or 1."""
    site, device = site_of(call), call.k.device
    if site.kind == "window":
        slots = window_slots(site.grid, site.window).to(device)
        return slots if call.keys is None else slots[call.keys]
    ids = torch.arange(call.k.shape[2], device=device) if call.keys is None else call.keys
    if site.kind == "cross":
        layout = call.moment.layouts[0]
        ids = torch.where(ids < layout.frame_keys, ids % layout.tokens, -1)
    elif site.part == "decoder" and site.kind != "token_to_image":
        ids = torch.full_like(ids, -1)
    return ids[None]


def on_grid(mass: Tensor, tokens: Tensor, grid: int) -> Tensor:
    """Lay key mass ``[groups, h, Nk]`` on the token grid, ``[1, h, grid**2]``; padding is dropped."""
    heads = mass.shape[1]
    flat = mass.new_zeros(heads, grid * grid + 1)
    place = torch.where(tokens < 0, grid * grid, tokens).reshape(-1)
    flat.index_add_(1, place, mass.transpose(0, 1).reshape(heads, -1))
    return flat[None, :, :-1]


def in_dense_order(call: AttentionCall, values: Tensor, row: int = 0) -> Tensor:
    """Lay out one value a key of a memory or global call, ``[..., Nk]``, like the dense run's keys; 0 where not read."""
    if call.keys is None:
        return values
    site = site_of(call)
    count = call.moment.layouts[row].keys if site.kind == "cross" else site.grid**2
    return values.new_zeros(*values.shape[:-1], count).index_copy_(-1, call.keys, values)


def _query_side(site: AttentionSite) -> int:
    """Tokens per side of the grid that a site's queries lie on."""
    return site.grid // site.pool


def _window_at(call: AttentionCall, window: int) -> int:
    """Where a window of the grid stands in a call's batch."""
    if call.keys is None:
        return window
    return int(_positions(torch.tensor([window]), call.keys, call.site))


def _positions(wanted: Tensor, keys: Tensor, site: str) -> Tensor:
    """Positions of tokens or windows among those that took part.

    Raises
    ------
    InputError
        One did not.
    """
    order = keys.cpu().argsort()
    at = torch.searchsorted(keys.cpu()[order], wanted).clamp(max=len(keys) - 1)
    if not torch.equal(keys.cpu()[order[at]], wanted):
        raise _not_computed(site)
    return order[at]


def _not_computed(site: str) -> InputError:
    return InputError(
        f"a token was asked for that {site} did not compute on this frame (its window or cell was left out); expected "
        "one that was computed; choose another, or a dense frame"
    )


# ---------------------------------------------------------------------- maps


def attention_map(
    calls: AttentionCall | Iterable[AttentionCall],
    *,
    query_xy: tuple[float, float] | None = None,
    key_xy: tuple[float, float] | None = None,
    object: int | None = None,
    head: int | None = None,
    layer: int | None = None,
    frame: int | None = None,
    memory_age: int | None = None,
) -> Tensor:
    """Draw one attention map on the token grid.

    Parameters
    ----------
    calls
        One call or several, of which those that fit `layer`, `frame` and `object` are averaged, each over its objects.
    query_xy
        What does this pixel look at? (x, y) in pixels of the video.
    key_xy
        Who looks at this pixel (in memory: at this place of the remembered frame)?
    object
        Id of the object; None for the mean over all that were tracked. For ``token_to_image`` without a pixel:
        where do the decoder's output tokens for this object look? For memory: what is recalled for it, mean over
        queries?
    head
        One head; None for the mean.
    layer
        Only calls of this layer of memory attention or decoder.
    frame
        Only calls of this frame; may be left out where all that fit are of one.
    memory_age
        Only the memory frame of this age in frames; None for the sum over memory frames.

    Returns
    -------
    Tensor
        float32 ``[g, g]``: attention weights; for `key_xy` on the grid of queries, 0 where none was computed.

    Raises
    ------
    InputError
        No call fits, they are of several frames, there is no such head, the question has no answer at that site, or
        the query was not computed.
    """
    given = [calls] if isinstance(calls, AttentionCall) else list(calls)
    maps: list[Tensor] = []
    frames: dict[str, None] = {}
    for call in given:
        if layer is not None and site_of(call).layer != layer:
            continue
        if frame is not None and call.moment.frame != frame:
            continue
        if head is not None and not 0 <= head < site_of(call).heads:
            raise InputError(
                f"head {head} was asked for; {call.site} has heads 0 to {site_of(call).heads - 1}; choose one of them, "
                "or None for their mean"
            )
        found = [
            _one_map(call, row, query_xy, key_xy, memory_age, head)
            for row in _rows_of(call, object)
        ]
        if found:
            maps.append(torch.stack(found).mean(0))
            frames[str(call.moment.frame)] = None
    if len(frames) > 1:
        raise InputError(
            f"calls of frames {some_of(list(frames))} were given; expected those of one frame; give frame="
        )
    if not maps or len({m.shape for m in maps}) > 1:
        raise InputError(
            f"{len(maps)} of {len(given)} calls fit layer {layer}, frame {frame} and object {object}"
            + (", on grids of several sizes" if maps else "")
            + "; expected one or more on one grid; observe such sites"
        )
    return torch.stack(maps).mean(0)


def token_at(call: AttentionCall, xy: tuple[float, float], side: int) -> int:
    """Token of a grid of `side` x `side` that a pixel of the video lies on.

    Raises
    ------
    InputError
        It lies outside the video.
    """
    site = site_of(call)
    height, width = call.size or (site.grid * site.stride,) * 2
    x, y = xy
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(
            f"pixel ({x:g}, {y:g}) was given; the video is {width}x{height}; choose x in 0..{width - 1} and y in "
            f"0..{height - 1}"
        )
    return int(y / height * side) * side + int(x / width * side)


def _rows_of(call: AttentionCall, object_id: int | None) -> Sequence[int]:
    """Rows of a call that hold an object (None: any); the encoder's windows and what objects share count as one."""
    ids = call.moment.objects
    if object_id is not None and ids and object_id not in ids:
        return []
    if site_of(call).part == "encoder" or len(call.q) == 1:
        return [0]
    return [ids.index(object_id)] if object_id is not None and ids else range(len(call.q))


def _one_map(
    call: AttentionCall,
    row: int,
    query_xy: tuple[float, float] | None,
    key_xy: tuple[float, float] | None,
    memory_age: int | None,
    head: int | None,
) -> Tensor:
    site = softmax_site(call)
    if query_xy is not None and key_xy is not None:
        raise InputError("query_xy and key_xy were both given; expected one of them; drop one")
    on_image = site.part != "decoder"
    if key_xy is not None and on_image:
        return _looked_at(call, row, key_xy, memory_age, head)
    if query_xy is not None and on_image:
        rows = attention_rows(call, [token_at(call, query_xy, _query_side(site))], row=row)[:, 0]
    elif query_xy is None and key_xy is None and site.kind == "token_to_image":
        rows = attention_rows(call, list(range(OUTPUT_TOKENS)), row=row).mean(1)
    elif query_xy is None and key_xy is None and site.part == "memory":
        mean = key_mass(call.q[row : row + 1], call.k[row : row + 1])[0]
        rows = in_dense_order(call, mean, row)
    else:
        raise InputError(
            f"this question has no answer at {call.site}; a pixel can be asked about at encoder and memory sites, "
            "an object at memory and token_to_image sites; choose such a site"
        )
    rows = rows.mean(0) if head is None else rows[head]
    if site.kind == "cross":
        layout = call.moment.layouts[row]
        by_frame = rows[: layout.frame_keys].view(-1, layout.tokens)
        rows = by_frame.sum(0) if memory_age is None else by_frame[_frame_of(call, row, memory_age)]
    return rows.view(site.grid, site.grid)


def _looked_at(
    call: AttentionCall, row: int, xy: tuple[float, float], memory_age: int | None, head: int | None
) -> Tensor:
    """How much each query looks at one key (a place of one memory frame or, without age, of all)."""
    site = site_of(call)
    side, token = _query_side(site), token_at(call, xy, site.grid)
    if site.kind == "window":
        slots = window_slots(site.grid, site.window)
        group = int((slots == token).any(1).nonzero())
        inside = window_slots(side, site.window // site.pool)[group]
        asked = inside >= 0
        taking = queries_there(call)
        if taking is not None:
            asked &= taking[_window_at(call, group)].cpu()
        inside = inside[asked]
        looked = attention_rows(call, inside)[..., token]
        full = looked.new_zeros(len(looked), side * side)
        full[:, inside.to(full.device)] = looked
    else:
        keys = [token]
        if site.kind == "cross":
            layout = call.moment.layouts[row]
            every = range(len(layout.frames))
            chosen = every if memory_age is None else [_frame_of(call, row, memory_age)]
            keys = [i * layout.tokens + token for i in chosen]
        index = torch.tensor(keys)
        if call.keys is not None:
            read = torch.isin(index, call.keys.cpu())
            index = _positions(index[read], call.keys, call.site) if read.any() else index[:0]
        parts = [
            p[0][..., index.to(p.device)].sum(-1)
            for _, p in row_blocks(call.q[row : row + 1], call.k[row : row + 1])
        ]
        full = torch.cat(parts, -1)
        made = computed_queries(call)
        if made is not None:
            full = full.new_zeros(len(full), side * side).index_copy_(1, made, full)
    return (full.mean(0) if head is None else full[head]).view(side, side)


def _frame_of(call: AttentionCall, row: int, age: int) -> int:
    frames = call.moment.layouts[row].frames
    for index, entry in enumerate(frames):
        if entry.age == age:
            return index
    raise InputError(
        f"memory age {age} was asked for; this frame's memory has ages "
        f"{', '.join(str(entry.age) for entry in frames)}; choose one of them"
    )
