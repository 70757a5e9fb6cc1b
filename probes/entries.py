"""What was seen of one frame or object, and how it becomes the arrays of a recording."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probes.consistency import Recollection
from probes.maps import computed_queries, in_dense_order, keys_there, site_of
from probes.mass import attention_weights, foreground_lift, token_coverage
from probes.measure import CallStatistics
from probes.records import SLOTS, STATISTICS, Array, Settings
from probes.seam import AttentionCall
from probes.sites import AttentionSite

CANDIDATES = 3
"""Masks that SAM 2's decoder proposes where it proposes several."""


@dataclass
class Seen:
    """What was seen of one frame (encoder) or of one object on it so far.

    Attributes
    ----------
    statistics
        By site: a call's statistics, and which of its objects this is.
    saliency
        Token-to-image attention of the last run of the decoder, one map a site.
    stage3
        Key mass of each windowed block of encoder stage 3, ``[tokens]``, as `even_mass`.
    memory, shares
        By site: how each memory frame compares with its first recollection, and the mass of each slot.
    readers
        Tokens of the frame that read memory; None for all.
    rows
        By site: raw rows, their maxima, and which of their cells hold a key that took part.
    heads
        What the mask decoder's heads gave; None for what a model doesn't make.
    """

    statistics: dict[str, tuple[CallStatistics, int]] = field(default_factory=dict)
    saliency: list[Tensor] = field(default_factory=list)
    stage3: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, list[Recollection]] = field(default_factory=dict)
    shares: dict[str, Tensor] = field(default_factory=dict)
    readers: Tensor | None = None
    rows: dict[str, tuple[Array, Array, Array]] = field(default_factory=dict)
    heads: tuple[Any, ...] | None = None


def even_mass(mass: Tensor, there: Tensor | None) -> Tensor:
    """Key mass ``[h, keys]``, mean over heads, as multiples of the even share of the keys that took part; NaN for others."""
    if there is None:
        return mass.mean(0) * mass.shape[-1]
    return (mass.mean(0) * there.sum()).masked_fill(~there, math.nan)


def mass_maps(seen: Seen, map_sites: Sequence[str], grid: int) -> dict[str, Array]:
    """`even_mass` of the encoder on the token grid; NaN where it was not seen."""
    maps = np.full((len(map_sites), grid, grid), np.nan, np.float16)
    for i, site in enumerate(map_sites):
        if site in seen.statistics:
            found = seen.statistics[site][0]
            maps[i] = even_mass(found.mass[0], found.there).view(grid, grid).cpu().numpy()
    windowed = np.full((grid, grid), np.nan, np.float16)
    if seen.stage3:
        windowed = torch.stack([*seen.stage3.values()]).nanmean(0).view(grid, grid).cpu().numpy()
    return {"encoder_mass": maps, "stage3_mass": windowed.astype(np.float16)}


def statistics_table(
    seen: Seen, sites: Sequence[AttentionSite], mask: Tensor, remembered: Mapping[int, Tensor]
) -> Array:
    """Statistics of some sites, float32 ``[sites, H, K]``.

    Parameters
    ----------
    seen
        Of a frame or object.
    sites
        In order.
    mask
        Bool ``[h, w]``: what `lift` is against.
    remembered
        By frame: share of each token that the object covered, against which memory keys are held.
    """
    heads = max((site.heads for site in sites), default=0)
    table = np.full((len(sites), heads, len(STATISTICS)), np.nan, np.float32)
    for i, site in enumerate(sites):
        if site.name not in seen.statistics:
            continue
        found, b = seen.statistics[site.name]
        b = min(b, len(found.mass) - 1)  # a call that objects share has one row
        values = [found.means[s][b] for s in STATISTICS if s != "lift"]
        lift = _lift(site, found.mass[b], found.there, mask, seen, remembered)
        table[i, : site.heads] = torch.stack([*values, lift], -1).cpu().numpy()
    return table


def _lift(
    site: AttentionSite,
    mass: Tensor,
    there: Tensor | None,
    mask: Tensor,
    seen: Seen,
    remembered: Mapping[int, Tensor],
) -> Tensor:
    """Foreground lift of key mass ``[h, keys]`` among those there; memory keys against the masks of their own frames."""
    foreground = None
    if site.kind == "cross":
        known = [remembered.get(one.entry.frame) for one in seen.memory.get(site.name, [])]
        if known and all(part is not None for part in known):
            foreground = torch.cat([part for part in known if part is not None])
    elif mass.shape[-1] == site.grid**2:
        foreground = token_coverage(mask, site.grid)
    if foreground is None:
        return mass.new_full(mass.shape[:1], math.nan)
    mass, foreground = mass[:, : len(foreground)], foreground.to(mass.device)
    if there is not None:
        taking = there[: len(foreground)]
        mass, foreground = mass[:, taking], foreground[taking]
    return foreground_lift(mass, foreground)


def best_mask(seen: Seen, out: Mapping[str, Any], prompted: bool) -> Tensor:
    """The mask that the decoder chose, bool ``[s, s]``; the prompt's on a prompted frame."""
    if seen.heads is not None and not prompted:
        return seen.heads[3][0, 0] > 0
    mask: Tensor = out["pred_masks"][0, 0] > 0
    return mask


def decoded(seen: Seen, out: Mapping[str, Any], prompted: bool, grid: int) -> dict[str, Any]:
    """An object's masks, score and decoder saliency on a frame, from the stored output and the heads."""
    stored = out["pred_masks"][0, 0] > 0
    candidates = np.zeros((CANDIDATES, *stored.shape), bool)
    candidates[0] = stored.cpu().numpy()
    if seen.heads is not None and not prompted:
        several = seen.heads[0][0, :CANDIDATES] > 0
        candidates[: len(several)] = several.cpu().numpy()
    saliency = np.full((grid, grid), np.nan, np.float32)
    if seen.saliency:
        looked = torch.stack(seen.saliency).mean(0)
        saliency = looked.view(grid, grid).cpu().numpy()
    return {
        "score": np.float32(out["object_score_logits"].max().item()),
        "candidates": np.packbits(candidates.reshape(CANDIDATES, -1), axis=-1),
        "best": np.packbits(best_mask(seen, out, prompted).cpu().numpy().reshape(-1)),
        "decoder_saliency": saliency,
    }


def recalled(seen: Seen, layer_of: Mapping[str, int], shares: int) -> dict[str, Any]:
    """An object's memory on a frame: what is in each slot, its share, and how it compares with its first recollection.

    Parameters
    ----------
    seen
        Of the object.
    layer_of
        Layer of each site of memory cross-attention.
    shares
        Number of keep shares.
    """
    slots, layers = len(SLOTS) - 1, len(layer_of)
    held = np.full(slots, -1, np.int32)
    found: dict[str, Any] = {
        "memory_frame": held,
        "prompt_frames": [],
        "slot_share": np.full((layers, slots + 1), np.nan, np.float32),
        "recall": np.full((layers, slots, shares), np.nan, np.float16),
        "oracle_recall": np.full((layers, slots, shares), np.nan, np.float16),
        "similarity": np.full((layers, slots, 4), np.nan, np.float16),
    }
    for name, entries in seen.memory.items():
        layer = layer_of[name]
        found["slot_share"][layer] = seen.shares[name].cpu().numpy()
        prompts = [e.entry for e in entries if e.entry.position == 0]
        found["prompt_frames"] = sorted(entry.frame for entry in prompts)
        for recollection in (entries[f] for f in _shown(entries)):
            memory = recollection.entry
            held[memory.position] = memory.frame
            for key in ("recall", "oracle_recall", "similarity"):
                found[key][layer, memory.position] = getattr(recollection, key).cpu().numpy()
    return found


def memory_read(seen: Seen, layer_of: Mapping[str, int], tokens: int) -> dict[str, Array]:
    """Which tokens of an object's memory an accelerated run read on a frame, and which tokens of the frame read them.

    Parameters
    ----------
    seen, layer_of
        As for `recalled`.
    tokens
        Of a frame.

    Returns
    -------
    dict
        `ClipRecord.keys_read` and `ClipRecord.queries_read` of one row.
    """
    keys = np.zeros((len(layer_of), len(SLOTS) - 1, tokens), bool)
    queries = np.zeros(tokens, bool)
    for name, entries in seen.memory.items():
        there = seen.statistics[name][0].there
        queries[slice(None) if seen.readers is None else seen.readers.cpu().numpy()] = True
        of_frames = np.ones((len(entries), tokens), bool)
        if there is not None:
            of_frames = there[: of_frames.size].view(of_frames.shape).cpu().numpy()
        for f in _shown(entries):
            keys[layer_of[name], entries[f].entry.position] = of_frames[f]
    return {"keys_read": np.packbits(keys, axis=-1), "queries_read": np.packbits(queries)}


def _shown(entries: Sequence[Recollection]) -> list[int]:
    """Which memory frames stand for their slots: all but the conditioning frames that are not the nearest one."""
    prompts = [e.entry.age for e in entries if e.entry.position == 0]
    nearest = min(prompts, default=None)
    return [f for f, e in enumerate(entries) if e.entry.position != 0 or e.entry.age == nearest]


def row_forms(
    site: AttentionSite, settings: Settings, output_tokens: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a site's stored rows and of their maxima, for one frame or object; heads come first, if they are kept."""
    r = settings.row_grid
    if site.kind == "token_to_image":
        lead: tuple[int, ...] = (output_tokens,)
    elif site.kind == "cross":
        lead = (len(settings.row_queries), len(SLOTS) - 1)
    else:
        lead = (len(settings.row_queries),)
    heads = (site.heads,) if settings.row_heads else ()
    return (*heads, *lead, r, r), (*heads, lead[0])


def raw_rows(
    call: AttentionCall, b: int, settings: Settings, output_tokens: int
) -> tuple[Array, Array, Array]:
    """Attention rows of some queries of one object, of each head or their mean: 8-bit levels, maxima, and cells that were read.

    Maxima are NaN of queries that were not computed; cells are packed bits.
    """
    site, device = site_of(call), call.q.device
    shape, form = row_forms(site, settings, output_tokens)
    wanted = range(output_tokens) if site.kind == "token_to_image" else settings.row_queries
    at = torch.tensor(wanted, device=device)
    asked = computed_queries(call)
    if asked is not None:
        place = torch.full((site.grid**2,), -1, device=device)
        place[asked] = torch.arange(len(asked), device=device)
        at = place[at]
    p = attention_weights(call.q[b][:, at.clamp(min=0)], call.k[b])  # [h, Q, Nk]
    p = p if settings.row_heads else p.mean(0)
    cells = _in_cells(call, b, in_dense_order(call, p, b), shape)
    scale = cells.flatten(len(form)).amax(-1)
    levels = cells / scale.clamp(min=1e-30).view(*form, *(1,) * (cells.ndim - len(form)))
    there = keys_there(call, b)
    read = p.new_ones(1, p.shape[-1]) if there is None else there[None].float()
    some = _in_cells(call, b, read, (1, *shape[len(form) :]))[0] > 0
    return (
        (levels.sqrt() * 255).round().byte().cpu().numpy(),
        scale.masked_fill(at < 0, math.nan).cpu().numpy(),
        np.packbits(some.cpu().numpy()),
    )


def _in_cells(call: AttentionCall, b: int, p: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum rows ``[..., keys]`` inside each of r x r cells, of memory in the slots of its frames."""
    site, r = site_of(call), shape[-1]
    cell = site.grid // r
    if site.kind != "cross":
        return p.reshape(*p.shape[:-1], r, cell, r, cell).sum((-3, -1))
    cells, layout = p.new_zeros(shape), call.moment.layouts[b]
    of_frames = p[..., : layout.frame_keys]
    frames = of_frames.reshape(*of_frames.shape[:-1], -1, r, cell, r, cell).sum((-3, -1))
    for i, entry in enumerate(layout.frames):
        cells[..., entry.position, :, :] += frames[..., i, :, :]
    return cells
