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
    """Entropy and distance of every recorded encoder site: median and quartiles over clips, frames and heads."""
    settings = recording.header.settings
    entropy, distance = (settings.statistics.index(name) for name in ("entropy", "distance_px"))
    clips = [clip.encoder_statistics for _, clip in recording]
    found = []
    for at, site in enumerate(settings.encoder_sites):
        values = np.concatenate([clip[:, at].reshape(-1, clip.shape[-1]) for clip in clips])
        values = values[:, [entropy, distance]].astype(float)
        low, middle, high = np.nanpercentile(values, [25, 50, 75], axis=0).tolist()
        found.append(Breadth(site, middle[0], middle[1], (low[0], high[0]), (low[1], high[1])))
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

    Raises
    ------
    InputError
        The pixel lies outside the video, the frame was not tracked, or no rows of that encoder site were stored.
    """
    header = recording.header
    info = next(item for item in header.clips if item.name == name)
    clip = recording.clip(name)
    if not (0 <= xy[0] < info.width and 0 <= xy[1] < info.height):
        raise InputError(
            f"pixel ({xy[0]}, {xy[1]}) was asked for; clip {name} is {info.width} x {info.height} pixels; choose "
            "one inside"
        )
    g = header.model.grid
    at = np.array([xy[1] / info.height, xy[0] / info.width]) * g - 0.5
    queries = np.array(header.settings.row_queries)
    nearest = int(np.hypot(queries // g - at[0], queries % g - at[1]).argmin())
    return np.asarray(_encoder_rows(clip, site, frame)[nearest], float)


def object_map(clip: ClipRecord, queries: Sequence[int], site: str, i: int) -> NDArray[np.float64]:
    """What an object's own pixels attend to at an encoder site: mean of the stored rows inside its mask.

    Parameters
    ----------
    queries
        The recording's `row_queries`.
    i
        Row of the object on the frame.
    """
    rows = _encoder_rows(clip, site, int(clip.row_frame[i]))
    mask = clip.masks()[i]
    side = clip.decoder_saliency.shape[-1]
    inside = mask.reshape(side, 4, side, 4).mean(axis=(1, 3)).ravel()[list(queries)] > 0.5
    if not inside.any():
        raise InputError(
            f"no stored query lies inside object {clip.row_object[i]} on frame {clip.row_frame[i]}, which covers "
            f"{100 * mask.mean():.2g} % of the picture; expected one that covers a query token that is stored, as "
            f"{len(queries)} of {side**2} are; choose another frame or object"
        )
    return np.asarray(rows[inside].mean(axis=0), float)


def _encoder_rows(clip: ClipRecord, site: str, frame: int) -> NDArray[np.float32]:
    """Stored rows of an encoder site on a frame, ``[Q, r, r]``; of the last pass where it was tracked twice."""
    stored = [name for name in clip.rows if name.startswith("encoder.")]
    if site not in stored:
        raise InputError(
            f"site {site!r} was asked for; the recording holds rows of the encoder sites "
            f"{', '.join(stored) or 'none'}; choose one of them"
        )
    at = np.flatnonzero(clip.frame == frame)
    if not len(at):
        raise InputError(
            f"frame {frame} was asked for; the clip was tracked on frames {clip.frame.min()} to "
            f"{clip.frame.max()}; choose one of them"
        )
    return np.asarray(clip.attention_rows(site, int(at[-1])))


def _position(name: str, names: Sequence[str], what: str) -> int:
    if name not in names:
        raise InputError(
            f"{what} {name!r} was asked for; the recording holds {', '.join(names)}; choose one of them"
        )
    return list(names).index(name)
