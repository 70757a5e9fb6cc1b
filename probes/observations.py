"""What the paper observes of SAM 2's attention, as one number a clip of a recording: where it looks, how few tokens matter, and
for how long the same ones do. Needs neither torch nor sam2."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from probes.estimates import Estimate, over_clips
from probes.records import ClipRecord, Recording, Settings

AGES = (1, 2, 3, 4, 5)
"""Frames since a memory frame was recalled first, at which its key mass is compared."""

KEEP = 0.05
"""Share of a memory frame's tokens, chosen at first recollection, whose recall is told."""

Number = Callable[[ClipRecord], float]
"""One number of a clip."""


@dataclass(frozen=True)
class Seen:
    """A mean over clips; `chance` where the same is known by chance."""

    name: str
    found: Estimate
    chance: Estimate | None = None


def observe(recording: Recording) -> dict[str, list[Seen]]:
    """Reduce a recording of stock sam2 to the paper's observations; what no clip has a value of is left out.

    Returns
    -------
    dict
        ``lift``: foreground lift of the decoder's tokens, then of the encoder's global blocks; ``top10``: mass of the top 10 % of
        memory's keys, by layer; ``consistency``: cosine with the first recollection by age, with chance; ``recall``: mass
        that the `KEEP` tokens chosen first hold, by age.
    """
    settings = recording.header.settings
    clips = [clip for _, clip in recording]
    at = settings.keep_shares.index(KEEP)
    sites = {"decoder, token to image": decoder_sites(settings)}
    sites |= {site: [site] for site in global_sites(settings)}
    layers = range(recording.header.model.layers)

    def mean(of: Number, most: float) -> Estimate | None:
        values = [of(clip) for clip in clips]
        return None if np.isnan(values).all() else over_clips(values, (0, most))

    def rows(named: dict[str, Number], chance: dict[str, Number], most: float = 1) -> list[Seen]:
        found = []
        for name, of in named.items():
            got = mean(of, most)
            if got is not None:
                found.append(Seen(name, got, mean(chance[name], most) if name in chance else None))
        return found

    def ages(of: Callable[[ClipRecord], NDArray[np.floating]]) -> dict[str, Number]:
        def mean_at(clip: ClipRecord, age: int) -> float:
            return over_ages(clip, of(clip).astype(float), age)

        return {f"age {age}": partial(mean_at, age=age) for age in AGES}

    lifts: dict[str, Number] = {
        name: partial(lift, settings=settings, sites=of) for name, of in sites.items()
    }
    masses: dict[str, Number] = {
        f"memory layer {n}": partial(top10, settings=settings, layer=n) for n in layers
    }
    return {
        "lift": rows(lifts, {}, math.inf),
        "top10": rows(masses, {}),
        "consistency": rows(
            ages(lambda c: c.similarity[..., 0]), ages(lambda c: c.similarity[..., 1])
        ),
        "recall": rows(ages(lambda c: c.recall[..., at]), {}),
    }


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
