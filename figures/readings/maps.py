"""Where attention falls, from recordings: breadth and lift by clip, and maps of one pixel or object."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from figures.attention import lift
from figures.breadth import Breadth
from figures.readings.estimates import mean
from probes.errors import InputError
from probes.records import ClipRecord, Recording


def breadths(recording: Recording) -> list[Breadth]:
    """Entropy and distance of every recorded encoder site, with quartiles over clips, frames and heads."""
    settings = recording.header.settings
    entropy, distance = (settings.statistics.index(name) for name in ("entropy", "distance_px"))
    clips = [clip.encoder_statistics for _, clip in recording]
    found = []
    for at, site in enumerate(settings.encoder_sites):
        values = np.concatenate([clip[:, at].reshape(-1, clip.shape[-1]) for clip in clips])
        quartiles = np.nanpercentile(values[:, [entropy, distance]], [25, 75], axis=0)
        middle = np.nanmean(values[:, [entropy, distance]], axis=0)
        found.append(
            Breadth(
                site,
                float(middle[0]),
                float(middle[1]),
                (float(quartiles[0, 0]), float(quartiles[1, 0])),
                (float(quartiles[0, 1]), float(quartiles[1, 1])),
            )
        )
    return found


def lifts(recording: Recording, site: str) -> dict[str, float]:
    """How much more attention than chance falls on the tracked objects, mean over a clip's frames, by clip.

    Parameters
    ----------
    site
        One of the recording's `map_sites` (all queries of an encoder block), or ``"decoder"`` (its output
        tokens, mean over layers and heads).
    """
    sites = recording.header.settings.map_sites
    found = {}
    for info, clip in recording:
        values = []
        masks = clip.masks()
        for i in np.flatnonzero(~clip.conditioning):
            t = int(np.flatnonzero(clip.frame == clip.row_frame[i])[-1])
            mass = (
                clip.decoder_saliency[i]
                if site == "decoder"
                else clip.encoder_mass[t, _position(site, sites, "site")].astype(float)
            )
            values.append(lift(mass, masks[i]))
        found[info.name] = mean(np.array(values))
    return found


def pixel_map(
    recording: Recording, name: str, site: str, frame: int, xy: tuple[float, float]
) -> NDArray[np.float64]:
    """What a pixel attends to at an encoder site on a frame: the stored row nearest to it, ``[r, r]``.

    Parameters
    ----------
    name
        Of the clip.
    xy
        In pixels of the video.
    """
    header = recording.header
    info = next(item for item in header.clips if item.name == name)
    clip = recording.clip(name)
    g = header.model.grid
    at = np.array([xy[1] / info.height, xy[0] / info.width]) * g - 0.5
    queries = np.array(header.settings.row_queries)
    nearest = int(np.hypot(queries // g - at[0], queries % g - at[1]).argmin())
    t = int(np.flatnonzero(clip.frame == frame)[-1])
    return np.asarray(clip.attention_rows(site, t)[nearest], float)


def object_map(clip: ClipRecord, queries: Sequence[int], site: str, i: int) -> NDArray[np.float64]:
    """What an object's own pixels attend to at an encoder site: mean of the stored rows inside its mask.

    Parameters
    ----------
    queries
        The recording's `row_queries`.
    i
        Row of the object on the frame.
    """
    t = int(np.flatnonzero(clip.frame == clip.row_frame[i])[-1])
    mask = clip.masks()[i]
    side = clip.decoder_saliency.shape[-1]
    inside = mask.reshape(side, 4, side, 4).mean(axis=(1, 3)).ravel()[list(queries)] > 0.5
    if not inside.any():
        raise InputError(
            f"no stored query lies inside object {clip.row_object[i]} on frame {clip.row_frame[i]}; expected "
            "a visible object; choose another frame"
        )
    return np.asarray(clip.attention_rows(site, t)[inside].mean(axis=0), float)


def _position(name: str, names: Sequence[str], what: str) -> int:
    if name not in names:
        raise InputError(
            f"{what} {name!r} was asked for; the recording holds {', '.join(names)}; choose one of them"
        )
    return list(names).index(name)
