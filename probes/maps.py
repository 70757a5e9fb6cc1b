"""Attention maps on the token grid: what a pixel looks at, who looks at it, where an object's prompt looks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from probes.errors import InputError
from probes.keymass import key_mass
from probes.mass import row_blocks, window_slots
from probes.rows import attention_rows as attention_rows
from probes.rows import computed_queries, in_dense_order, positions, query_side, site_of
from probes.seam import AttentionCall

OUTPUT_TOKENS = 6
"""The decoder's own tokens, which come before those of the prompt: object score, IoU, four masks."""


def attention_map(
    calls: AttentionCall | Iterable[AttentionCall],
    *,
    query_xy: tuple[float, float] | None = None,
    key_xy: tuple[float, float] | None = None,
    object: int | None = None,
    head: int | None = None,
    layer: int | None = None,
    memory_age: int | None = None,
) -> Tensor:
    """Draw one attention map on the token grid.

    Parameters
    ----------
    calls
        One call or several, of which those that fit `layer` and `object` are averaged, each over its objects.
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
    memory_age
        Only the memory frame of this age in frames; None for the sum over memory frames.

    Returns
    -------
    Tensor
        float32 ``[g, g]``: attention weights; for `key_xy` on the grid of queries, 0 where none was computed.

    Raises
    ------
    InputError
        No call fits, the question has no answer at that site, or the query was not computed.
    """
    given = [calls] if isinstance(calls, AttentionCall) else list(calls)
    maps = []
    for call in given:
        if layer is not None and site_of(call).layer != layer:
            continue
        found = [
            _one_map(call, row, query_xy, key_xy, memory_age, head)
            for row in _rows_of(call, object)
        ]
        if found:
            maps.append(torch.stack(found).mean(0))
    if not maps or len({m.shape for m in maps}) > 1:
        raise InputError(
            f"{len(maps)} of {len(given)} calls fit layer {layer} and object {object}"
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
    site = site_of(call)
    if query_xy is not None and key_xy is not None:
        raise InputError("query_xy and key_xy were both given; expected one of them; drop one")
    on_image = site.part != "decoder"
    if key_xy is not None and on_image:
        return _looked_at(call, row, key_xy, memory_age, head)
    if query_xy is not None and on_image:
        rows = attention_rows(call, [token_at(call, query_xy, query_side(site))], row=row)[:, 0]
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
    call: AttentionCall,
    row: int,
    xy: tuple[float, float],
    memory_age: int | None,
    head: int | None,
) -> Tensor:
    """How much each query looks at one key (a place of one memory frame or, without age, of all)."""
    site = site_of(call)
    side, token = query_side(site), token_at(call, xy, site.grid)
    if site.kind == "window":
        slots = window_slots(site.grid, site.window)
        group = int((slots == token).any(1).nonzero())
        inside = window_slots(side, site.window // site.pool)[group]
        inside = inside[inside >= 0]
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
            index = positions(index[read], call.keys, call.site) if read.any() else index[:0]
        parts = [
            p[0][..., index.to(p.device)].sum(-1)
            for _, p in row_blocks(call.q[row : row + 1], call.k[row : row + 1])
        ]
        full = torch.cat(parts, -1)
        asked = computed_queries(call)
        if asked is not None:
            full = full.new_zeros(len(full), side * side).index_copy_(1, asked, full)
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
