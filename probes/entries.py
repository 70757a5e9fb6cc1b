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
from probes.maps import site_of
from probes.mass import attention_weights, foreground_lift, token_coverage
from probes.measure import CallStatistics
from probes.observing import AttentionCall
from probes.records import SLOTS, STATISTICS, Array, Settings
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
        Key mass of each windowed block of encoder stage 3, ``[tokens]``.
    memory, shares
        By site: how each memory frame compares with its first recollection, and the mass of each slot.
    rows
        By site: raw rows and their maxima.
    heads
        What the mask decoder's heads gave.
    """

    statistics: dict[str, tuple[CallStatistics, int]] = field(default_factory=dict)
    saliency: list[Tensor] = field(default_factory=list)
    stage3: list[Tensor] = field(default_factory=list)
    memory: dict[str, list[Recollection]] = field(default_factory=dict)
    shares: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    heads: tuple[Tensor, ...] | None = None


def mass_maps(seen: Seen, map_sites: Sequence[str], grid: int) -> dict[str, Array]:
    """Key mass of the encoder on the token grid, times the number of tokens; NaN where it was not seen."""
    maps = np.full((len(map_sites), grid, grid), np.nan, np.float16)
    for i, site in enumerate(map_sites):
        if site in seen.statistics:
            mass = seen.statistics[site][0].mass[0].mean(0) * grid**2
            maps[i] = mass.view(grid, grid).cpu().numpy()
    windowed = np.full((grid, grid), np.nan, np.float16)
    if seen.stage3:
        windowed = (torch.stack(seen.stage3).mean(0) * grid**2).view(grid, grid).cpu().numpy()
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
        lift = _lift(site, found.mass[b], mask, seen, remembered)
        table[i, : site.heads] = torch.stack([*values, lift], -1).cpu().numpy()
    return table


def _lift(
    site: AttentionSite, mass: Tensor, mask: Tensor, seen: Seen, remembered: Mapping[int, Tensor]
) -> Tensor:
    """Foreground lift of key mass ``[h, keys]``; memory keys against the masks of their own frames."""
    if site.kind == "cross":
        known = [remembered.get(one.entry.frame) for one in seen.memory.get(site.name, [])]
        if known and all(part is not None for part in known):
            foreground = torch.cat([part for part in known if part is not None])
            return foreground_lift(mass[:, : len(foreground)], foreground.to(mass.device))
    elif mass.shape[-1] == site.grid**2:
        return foreground_lift(mass, token_coverage(mask, site.grid).to(mass.device))
    return mass.new_full(mass.shape[:1], math.nan)


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
        nearest = min((entry.age for entry in prompts), default=None)
        for recollection in entries:
            memory = recollection.entry
            if memory.position == 0 and memory.age != nearest:
                continue
            held[memory.position] = memory.frame
            for key in ("recall", "oracle_recall", "similarity"):
                found[key][layer, memory.position] = getattr(recollection, key).cpu().numpy()
    return found


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
) -> tuple[Array, Array]:
    """Attention rows of some queries of one object, of each head or their mean, as 8-bit levels and maxima."""
    site = site_of(call)
    r, cell = settings.row_grid, site.grid // settings.row_grid
    shape, form = row_forms(site, settings, output_tokens)
    if site.kind == "token_to_image":
        q = call.q[b, :, :output_tokens]
    else:
        q = call.q[b][:, torch.tensor(settings.row_queries, device=call.q.device)]
    p = attention_weights(q, call.k[b])  # [h, Q, Nk]
    p = p if settings.row_heads else p.mean(0)
    cells = p.new_zeros(shape)
    if site.kind == "cross":
        layout = call.moment.layouts[b]
        of_frames = p[..., : layout.frame_keys]
        frames = of_frames.reshape(*of_frames.shape[:-1], -1, r, cell, r, cell).sum((-3, -1))
        for i, entry in enumerate(layout.frames):
            cells[..., entry.position, :, :] += frames[..., i, :, :]
    else:
        cells += p.reshape(*p.shape[:-1], r, cell, r, cell).sum((-3, -1))
    scale = cells.flatten(len(form)).amax(-1)
    levels = (
        cells / scale.clamp(min=1e-30).view(*form, *(1,) * (cells.ndim - len(form)))
    ).sqrt() * 255
    return levels.round().byte().cpu().numpy(), scale.cpu().numpy()
