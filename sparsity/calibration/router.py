"""A router: "will the next frame need this window?", learnt from traces, against the paper's rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sparsity.calibration.replay import replay_windows
from sparsity.calibration.traces import Trace
from sparsity.profile import Guard, Router, Windows
from sparsity.select import smallest_set, window_mass
from sparsity.window_cues import CUES, MASK_CUES

PAPER = Windows()

FEWEST_FRAMES = 3
"""A prompt, a frame that gives cues, and one that needs windows."""

INVERSE_PENALTY = 0.1
"""Of the logistic regression, over rows of which every clip has as many."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Windows of frames that may be routed, of one clip.

    Attributes
    ----------
    cues
        float64 ``[frames, objects, windows, cues]``.
    need
        Whether the object is in the window on the next frame, bool ``[frames, objects, windows]``.
    tokens
        Object tokens that the next frame has in each window, ``[frames, windows]``.
    seen
        Whether the object has a mask; one without asks for nothing, bool ``[frames, objects]``.
    otherwise
        Windows that saliency chooses where no object asks for any, bool ``[frames, windows]``.
    """

    cues: NDArray[np.float64]
    need: NDArray[np.bool_]
    tokens: NDArray[np.float64]
    seen: NDArray[np.bool_]
    otherwise: NDArray[np.bool_]


def names_of_cues(traces: Sequence[Trace]) -> tuple[str, ...]:
    """Cues that all traces have: without logits, as in recordings, those of the masks."""
    return CUES if all(trace.token_logits is not None for trace in traces) else MASK_CUES


def examples(trace: Trace, names: Sequence[str] = CUES) -> Examples:
    """Cues and needs of a trace's frames."""
    columns = [CUES.index(name) for name in names]
    cues, times = [], []
    for t in range(1, len(trace.frames) - 1):
        rows = [row for row in trace.window_cues[t] if row is not None]
        if len(rows) < trace.objects:
            continue
        cues.append(torch.stack(rows)[..., columns].double().numpy())
        times.append(t)
    salient = smallest_set(window_mass(trace.saliency[times], trace.grid), PAPER.saliency_mass)
    after = [t + 1 for t in times]
    return Examples(
        np.stack(cues),
        (trace.tokens_of_objects[after] > 0).numpy(),
        trace.tokens[after].double().numpy(),
        trace.best[times].flatten(2).any(-1).numpy(),
        salient.any(1).numpy(),
    )


@dataclass(frozen=True, eq=False)
class Verdict:
    """A router against the paper's rule on clips that it has not seen.

    Attributes
    ----------
    paper, router, oracle
        Windows kept and tokens recalled, clip by clip, ``[clips, 2]``: by the paper's rule; by the router with
        the threshold of equal mean recall; by the fewest windows that recall as much, of whoever knew the next frame.
    curve
        The router's means by threshold, ``[thresholds, 2]``.
    precision
        Share of the windows asked for that are needed, and share of needed ones asked for, ``[thresholds, 2]``.
    reliability
        Predicted and observed share of needed windows, ``[bins, 2]``.
    needed
        Share of windows that the next frame needs: the least that recalls everything.
    """

    paper: NDArray[np.float64]
    router: NDArray[np.float64]
    oracle: NDArray[np.float64]
    curve: NDArray[np.float64]
    precision: NDArray[np.float64]
    reliability: NDArray[np.float64]
    needed: float

    @property
    def saved(self) -> float:
        """Share of the paper's windows that the router leaves out at equal recall; negative when it keeps more."""
        return float(1 - self.router[:, 0].mean() / self.paper[:, 0].mean())


def learnable(traces: Sequence[Trace]) -> bool:
    """Whether `judge` can fit: whichever clip is left out, the others have windows that are needed, and some that aren't."""
    if any(len(trace.frames) < FEWEST_FRAMES for trace in traces):
        return False
    needs = [e.need[e.seen].ravel() for e in (examples(trace, MASK_CUES) for trace in traces)]
    for left_out in range(len(needs)):
        others = [need for i, need in enumerate(needs) if i != left_out]
        if not any(need.any() for need in others) or all(need.all() for need in others):
            return False
    return True


def fit_router(traces: Sequence[Trace], recall: float) -> Router:
    """Fit a router and set its threshold so that `recall` of the object tokens are covered on the same clips."""
    names = names_of_cues(traces)
    found = [examples(trace, names) for trace in traces]
    model, scaler = _fit(found)
    threshold = _threshold([_probability(e, model, scaler) for e in found], found, recall)
    return Router(
        cues=names,
        mean=tuple(scaler.mean_.tolist()),
        scale=tuple(scaler.scale_.tolist()),
        coefficients=tuple(model.coef_[0].tolist()),
        intercept=float(model.intercept_[0]),
        threshold=threshold,
    )


def judge(traces: Sequence[Trace]) -> Verdict:
    """Fit on all clips but one and look at that one, for each in turn; compare at the recall of the paper's rule."""
    names = names_of_cues(traces)
    found = [examples(trace, names) for trace in traces]
    probabilities = []
    for left_out in range(len(found)):
        model, scaler = _fit([e for i, e in enumerate(found) if i != left_out])
        probabilities.append(_probability(found[left_out], model, scaler))
    paper = np.array([_of_paper(trace) for trace in traces])
    shares = [e.tokens / np.maximum(e.tokens.sum(1, keepdims=True), 1) for e in found]
    recall = float(paper[:, 1].mean())
    every = np.concatenate([p.ravel() for p in probabilities])
    truth = np.concatenate([(e.tokens > 0).ravel() for e in found])
    thresholds = np.concatenate([[0.0], np.geomspace(1e-4, 0.95, 80)])
    asked = np.array([every >= t for t in thresholds])
    hits = (asked & truth).sum(1)
    observed, predicted = calibration_curve(truth, every, n_bins=10, strategy="quantile")
    return Verdict(
        paper,
        _outcomes(probabilities, found, _threshold(probabilities, found, recall)),
        _outcomes(shares, found, _threshold(shares, found, recall)),
        np.array([_outcomes(probabilities, found, t).mean(0) for t in thresholds]),
        np.stack([hits / np.maximum(asked.sum(1), 1), hits / max(truth.sum(), 1)], 1),
        np.stack([predicted, observed], 1),
        float(np.mean([(e.tokens > 0).mean() for e in found])),
    )


def _fit(found: Sequence[Examples]) -> tuple[LogisticRegression, StandardScaler]:
    """Fit to windows of objects that are seen; every clip weighs the same."""
    cues = [e.cues[e.seen].reshape(-1, e.cues.shape[-1]) for e in found]
    need = np.concatenate([e.need[e.seen].reshape(-1) for e in found])
    rows = np.concatenate(cues)
    weight = np.concatenate(
        [np.full(len(c), len(rows) / len(found) / max(len(c), 1)) for c in cues]
    )
    scaler = StandardScaler().fit(rows)
    scaler.scale_ = np.where(scaler.scale_ > 0, scaler.scale_, 1.0)
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=2000)
    return model.fit(scaler.transform(rows), need, sample_weight=weight), scaler


def _probability(
    e: Examples, model: LogisticRegression, scaler: StandardScaler
) -> NDArray[np.float64]:
    """Of each window, the largest over objects that are seen, ``[frames, windows]``."""
    flat = model.predict_proba(scaler.transform(e.cues.reshape(-1, e.cues.shape[-1])))[:, 1]
    of_objects = flat.reshape(e.cues.shape[:3]) * e.seen[:, :, None]
    best: NDArray[np.float64] = of_objects.max(1)
    return best


def _outcomes(
    probabilities: Sequence[NDArray[np.float64]], found: Sequence[Examples], threshold: float
) -> NDArray[np.float64]:
    """Shares of windows kept and of object tokens covered by clip, means over frames, ``[clips, 2]``."""
    rows = []
    for p, e in zip(probabilities, found, strict=True):
        chosen = (p >= threshold) & (p > 0)
        chosen = np.where(chosen.any(1, keepdims=True), chosen, e.otherwise)
        total = e.tokens.sum(1)
        covered = (e.tokens * chosen).sum(1) / np.maximum(total, 1)
        rows.append((chosen.mean(), np.where(total > 0, covered, 1.0).mean()))
    return np.array(rows)


def _threshold(
    probabilities: Sequence[NDArray[np.float64]], found: Sequence[Examples], recall: float
) -> float:
    """The largest threshold that covers `recall`, mean over clips."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if _outcomes(probabilities, found, middle)[:, 1].mean() >= recall:
            low = middle
        else:
            high = middle
    return low


def _of_paper(trace: Trace) -> tuple[float, float]:
    """The paper's rule on the same frames: from the second tracked one on."""
    replay = replay_windows(trace, PAPER, Guard(kept_share=1.0))
    routed = [t for t in range(1, len(trace.frames) - 1) if bool(trace.tracked[t].all())]
    return float(replay.kept[routed].mean()), float(replay.recall[routed].mean())
