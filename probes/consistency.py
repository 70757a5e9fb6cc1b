"""How long attention stays where it is: memory saliency over ages, maps from frame to frame, windows over time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.layout import MemoryFrame
from probes.measure import CallStatistics
from probes.records import KEEP_SHARES
from probes.seam import AttentionCall

SIMILARITIES = ("cosine", "shuffled", "pearson", "jaccard")
"""Order of `MemorySaliency.similarity`."""


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine ``<a, b> / (|a| |b|)`` of maps ``[..., n]``, in [0, 1] for non-negative ones.

    The paper's CS. Two flat positive maps have a cosine near 1 whatever they show: read it beside
    `shuffled_cosine`.
    """
    return torch.nn.functional.cosine_similarity(a, b, -1)


def shuffled_cosine(a: Tensor, b: Tensor, seed: int = 0) -> Tensor:
    """Cosine with one map's entries shuffled: what CS is by chance."""
    return cosine(a, shuffled(b, seed))


def shuffled(a: Tensor, seed: int = 0) -> Tensor:
    """A map ``[..., n]`` with its entries shuffled, all leading axes alike."""
    order = torch.randperm(a.shape[-1], generator=torch.Generator().manual_seed(seed))
    return a[..., order.to(a.device)]


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of maps ``[..., n]``: the cosine of what is left when their means are taken off, in [-1, 1]."""
    return cosine(a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True))


def top_set(saliency: Tensor, share: float) -> Tensor:
    """The top share of entries (rounded down, at least one), bool ``[..., n]``; ties by index."""
    count = max(1, math.floor(share * saliency.shape[-1] + 1e-9))
    order = saliency.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(saliency, dtype=torch.bool).scatter(-1, order, True)


def jaccard(a: Tensor, b: Tensor) -> Tensor:
    """``|A ∩ B| / |A ∪ B|`` of sets, bool ``[..., n]``, in [0, 1]; chance for two k-sets is k / (2 n - k)."""
    return (a & b).sum(-1) / (a | b).sum(-1).clamp(min=1)


def mass_recall(first: Tensor, now: Tensor, shares: tuple[float, ...] = KEEP_SHARES) -> Tensor:
    """Share of the mass ``now`` that the top tokens of ``first`` catch, for each keep share, in [0, 1].

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
    counts = [max(1, math.floor(share * n + 1e-9)) for share in shares]
    return caught[..., [count - 1 for count in counts]]


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
class MemorySaliency:
    """Saliency of one memory frame for one object and layer, as recalled now.

    Attributes
    ----------
    entry
        The memory frame.
    first
        Whether it is recalled for the first time.
    saliency
        Conditional key mass float32 ``[tokens]``: softmax over this frame's own keys, mean over all rows.
    similarity
        `SIMILARITIES` between first recollection and now.
    recall, joint_recall, oracle_recall
        Mass recall for each of `KEEP_SHARES`, by the first recollection's tokens of conditional and of joint
        mass, and by tokens chosen now. These and `similarity` are NaN for a frame that was tracked in the other
        direction: in this one it was never the newest, when tokens are chosen.
    """

    entry: MemoryFrame
    first: bool
    saliency: Tensor
    similarity: Tensor
    recall: Tensor
    joint_recall: Tensor
    oracle_recall: Tensor


class MemoryConsistency:
    """Follows each memory frame's saliency from its first recollection on, per object and layer.

    Feed it `AttentionCall`s of ``memory.*.cross`` of a run that reads all keys. Saliency is key mass from
    all query rows, mean over heads: no sample stands between one age and the next.
    """

    def __init__(self) -> None:
        self._first: dict[tuple[int, str, int, bool], Tensor] = {}

    def add(self, call: AttentionCall, measured: CallStatistics) -> list[list[MemorySaliency]]:
        """Compare a call, by its statistics: for each of its objects, one entry per memory frame."""
        assert measured.by_frame is not None, "an accelerated run has not read the keys"
        found = []
        for b, (object_id, layout) in enumerate(
            zip(call.moment.objects, call.moment.layouts, strict=True)
        ):
            conditional = measured.by_frame[b].mean(0)
            joint = measured.mass[b, :, : layout.frame_keys].mean(0).view_as(conditional)
            entries = []
            for i, entry in enumerate(layout.frames):
                key = (object_id, call.site, entry.frame, call.moment.reverse)
                now = conditional[i]
                if entry.newest or entry.conditioning:
                    self._first.setdefault(key, now)
                entries.append(_compare(entry, self._first.get(key), now, joint[i]))
            found.append(entries)
            self._forget(object_id, call, {entry.frame for entry in layout.frames})
        return found

    def _forget(self, object_id: int, call: AttentionCall, kept: set[int]) -> None:
        """Drop memory frames that have left the bank."""
        for key in [
            key
            for key in self._first
            if key[:2] == (object_id, call.site)
            and key[3] == call.moment.reverse
            and key[2] not in kept
        ]:
            del self._first[key]


def _compare(
    entry: MemoryFrame, first: Tensor | None, now: Tensor, joint: Tensor
) -> MemorySaliency:
    if first is None:
        nothing = now.new_full((len(KEEP_SHARES),), math.nan)
        unlike = now.new_full((len(SIMILARITIES),), math.nan)
        return MemorySaliency(entry, False, now, unlike, nothing, nothing, nothing)
    similarity = torch.stack(
        [
            cosine(first, now),
            shuffled_cosine(first, now),
            pearson(first, now),
            jaccard(top_set(first, 0.1), top_set(now, 0.1)).float(),
        ]
    )
    recalls = mass_recall(first, now), mass_recall(first, joint), mass_recall(now, now)
    return MemorySaliency(entry, first is now, now, similarity, *recalls)
