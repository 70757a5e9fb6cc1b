"""What figures and notebooks read from recordings: per clip first, then over clips with an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from figures.attention import lift
from figures.breadth import Breadth
from figures.filmstrip import Recollection
from figures.recall import RecallCurve
from probes.errors import InputError
from probes.records import ClipRecord, Recording

DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over clips with its bootstrap interval (percentile, 95 %).

    With fewer than three clips the interval says little; it is given all the same, with n beside it.
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return (
            f"{self.mean:.3g} (95 % interval {self.low:.3g} to {self.high:.3g}, n = {self.n} clips)"
        )


def over_clips(values: Mapping[str, float] | Sequence[float], seed: int = 0) -> Estimate:
    """Mean of one number a clip, clips drawn again with replacement; NaN clips don't count.

    >>> str(over_clips([1.0, 1.0, 1.0]))
    '1 (95 % interval 1 to 1, n = 3 clips)'
    """
    given = list(values.values()) if isinstance(values, Mapping) else list(values)
    found = np.array([value for value in given if not np.isnan(value)])
    if not len(found):
        raise InputError(
            "no clip has a value; expected at least one; record longer clips or another site"
        )
    drawn = np.random.default_rng(seed).choice(found, (DRAWS, len(found))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(found.mean()), float(low), float(high), len(found))


def statistic(recording: Recording, site: str, name: str) -> dict[str, float]:
    """Mean of a statistic over a clip's tracked frames, objects and heads, by clip; prompted frames don't count.

    Parameters
    ----------
    site
        One of the recording's object or encoder sites.
    name
        One of `probes.records.STATISTICS`; `lift` is kept for objects.
    """
    settings = recording.header.settings
    k = _position(name, settings.statistics, "statistic")
    found = {}
    for info, clip in recording:
        if site in settings.object_sites:
            values = clip.object_statistics[~clip.conditioning, settings.object_sites.index(site)]
        else:
            at = _position(site, settings.encoder_sites, "site")
            values = clip.encoder_statistics[:, at]
        found[info.name] = _mean(values[..., k])
    return found


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


def recall_curves(recording: Recording, keep: float) -> dict[str, RecallCurve]:
    """Mass recall by layer and age since the first recollection, means over clips with intervals.

    Parameters
    ----------
    keep
        Share of a frame's tokens chosen at first recollection; the nearest recorded share is taken.
    """
    shares = np.array(recording.header.settings.keep_shares)
    at = int(np.abs(np.log(shares / keep)).argmin())
    clips = [(clip.recall[..., at], clip.oracle_recall[..., at]) for _, clip in recording]
    curves = {}
    for layer in range(recording.header.model.layers):
        ages, estimates, best = [], [], []
        for age in range(6):
            # slot 6 is the newest frame, which is recalled for the first time
            values = [_mean(recall[:, layer, 6 - age]) for recall, _ in clips]
            if not np.isnan(values).all():
                ages.append(age)
                estimates.append(over_clips(values))
                oracle = [_mean(found[:, layer, 6 - age]) for _, found in clips]
                best.append(over_clips(oracle).mean)
        curves[f"layer {layer}"] = RecallCurve(
            ages,
            [e.mean for e in estimates],
            [e.low for e in estimates],
            [e.high for e in estimates],
            best,
        )
    return curves


def similarity(recording: Recording, layer: int, age: int, shuffled: bool = False) -> list[float]:
    """CS between the first recollection and `age` frames later, one mean a clip; or its shuffled baseline."""
    column = 1 if shuffled else 0
    return [_mean(clip.similarity[:, layer, 6 - age, column]) for _, clip in recording]


def recollections(
    clip: ClipRecord, object_id: int, times: Sequence[int], site: str
) -> list[Recollection]:
    """What an object's frames recall, from stored rows: mean over the stored queries, for the film strip."""
    layer = int(site.split(".")[1].removeprefix("layer"))
    found = []
    for time in times:
        i = clip.row(time, object_id)
        mass = clip.attention_rows(site, i).mean(axis=0)
        for slot, remembered in enumerate(clip.memory_frame[i].tolist()):
            if remembered < 0:
                continue
            cosine, baseline = (float(v) for v in clip.similarity[i, layer, slot, :2])
            fresh = slot in (0, 6) or np.isnan(cosine)
            found.append(
                Recollection(
                    time,
                    abs(time - remembered) if slot else 0,
                    remembered,
                    mass[slot],
                    None if fresh else cosine,
                    None if fresh else baseline,
                )
            )
    return found


def key_mass(recording: Recording, site: str) -> NDArray[np.float64]:
    """Key mass over all memory tokens of a cross-attention site, ``[samples, keys]``, from stored rows.

    Only rows with a full memory count, so that all samples have as many keys.
    """
    samples = []
    for _, clip in recording:
        for i in np.flatnonzero((clip.memory_frame >= 0).all(axis=1)):
            samples.append(clip.attention_rows(site, int(i)).mean(axis=0).ravel())
    if not samples:
        raise InputError(
            f"no frame of {recording.path} has a full memory; expected clips of at least 8 frames; record longer ones"
        )
    return np.array(samples, float)


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
        found[info.name] = _mean(np.array(values))
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


def _mean(values: NDArray[np.floating]) -> float:
    """Mean of what is a number; NaN where nothing is."""
    numbers = values[~np.isnan(values)]
    return float(numbers.astype(float).mean()) if numbers.size else float("nan")


def _position(name: str, names: Sequence[str], what: str) -> int:
    if name not in names:
        raise InputError(
            f"{what} {name!r} was asked for; the recording holds {', '.join(names)}; choose one of them"
        )
    return list(names).index(name)
