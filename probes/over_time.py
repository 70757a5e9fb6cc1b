"""How far attention stays where it is from frame to frame, read from a recording, without the model.

Compared are the key mass of encoder stage 3 (mean over its windowed blocks), of each of its global blocks, and
the decoder's token-to-image attention, of a frame with that of the frame tracked before. A map is compared as
it was and *moved along*: shifted by as many whole tokens as the object's centre moved. Chance stands beside it:
the same with one map's tokens shuffled.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from probes.clips import ClipRecord
from probes.consistency import centroid, cosine, jaccard, moved, shuffled, top_set
from probes.header import Array, Settings

MEASURES = (
    "cosine",
    "moved_cosine",
    "shuffled_cosine",
    "jaccard",
    "moved_jaccard",
    "shuffled_jaccard",
)
"""Order of the last axis of `frame_to_frame`: cosine in [0, 1] and Jaccard of the top-10 % sets in [0, 1]."""

TOP = 0.1


def frame_to_frame(clip: ClipRecord, settings: Settings) -> dict[str, Array]:
    """Compare maps of adjacent frames, for each object.

    Returns
    -------
    dict
        ``"encoder.stage3"`` (where its windowed blocks were seen), each of `Settings.map_sites`, and
        ``"decoder"``: float32 ``[n, len(MEASURES)]`` for each row of the clip against the row of the same
        object on the frame tracked before; NaN where there is none or no map, for the decoder where
        either frame was prompted (it looks elsewhere then), and in the moved measures where the object is
        absent on either frame.
    """
    pairs, shifts = _pairs(clip)
    t_of = {int(frame): t for t, frame in enumerate(clip.frame)}
    at = np.array([t_of[int(frame)] for frame in clip.row_frame])
    maps = {"encoder.stage3": clip.stage3_mass[at]}
    for i, site in enumerate(settings.map_sites):
        maps[site] = clip.encoder_mass[at, i]
    maps["decoder"] = clip.decoder_saliency
    found = {}
    for name, of_rows in maps.items():
        table = np.full((len(of_rows), len(MEASURES)), np.nan, np.float32)
        for (before, now), shift in zip(pairs, shifts, strict=True):
            a, b = (torch.from_numpy(of_rows[i].astype(np.float32)) for i in (before, now))
            prompted = name == "decoder" and (clip.conditioning[before] or clip.conditioning[now])
            if not (prompted or bool(a.isnan().any() or b.isnan().any())):
                table[now] = compare_maps(a, b, shift)
        found[name] = table
    return found


def compare_maps(before: Tensor, now: Tensor, shift: tuple[float, float]) -> list[float]:
    """`MEASURES` of two maps ``[g, g]``; `shift` is the object's displacement in tokens, (x, y), NaN if unknown."""
    mixed = shuffled(before.flatten())
    versions = [before.flatten(), None, mixed]
    if not math.isnan(sum(shift)):
        versions[1] = moved(before, round(shift[0]), round(shift[1])).flatten()
    flat = now.flatten()
    found = [math.nan if v is None else float(cosine(v, flat)) for v in versions]
    top = top_set(flat, TOP)
    return found + [
        math.nan if v is None else float(jaccard(top_set(v, TOP), top)) for v in versions
    ]


def _pairs(clip: ClipRecord) -> tuple[list[tuple[int, int]], list[tuple[float, float]]]:
    """Rows of the same object on adjacent frames, (before, now), and the object's displacement in tokens."""
    grid = clip.decoder_saliency.shape[-1]
    centres = [centroid(torch.from_numpy(mask), grid) for mask in clip.masks()]
    row_at = {
        key: i
        for i, key in enumerate(zip(clip.row_frame.tolist(), clip.row_object.tolist(), strict=True))
    }
    pairs, shifts = [], []
    for now, (frame, i) in enumerate(
        zip(clip.row_frame.tolist(), clip.row_object.tolist(), strict=True)
    ):
        before = row_at.get((frame + (1 if clip.reverse[now] else -1), i))
        if before is not None:
            pairs.append((before, now))
            (x0, y0), (x1, y1) = centres[before], centres[now]
            shifts.append((x1 - x0, y1 - y0))
    return pairs, shifts
