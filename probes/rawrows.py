"""Raw attention rows of some queries, small enough to store for the explorer."""

from __future__ import annotations

import torch

from probes.mass import attention_weights
from probes.records import SLOTS, Array, Settings
from probes.seam import AttentionCall
from probes.sites import AttentionSite


def row_forms(
    site: AttentionSite, settings: Settings, output_tokens: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a site's stored rows and of their maxima, for one frame or object."""
    r = settings.row_grid
    if site.kind == "token_to_image":
        lead: tuple[int, ...] = (output_tokens,)
    elif site.kind == "cross":
        lead = (len(settings.row_queries), len(SLOTS) - 1)
    else:
        lead = (len(settings.row_queries),)
    return (*lead, r, r), lead[:1]


def raw_rows(
    call: AttentionCall, b: int, settings: Settings, output_tokens: int
) -> tuple[Array, Array]:
    """Attention rows of some queries of one object, mean over heads, as 8-bit levels and maxima."""
    site = call.where
    assert site is not None, "observe fills it in"
    r, cell = settings.row_grid, site.grid // settings.row_grid
    shape, _ = row_forms(site, settings, output_tokens)
    if site.kind == "token_to_image":
        q = call.q[b, :, :output_tokens]
    else:
        q = call.q[b][:, torch.tensor(settings.row_queries, device=call.q.device)]
    p = attention_weights(q, call.k[b]).mean(0)  # [Q, Nk]
    cells = p.new_zeros(shape)
    if site.kind == "cross":
        layout = call.moment.layouts[b]
        frames = p[:, : layout.frame_keys].view(len(p), -1, r, cell, r, cell).sum((3, 5))
        for i, entry in enumerate(layout.frames):
            cells[:, entry.position] += frames[:, i]
    else:
        cells += p.view(len(p), r, cell, r, cell).sum((2, 4))
    scale = cells.flatten(1).amax(1)
    levels = (cells / scale.clamp(min=1e-30).view(-1, *(1,) * (cells.ndim - 1))).sqrt() * 255
    return levels.round().byte().cpu().numpy(), scale.cpu().numpy()
