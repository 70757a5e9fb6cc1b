"""How long attention stays where it is: memory saliency over ages, maps from frame to frame, windows over time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from probes.layout import MemoryFrame
from probes.mass import keep_count
from probes.measure import CallStatistics
from probes.records import KEEP_SHARES, Array, ClipRecord, Settings
from probes.seam import AttentionCall

SIMILARITIES = ("cosine", "chance", "pearson", "jaccard")
"""Order of `Recollection.similarity`."""

MEASURES = ("cosine", "moved_cosine", "chance_cosine", "jaccard", "moved_jaccard", "chance_jaccard")
"""Order of the last axis of `frame_to_frame`: cosine in [0, 1] and Jaccard of the top-10 % sets in [0, 1]; chance is
what either would be if the tokens of one map lay anyhow."""

TOP = 0.1
"""Share of a map whose most attended tokens are compared as sets."""


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine ``<a, b> / (|a| |b|)`` of maps ``[..., n]``, in [0, 1] for non-negative ones.

    The paper's CS. Two flat positive maps have a cosine near 1 whatever they show: read it beside
    `chance_cosine`.
    """
    return F.cosine_similarity(a, b, -1)


def chance_cosine(a: Tensor, b: Tensor) -> Tensor:
    """What CS of maps ``[..., n]`` is by chance: its mean over all orders of one map's entries.

    ``mean(a) mean(b) / sqrt(mean(a²) mean(b²))``: norms don't depend on the order, and each entry meets each other
    equally often. One order drawn is far off where few tokens hold the mass.
    """
    scale = a.square().mean(-1) * b.square().mean(-1)
    return a.mean(-1) * b.mean(-1) / scale.sqrt().clamp(min=1e-30)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of maps ``[..., n]``: the cosine of what is left when their means are taken off, in [-1, 1]."""
    return cosine(a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True))


def top_set(saliency: Tensor, share: float) -> Tensor:
    """The top share of entries (`keep_count`), bool ``[..., n]``; ties by index."""
    order = saliency.sort(dim=-1, descending=True, stable=True).indices
    top = order[..., : keep_count(share, saliency.shape[-1])]
    return torch.zeros_like(saliency, dtype=torch.bool).scatter(-1, top, True)


def jaccard(a: Tensor, b: Tensor) -> Tensor:
    """``|A ∩ B| / |A ∪ B|`` of sets, bool ``[..., n]``, in [0, 1]; chance for two k-sets is k / (2 n - k)."""
    return (a & b).sum(-1) / (a | b).sum(-1).clamp(min=1)


def mass_recall(first: Tensor, now: Tensor) -> Tensor:
    """Share of the mass ``now`` that the top tokens of ``first`` catch, for each of `KEEP_SHARES`, in [0, 1].

    Parameters
    ----------
    first, now
        Saliency ``[..., n]``.

    Returns
    -------
    Tensor
        ``[..., shares]``; with ``first = now`` it is what the best choice could catch.
    """
    n = first.shape[-1]
    order = first.sort(dim=-1, descending=True, stable=True).indices
    caught = now.gather(-1, order).cumsum(-1) / now.sum(-1, keepdim=True)
    return caught[..., [keep_count(share, n) - 1 for share in KEEP_SHARES]]


def window_coverage(kept: Tensor, mask: Tensor, grid: int, window: int) -> float:
    """Share of a mask's area that lies inside kept windows, in [0, 1]; NaN for an empty mask.

    Parameters
    ----------
    kept
        Bool ``[windows]``, row by row.
    mask
        Bool ``[h, w]`` over the whole grid.
    grid, window
        Tokens per side of the grid and of a window.
    """
    side = -(-grid // window)
    scale = mask.shape[-1] / grid
    at = (torch.arange(mask.shape[-1], device=mask.device) / scale / window).long()
    inside = kept.to(mask.device).view(side, side)[at][:, at]
    return float((inside & mask).sum() / mask.sum()) if mask.any() else math.nan


def window_stability(before: Tensor, after: Tensor) -> float:
    """Jaccard index of two sets of kept windows, bool ``[windows]``, in [0, 1]."""
    return float(jaccard(before, after))


def moved(saliency: Tensor, dx: int, dy: int) -> Tensor:
    """Shift a map ``[g, g]`` by whole tokens, the border repeated: a map carried along with its object."""
    g = saliency.shape[-1]
    at = torch.arange(g)
    return saliency[..., (at - dy).clamp(0, g - 1), :][..., (at - dx).clamp(0, g - 1)]


def centroid(mask: Tensor, grid: int) -> tuple[float, float]:
    """Centre of a mask ``[h, w]`` in tokens, (x, y); NaN for an empty one."""
    y, x = torch.nonzero(mask, as_tuple=True)
    if not len(x):
        return math.nan, math.nan
    scale = grid / mask.shape[-1]
    return float(x.double().mean() * scale), float(y.double().mean() * scale)


@dataclass(frozen=True)
class Recollection:
    """How one memory frame's saliency, for one object and layer, compares with that of its first recollection.

    Saliency is conditional key mass float32 ``[tokens]``: softmax over this frame's own keys, mean over all rows.

    Attributes
    ----------
    entry
        The memory frame.
    similarity
        `SIMILARITIES` between first recollection and now.
    recall, oracle_recall
        Mass recall for each of `KEEP_SHARES`, by the first recollection's tokens and by tokens chosen now. These and
        `similarity` are NaN for a frame that was read in part, then or now, and for one that was tracked in the other
        direction: in this one it was never the newest, when tokens are chosen.
    """

    entry: MemoryFrame
    similarity: Tensor
    recall: Tensor
    oracle_recall: Tensor


class MemoryConsistency:
    """Follows each memory frame's saliency from its first recollection on, per object and layer.

    Feed it `AttentionCall`s of ``memory.*.cross``. Saliency is key mass from all query rows that read memory, mean
    over heads: no sample stands between one age and the next. A frame that was read in part has none.
    """

    def __init__(self) -> None:
        self._first: dict[tuple[int, str, int, bool], Tensor] = {}

    def add(self, call: AttentionCall, measured: CallStatistics) -> list[list[Recollection]]:
        """Compare a call, by its statistics: for each of its objects, one entry per memory frame."""
        assert measured.by_frame is not None, "it is of memory cross-attention"
        found = []
        objects = zip(call.moment.objects, call.moment.layouts, measured.by_frame, strict=True)
        for object_id, layout, by_frame in objects:
            entries = []
            for entry, now in zip(layout.frames, by_frame.mean(0), strict=True):
                key = (object_id, call.site, entry.frame, call.moment.reverse)
                if entry.newest or entry.conditioning:
                    self._first.setdefault(key, now)
                entries.append(_compare(entry, self._first.get(key), now))
            found.append(entries)
            # memory frames that have left the bank are forgotten
            held = {(object_id, call.site, e.frame, call.moment.reverse) for e in layout.frames}
            self._first = {
                key: first
                for key, first in self._first.items()
                if key in held
                or (key[0], key[1], key[3]) != (object_id, call.site, call.moment.reverse)
            }
        return found


def _compare(entry: MemoryFrame, first: Tensor | None, now: Tensor) -> Recollection:
    if first is None or bool((first + now).isnan().any()):
        nothing = now.new_full((len(KEEP_SHARES),), math.nan)
        return Recollection(entry, now.new_full((len(SIMILARITIES),), math.nan), nothing, nothing)
    similarity = torch.stack(
        [
            cosine(first, now),
            chance_cosine(first, now),
            pearson(first, now),
            jaccard(top_set(first, TOP), top_set(now, TOP)).float(),
        ]
    )
    return Recollection(entry, similarity, mass_recall(first, now), mass_recall(now, now))


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
    versions = [before.flatten(), None]
    if not math.isnan(sum(shift)):
        versions[1] = moved(before, round(shift[0]), round(shift[1])).flatten()
    flat = now.flatten()
    top, kept = top_set(flat, TOP), keep_count(TOP, len(flat))
    return [
        *(math.nan if v is None else float(cosine(v, flat)) for v in versions),
        float(chance_cosine(before.flatten(), flat)),
        *(math.nan if v is None else float(jaccard(top_set(v, TOP), top)) for v in versions),
        kept / (2 * len(flat) - kept),
    ]


def _pairs(clip: ClipRecord) -> tuple[list[tuple[int, int]], list[tuple[float, float]]]:
    """Rows of the same object on adjacent frames, (before, now), and the object's displacement in tokens."""
    grid = clip.decoder_saliency.shape[-1]
    centres = [centroid(torch.from_numpy(mask), grid) for mask in clip.masks()]
    keys = list(zip(clip.row_frame.tolist(), clip.row_object.tolist(), strict=True))
    row_at = {key: i for i, key in enumerate(keys)}
    pairs, shifts = [], []
    for now, (frame, i) in enumerate(keys):
        before = row_at.get((frame + (1 if clip.reverse[now] else -1), i))
        if before is not None:
            pairs.append((before, now))
            (x0, y0), (x1, y1) = centres[before], centres[now]
            shifts.append((x1 - x0, y1 - y0))
    return pairs, shifts
