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
        Share of a frame's tokens chosen at first recollection, one of the recording's `keep_shares`.

    Raises
    ------
    InputError
        Recall was recorded for other shares.
    """
    shares = recording.header.settings.keep_shares
    if keep not in shares:
        raise InputError(
            f"share {keep:g} was asked for; recall was recorded for {', '.join(f'{s:g}' for s in shares)}; choose "
            "one of them"
        )
    at = shares.index(keep)
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
    """What an object's frames recall, from stored rows: mean over the stored queries, for the film strip.

    Where several frames were prompted, age 0 is the mean over them, told of the nearest one.
    """
    layer = int(site.split(".")[1].removeprefix("layer"))
    prompts = max(1, len(prompted_frames(clip, object_id)))
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
                    mass[slot] if slot else mass[slot] / prompts,
                    None if fresh else cosine,
                    None if fresh else baseline,
                )
            )
    return found


def prompted_frames(clip: ClipRecord, object_id: int) -> list[int]:
    """Recorded frames on which an object was prompted, by index; slot 0 of memory holds all of them together."""
    mine = clip.conditioning & (clip.row_object == object_id)
    return sorted(set(clip.row_frame[mine].tolist()))


def key_mass(recording: Recording, site: str) -> NDArray[np.float64]:
    """Key mass over the memory of a cross-attention site, ``[samples, keys]``, approximately: from stored rows.

    Stored are rows of some queries, in 8 bits, with several tokens a key on large grids (`row_sampling` says
    which), so Gini and top mass differ from those of all queries and tokens. Only rows with a full memory count,
    so that all samples have as many keys.
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


def row_sampling(recording: Recording) -> str:
    """Say, for a caption, from what `key_mass` and `recollections` are read."""
    settings, grid = recording.header.settings, recording.header.model.grid
    cell = grid // settings.row_grid
    queries = f"{len(settings.row_queries)} of {grid**2} query rows"
    return f"{queries}, {cell} x {cell} tokens a key, 8 bits"
