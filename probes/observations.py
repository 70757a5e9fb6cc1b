"""What the paper observes of SAM 2's attention, as one number a clip of a recording: where it looks, how few tokens matter, and
for how long the same ones do. Needs neither torch nor sam2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probes.records import ClipRecord, Settings

AGES = (1, 2, 3, 4, 5)
"""Frames since a memory frame was recalled first, at which its key mass is compared."""


def decoder_sites(settings: Settings) -> list[str]:
    """Sites where the decoder's tokens read the image."""
    return [site for site in settings.object_sites if site.endswith("token_to_image")]


def global_sites(settings: Settings) -> list[str]:
    """Blocks of the encoder whose attention is global."""
    return [site for site in settings.encoder_sites if site.endswith("global")]


def lift(clip: ClipRecord, settings: Settings, sites: Sequence[str]) -> float:
    """Mean foreground lift of some sites, all of the encoder or none: attention on the object over its share of the area."""
    encoder = set(sites) <= set(settings.encoder_sites)
    names = settings.encoder_sites if encoder else settings.object_sites
    table = clip.encoder_statistics if encoder else clip.object_statistics
    at = [names.index(site) for site in sites]
    return mean_of(table[:, at][..., settings.statistics.index("lift")])


def top10(clip: ClipRecord, settings: Settings, layer: int) -> float:
    """Mean mass of the top 10 % of keys of each query, in a layer's memory cross-attention."""
    at = settings.object_sites.index(f"memory.layer{layer}.cross")
    return mean_of(clip.object_statistics[:, at, :, settings.statistics.index("top10")])


def over_ages(clip: ClipRecord, values: NDArray[np.floating], age: int) -> float:
    """Mean of ``[n, L, P]`` over remembered frames recalled `age` frames after their first recollection.

    Conditioning frames, which are exempt from pruning, don't count.
    """
    ages = np.abs(clip.row_frame[:, None] - clip.memory_frame) - 1
    chosen = (ages == age) & (clip.memory_frame >= 0)
    chosen[:, 0] = False
    return mean_of(values.transpose(0, 2, 1)[chosen])


def mean_of(values: NDArray[np.floating]) -> float:
    """Mean of what is finite; NaN where nothing is.

    >>> mean_of(np.array([1.0, np.nan, 3.0])), mean_of(np.array([]))
    (2.0, nan)
    """
    there = values[np.isfinite(values)]
    return float(there.astype(float).mean()) if there.size else float("nan")
