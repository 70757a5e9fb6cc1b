"""J, F and agreement of tracked masks, with the evaluator of vos-benchmark; and their means and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vos_benchmark.evaluator import Evaluator

from probes.estimates import FEWEST, interval
from sparsity.clips.layouts import Masks
from sparsity.evaluation.results import BoxQuality, ClipQuality, ObjectQuality, Quality

CONFIDENCE = 0.95


def score_masks(
    found: Sequence[Masks], truth: Sequence[Masks], objects: Sequence[int]
) -> dict[int, tuple[float, float]]:
    """Return J and F of every object in per cent, mean over the frames given.

    J is the intersection over union, F the boundary measure with a tolerance of 0.008 of the diagonal, both
    1 where found and true mask are empty.

    Parameters
    ----------
    found, truth
        Ids ``[H, W]``, or a layer an object ``[O, H, W]``, each.
    objects
        Ids that count, in the order of the layers.
    """
    scores = {}
    for k, i in enumerate(objects):
        evaluator = Evaluator()
        evaluator.objects_in_gt = {1}  # or an object counts only from where it is first seen
        for one, true in zip(found, truth, strict=True):
            evaluator.feed_frame(
                layer(one, k, i).astype(np.uint8), layer(true, k, i).astype(np.uint8)
            )
        js, fs = evaluator.conclude()
        scores[i] = float(js[1]), float(fs[1])
    return scores


def agreement(
    found: Sequence[Masks], dense: Sequence[Masks], objects: Sequence[int]
) -> dict[int, float]:
    """Return each object's mean J between two runs over the frames given, in per cent.

    >>> import numpy as np
    >>> one, two = np.uint8([[1, 1, 0]]), np.uint8([[1, 0, 0]])
    >>> agreement([one, one], [one, two], [1])
    {1: 75.0}
    """
    shares: dict[int, list[float]] = {i: [] for i in objects}
    for one, other in zip(found, dense, strict=True):
        for k, i in enumerate(objects):
            a, b = layer(one, k, i), layer(other, k, i)
            union = (a | b).sum()
            shares[i].append((a & b).sum() / union if union else 1.0)
    return {i: 100 * float(np.mean(values)) for i, values in shares.items()}


def clip_quality(
    found: Sequence[Masks],
    truth: Sequence[Masks],
    objects: Sequence[int],
    dense: Sequence[Masks] | None = None,
    *,
    starts: Mapping[int, int] | None = None,
    **shares: float,
) -> ClipQuality:
    """Score a tracked clip; an object's prompted frame and the last frame are left out.

    Parameters
    ----------
    found, truth
        Masks of all annotated frames; see `score_masks`.
    objects
        Ids that count.
    dense
        Masks of the dense run, for the agreement.
    starts
        By object: position among the annotated frames of the one it is prompted on; by default the first.
    **shares
        ``windows_kept``, ``keys_kept``, ``prunable_keys_kept``.
    """
    each = {}
    for k, i in enumerate(objects):
        counted = slice((starts or {}).get(i, 0) + 1, -1)
        one, true = ([layer(m, k, i) for m in masks[counted]] for masks in (found, truth))
        ((j, f),) = score_masks([m[None] for m in one], [m[None] for m in true], [i]).values()
        agreed = None
        if dense is not None:
            other = [layer(m, k, i)[None] for m in dense[counted]]
            agreed = agreement([m[None] for m in one], other, [i])[i]
        each[str(i)] = ObjectQuality(j=j, f=f, j_and_f=(j + f) / 2, agreement=agreed)
    means = mean_quality(list(each.values())).model_dump()
    return ClipQuality(**means, frames=len(found) - 2, objects=each, **shares)


def mean_quality(each: Sequence[ObjectQuality]) -> ObjectQuality:
    """Return the mean of several objects' or clips' figures."""

    def mean(name: str) -> Any:
        values = [getattr(item, name) for item in each]
        return None if None in values else float(np.mean(values))

    return ObjectQuality(**{name: mean(name) for name in ("j", "f", "j_and_f", "agreement")})


def overall(
    clips: dict[str, ClipQuality],
    dense: dict[str, ClipQuality] | None = None,
    figures: dict[str, float] | None = None,
) -> Quality:
    """Return the mean over clips with intervals (`probes.estimates.interval`), and over all objects.

    Parameters
    ----------
    clips
        By name.
    dense
        The same clips of the dense run, for the loss against it.
    figures
        Further ones of the whole data set.
    """
    means = mean_quality(list(clips.values()))
    of_clips: dict[str, list[float]] = {
        name: [getattr(clip, name) for clip in clips.values()] for name in ("j_and_f", "j", "f")
    }
    if means.agreement is not None:
        of_clips["agreement"] = [clip.agreement or 0.0 for clip in clips.values()]
    if dense is not None:
        of_clips["loss"] = [dense[name].j_and_f - clip.j_and_f for name, clip in clips.items()]
    objects = [item for clip in clips.values() for item in clip.objects.values()]
    return Quality(
        **{**means.model_dump(), "figures": figures or {}},
        loss=float(np.mean(of_clips["loss"])) if "loss" in of_clips else None,
        over_objects=mean_quality(objects),
        intervals={
            name: _within(-100.0 if name == "loss" else 0.0, interval(values, CONFIDENCE))
            for name, values in of_clips.items()
            if len(values) >= FEWEST
        },
        confidence=CONFIDENCE,
        clips=clips,
    )


def _within(least: float, ends: tuple[float, float]) -> tuple[float, float]:
    """An interval that ends where values in per cent do."""
    return max(least, ends[0]), min(100.0, ends[1])


def box_quality(clips: Mapping[str, float]) -> BoxQuality:
    """Return the mean of clips' success, with its interval over clips."""
    values = list(clips.values())
    enough = len(values) >= FEWEST
    return BoxQuality(
        success=float(np.mean(values)),
        interval=interval(values, CONFIDENCE) if enough else None,
        confidence=CONFIDENCE,
        clips=dict(clips),
    )


def layer(masks: Masks, position: int, object_id: int) -> NDArray[np.bool_]:
    """Return one object's mask, bool ``[H, W]``."""
    return masks[position].astype(bool) if masks.ndim == 3 else masks == object_id
