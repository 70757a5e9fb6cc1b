"""What memory attention recalls, from recordings: by layer and age, and the maps of the film strip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from figures.filmstrip import Recollection
from figures.readings.estimates import mean, over_clips
from figures.recall import RecallCurve
from probes.errors import InputError
from probes.records import ClipRecord, Recording


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
            values = [mean(recall[:, layer, 6 - age]) for recall, _ in clips]
            if not np.isnan(values).all():
                ages.append(age)
                estimates.append(over_clips(values))
                oracle = [mean(found[:, layer, 6 - age]) for _, found in clips]
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
    return [mean(clip.similarity[:, layer, 6 - age, column]) for _, clip in recording]


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
