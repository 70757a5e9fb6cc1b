"""Know when tracking fails: features of a tracked run, a logistic model of them, and how well it tells, judged by clip.

What the run knows of itself stands in `sparsity.techniques.failure`; here are beside it the features of memory attention, which
a recording has.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.model_selection import GroupKFold

from probes.errors import InputError
from probes.estimates import FEWEST, Estimate, interval
from probes.observing import listen
from probes.recording import record
from probes.records import ClipRecord, Settings
from probes.seam import Told
from sparsity.clips.sources import Clip
from sparsity.evaluation.quality import layer
from sparsity.techniques.failure import (
    RUN_FEATURES,
    WRONG_BELOW,
    FailureModel,
    mask_change,
    run_features,
)

ATTENTION_FEATURES = (
    *("prompt_share", "newest_share", "pointer_share", "age"),
    *("entropy", "top10", "memory_lift", "consistency", "overlap", "recall"),
    *("decoder_entropy", "decoder_share"),
)
"""What a recording knows of an object's attention on a frame; `attention_features` defines them."""

RECALLED = 0.1
"""Share of a memory frame's tokens whose recall counts."""

FOLDS = 7
"""Of cross-validation; clips are never split."""

STRENGTH = 0.3
"""Inverse strength of the logistic model's penalty: features are few beside rows, but clips are few too."""

Row = dict[str, Any]
"""One object on one tracked frame: ``clip``, ``source`` (of clips that are of one video), ``frame``, ``object``, ``j`` (IoU with
the true mask), and features by name."""


# ---------------------------------------------------------------------- what is known of a clip


def rows_of(predictor: Any, clip: Clip, max_frames: int | None = None) -> list[Row]:
    """Track an annotated clip while its attention is recorded; one row for each object on each frame that isn't prompted.

    Parameters
    ----------
    predictor
        Stock, or accelerated under the profile in use.
    clip
        With true masks; frames without one are tracked and give no row.
    max_frames
        Frames to track at most.

    Raises
    ------
    InputError
        The clip has no true masks.
    """
    if clip.truth is None:
        raise InputError(
            f"{clip.name} has no true masks; expected those of its frames; choose an annotated clip"
        )
    decoded: dict[tuple[int | None, int], tuple[float, NDArray[np.bool_]]] = {}
    size = clip.video.height, clip.video.width

    def note(told: Told) -> None:
        whole = F.interpolate(told.what[3].float(), size, mode="bilinear", align_corners=False)
        for b, i in enumerate(told.moment.objects):
            mask = (whole[b, 0] > 0).cpu().numpy()
            decoded[told.moment.frame, i] = float(told.what[2][b].max()), mask

    with tempfile.TemporaryDirectory() as folder, listen(predictor, decoded=note):
        recording = record(
            predictor, clip.video, clip.prompts, out=Path(folder) / "run", name="clip",
            statistics="memory.*.cross", max_frames=max_frames, model="any",
        )  # fmt: skip
        found, settings = recording.clip("clip"), recording.header.settings
    seen, masks = attention_features(found, settings), torch.from_numpy(found.masks())
    rows: list[Row] = []
    for k, object_id in enumerate(clip.objects):
        own = np.flatnonzero((found.row_object == object_id) & ~found.reverse)
        scores: list[float] = []
        ious: list[float] = []
        for last, n in zip(own[:-1], own[1:], strict=True):
            if found.conditioning[n]:
                continue
            frame = int(found.row_frame[n])
            iou, mask = decoded[frame, object_id]
            scores.append(float(found.score[n]))
            ious.append(iou)
            if frame not in clip.truth:
                continue
            change = mask_change(masks[last], masks[n], masks[own[0]])
            rows.append(
                {
                    "clip": clip.name, "source": clip.name, "frame": frame, "object": object_id,
                    "j": _iou(mask, layer(clip.truth[frame], k, object_id)),
                    **run_features(scores, ious, change),
                    **{name: float(values[n]) for name, values in seen.items()},
                }
            )  # fmt: skip
    return rows


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union; 1 where both are empty."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def attention_features(clip: ClipRecord, settings: Settings) -> dict[str, NDArray[Any]]:
    """What attention says of each row of a recorded clip, float ``[n]`` by the names of `ATTENTION_FEATURES`.

    Means over layers and heads of memory cross-attention; NaN where nothing was recalled.

    ==================  =============================================================================
    feature             is
    ==================  =============================================================================
    ``prompt_share``    attention mass on conditioning frames
    ``newest_share``    on the frame before
    ``pointer_share``   on object pointers
    ``age``             mean age in frames of what is read, pointers apart, by mass
    ``entropy``         of a query's weights
    ``top10``           mass of a query's top tenth of the keys
    ``memory_lift``     mass on the remembered masks over their share of the area
    ``consistency``     cosine of a memory frame's key mass with its first recollection, less chance
    ``overlap``         Jaccard index of the same two's top tenths
    ``recall``          mass now on the tenth of a memory frame's tokens that was read most at first
    ``decoder_entropy`` of the mask decoder's saliency
    ``decoder_share``   of that saliency on the mask
    ==================  =============================================================================
    """
    share = clip.slot_share.mean(1)  # [n, P + 1]
    ages, frames = clip.ages(), share[:, :-1]
    sites = [i for i, name in enumerate(settings.object_sites) if name.startswith("memory.")]
    table = clip.object_statistics[:, sites]
    at = {name: settings.statistics.index(name) for name in ("entropy", "top10", "lift")}
    aged = np.where(ages < 0, 0, ages) * np.nan_to_num(frames)
    looked = clip.decoder_saliency.reshape(len(share), -1).astype(np.float64)
    covered = _on_grid(clip.masks(), clip.decoder_saliency.shape[-1]).reshape(len(share), -1)
    similarity = clip.similarity.astype(np.float32)
    nearest = clip.recall[..., settings.keep_shares.index(RECALLED)].astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "prompt_share": frames[:, 0],
            "newest_share": frames[:, -1],
            "pointer_share": share[:, -1],
            "age": aged.sum(1) / np.nansum(frames, 1),
            **{
                name: _mean(table[..., at[k]], (1, 2))
                for name, k in (("entropy", "entropy"), ("top10", "top10"), ("memory_lift", "lift"))
            },
            "consistency": _mean(similarity[..., 0] - similarity[..., 1], (1, 2)),
            "overlap": _mean(similarity[..., 3], (1, 2)),
            "recall": _mean(nearest, (1, 2)),
            "decoder_entropy": -(looked * np.log(np.maximum(looked, 1e-12))).sum(1),
            "decoder_share": (looked * covered).sum(1),
        }


def _on_grid(masks: NDArray[np.bool_], grid: int) -> NDArray[np.bool_]:
    """Whether a token has pixels of a mask, bool ``[n, grid, grid]``."""
    step = masks.shape[-1] // grid
    cells = masks.reshape(len(masks), grid, step, grid, step)
    return np.logical_or.reduce(cells, axis=(2, 4))


def _mean(values: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """Mean over what exists, NaN where nothing does."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: NDArray[Any] = np.where(there, values, 0).sum(axes) / there.sum(axes)
    return mean


# ---------------------------------------------------------------------- fitting

Scorer = Callable[[Sequence[Row]], NDArray[np.float64]]
"""Gives each row a probability, float64 ``[n]``."""

Fit = Callable[[Sequence[Row], Sequence[int]], Scorer]
"""Makes a scorer from rows and whether each is wrong."""


def labels(rows: Sequence[Row], ahead: int = 0) -> tuple[list[Row], list[int]]:
    """Say of each row whether its mask is wrong; or of those that are right, whether it will be within some frames.

    Parameters
    ----------
    ahead
        0 asks about the frame itself; else rows whose mask is wrong already are left out, and so are those of each object's
        last `ahead` frames.

    Returns
    -------
    tuple
        The rows that count, and 1 for each that is wrong.
    """
    if not ahead:
        return list(rows), [int(row["j"] < WRONG_BELOW) for row in rows]
    later: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        later.setdefault((row["clip"], row["object"]), []).append(row)
    chosen, wrong = [], []
    for own in later.values():
        for i, row in enumerate(own[:-ahead]):
            if row["j"] >= WRONG_BELOW:
                chosen.append(row)
                wrong.append(int(any(r["j"] < WRONG_BELOW for r in own[i + 1 : i + 1 + ahead])))
    return chosen, wrong


def _table(rows: Sequence[Row], features: Sequence[str]) -> NDArray[np.float64]:
    return np.array([[row[name] for name in features] for row in rows], float)


def _clips(rows: Sequence[Row]) -> NDArray[Any]:
    """What is never split: rows of one video."""
    return np.array([row["source"] for row in rows])


def fit_failure(
    rows: Sequence[Row],
    wrong: Sequence[int],
    features: Sequence[str],
    model: str,
    image_size: int,
    **made_by: Any,
) -> FailureModel:
    """Fit a logistic model on standardized features, and calibrate it on clips that it hasn't seen.

    In cross-validation by clip each clip gets its logits from a model of the others; a second logistic model of these logits
    alone (J. Platt, Probabilistic Outputs for Support Vector Machines, 1999) says how much they promise too much. Its slope
    and intercept are put into the coefficients of the model of all clips.

    Parameters
    ----------
    rows, wrong
        As `labels` gives them.
    features
        Names.
    model, image_size
        Fingerprint of the tracked model, and side of its input in pixels.
    made_by
        What is noted of the clips.

    Raises
    ------
    InputError
        All masks are right, or all are wrong, or they are so but in one clip.
    """
    x, y, clips = _table(rows, features), np.array(wrong), _clips(rows)
    for part in (0, 1):
        have = len(set(clips[y == part]))
        if have < 2:
            what = "wrong" if part else "right"
            raise InputError(
                f"{have} clips have masks that are {what}; expected 2 at least of right and of wrong ones; add clips"
            )
    mean, scale = np.nanmean(x, 0), np.nanstd(x, 0)
    scale = np.where(scale > 0, scale, 1.0)
    z = np.nan_to_num((x - mean) / scale)
    logits = np.zeros(len(y))
    for fold, rest in _folds(y, clips):
        logits[rest] = (
            LogisticRegression(C=STRENGTH).fit(z[fold], y[fold]).decision_function(z[rest])
        )
    platt = LogisticRegression(C=1e6).fit(logits[:, None], y)
    slope, offset = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    if slope <= 0:  # on other clips the features say nothing
        slope, offset = 0.0, math.log(y.mean() / (1 - y.mean()))
    found = LogisticRegression(C=STRENGTH).fit(z, y)
    return FailureModel(
        schema="efficient-sam2/failure/1",
        model=model,
        image_size=image_size,
        features=tuple(features),
        mean=tuple(map(float, mean)),
        scale=tuple(map(float, scale)),
        coefficients=tuple(float(slope * w) for w in found.coef_[0]),
        intercept=slope * float(found.intercept_[0]) + offset,
        made_by=made_by,
    )


def _folds(y: NDArray[Any], clips: NDArray[Any]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Split rows by clip; only folds whose larger part has right and wrong masks."""
    split = GroupKFold(min(FOLDS, len(set(clips)))).split(y, y, clips)
    return [(fold, rest) for fold, rest in split if len(set(y[fold])) == 2]


def logistic(features: Sequence[str]) -> Fit:
    """Fit `fit_failure` on some features."""

    def fit(rows: Sequence[Row], wrong: Sequence[int]) -> Scorer:
        model = fit_failure(rows, wrong, features, "sha256:" + 64 * "0", 1)
        return lambda some: np.array([model.probability(row) for row in some])

    return fit


def boosted(features: Sequence[str]) -> Fit:
    """Fit gradient-boosted trees of depth 3 on some features: what a linear model may miss."""

    def fit(rows: Sequence[Row], wrong: Sequence[int]) -> Scorer:
        trees = HistGradientBoostingClassifier(
            max_iter=60, max_depth=3, min_samples_leaf=20, l2_regularization=1.0, random_state=0
        ).fit(_table(rows, features), np.array(wrong))
        return lambda some: np.asarray(trees.predict_proba(_table(some, features))[:, 1])

    return fit


KINDS: dict[str, Fit] = {
    "score": logistic(("score",)),
    "run": logistic(RUN_FEATURES),
    "attention": logistic(ATTENTION_FEATURES),
    "run and attention": logistic((*RUN_FEATURES, *ATTENTION_FEATURES)),
    "score and attention": logistic(("score", *ATTENTION_FEATURES)),
    "trees": boosted((*RUN_FEATURES, *ATTENTION_FEATURES)),
}
"""What is compared, by name: from the object score alone to all that a recording has."""


def out_of_clip(fit: Fit, rows: Sequence[Row], wrong: Sequence[int]) -> NDArray[np.float64]:
    """Probability of each row by a model of other clips, float64 ``[n]``."""
    y, clips = np.array(wrong), _clips(rows)
    found = np.full(len(y), y.mean())
    for fold, rest in _folds(y, clips):
        found[rest] = fit([rows[i] for i in fold], y[fold].tolist())([rows[i] for i in rest])
    return found


# ---------------------------------------------------------------------- judging


def over_left_out(
    statistic: Callable[[NDArray[Any]], float],
    clips: Sequence[str],
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """A statistic of all rows, with an interval over clips: `probes.estimates.interval` of its jackknife pseudo-values.

    A pseudo-value is n times the statistic of all clips less n - 1 times that without one (J. Tukey, 1958); they are
    moved so that their mean is the statistic.

    Parameters
    ----------
    statistic
        Of the rows at some indices, int ``[m]``.
    clips
        Of each row.
    within
        Between which numbers it lies.
    """
    of = np.array(clips)
    names, whole = sorted(set(clips)), statistic(np.arange(len(of)))
    without = np.array([statistic(np.flatnonzero(of != name)) for name in names])
    n = len(names)
    if n < FEWEST or not np.isfinite(without).all():
        return Estimate(whole, math.nan, math.nan, n)
    low, high = interval(whole + (n - 1) * (without.mean() - without))
    return Estimate(whole, max(low, within[0]), min(high, within[1]), n)


def auc(wrong: Sequence[int], probability: NDArray[np.float64]) -> float:
    """Share of pairs of a wrong and a right mask in which the wrong one has the higher probability; NaN without such pairs."""
    return float(roc_auc_score(wrong, probability)) if len(set(wrong)) == 2 else math.nan


@dataclass(frozen=True)
class Judgement:
    """How well probabilities tell wrong masks: area under the ROC curve and Brier score, with intervals over clips.

    Attributes
    ----------
    gain
        Area less that of what it is compared with, on the same rows.
    """

    auc: Estimate
    brier: Estimate
    gain: Estimate


def judge(
    rows: Sequence[Row],
    wrong: Sequence[int],
    found: NDArray[np.float64],
    without: NDArray[np.float64],
    itself: bool = False,
) -> Judgement:
    """Judge probabilities ``[n]`` beside other numbers that say what is wrong, such as the object score's negative.

    Parameters
    ----------
    found, without
        The probabilities, and what they are compared with; each the higher, the likelier the mask is wrong.
    itself
        Whether the probabilities are of those numbers alone, whose own order is then judged: one of models of several
        folds has their differences in it.
    """
    y, clips = np.array(wrong), _clips(rows).tolist()
    ranked = without if itself else found

    def area(of: NDArray[np.float64], at: NDArray[Any]) -> float:
        return auc(y[at].tolist(), of[at])

    return Judgement(
        over_left_out(lambda at: area(ranked, at), clips, (0, 1)),
        over_left_out(lambda at: float(brier_score_loss(y[at], found[at])), clips, (0, 1)),
        over_left_out(lambda at: area(ranked, at) - area(without, at), clips, (-1, 1)),
    )


@dataclass(frozen=True)
class Bin:
    """Rows of about one probability: its mean, the share that is wrong with an interval over clips, and how many rows."""

    predicted: float
    wrong: Estimate
    rows: int


EDGES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the bins of a reliability curve."""


def reliability(rows: Sequence[Row], wrong: Sequence[int], found: NDArray[np.float64]) -> list[Bin]:
    """Hold probabilities ``[n]`` against how often masks were wrong, bin by bin; bins without rows are left out."""
    y, clips = np.array(wrong), _clips(rows)
    place = np.clip(np.digitize(found, EDGES) - 1, 0, len(EDGES) - 2)
    bins = []
    for k in range(len(EDGES) - 1):
        there = np.flatnonzero(place == k)
        if not len(there):
            continue
        own = y[there]

        def share(at: NDArray[Any], own: NDArray[Any] = own) -> float:
            return float(own[at].mean()) if len(at) else math.nan

        estimate = over_left_out(share, clips[there].tolist(), (0, 1))
        bins.append(Bin(float(found[there].mean()), estimate, len(there)))
    return bins
