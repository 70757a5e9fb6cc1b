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
from sparsity.window_cues import CUES, window_cues

PAPER = Windows()


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
    """

    cues: NDArray[np.float64]
    need: NDArray[np.bool_]
    tokens: NDArray[np.float64]

    @property
    def rows(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Cues ``[n, cues]`` and whether the window was needed, ``[n]``."""
        return self.cues.reshape(-1, len(CUES)), self.need.reshape(-1)


def examples(trace: Trace) -> Examples:
    """Cues and needs of a trace's frames."""
    cues, need, tokens = [], [], []
    for t in range(1, len(trace.frames) - 1):
        if not bool(trace.tracked[t].all()):
            continue
        rows = []
        for i in range(trace.objects):
            before = trace.best[t - 1, i] if bool(trace.tracked[t - 1, i]) else None
            cue = trace.cues(0.0, "best")[t][i]
            assert cue is not None, "tracked frames have cues"
            saliency = trace.saliency[t, i]
            rows.append(
                window_cues(
                    trace.candidates[t, i], trace.best[t, i], before,
                    None if bool(saliency.isnan().any()) else saliency, cue.score, cue.jump, trace.grid,
                )
            )  # fmt: skip
        cues.append(torch.stack(rows).double().numpy())
        need.append((trace.tokens_of_objects[t + 1] > 0).numpy())
        tokens.append(trace.tokens[t + 1].double().numpy())
    return Examples(np.stack(cues), np.stack(need), np.stack(tokens))


@dataclass(frozen=True, eq=False)
class Verdict:
    """A router against the paper's rule on clips that it has not seen.

    Attributes
    ----------
    paper
        Windows kept and tokens recalled by the paper's rule, shares.
    curve
        The router's, by threshold, ``[thresholds, 2]``.
    kept
        What the router keeps at the paper's recall.
    reliability
        Predicted and observed share of needed windows, ``[bins, 2]``.
    """

    paper: tuple[float, float]
    curve: NDArray[np.float64]
    kept: float
    reliability: NDArray[np.float64]

    @property
    def saved(self) -> float:
        """Share of the paper's windows that the router leaves out at equal recall; negative when it keeps more."""
        return 1 - self.kept / self.paper[0]


def fit_router(traces: Sequence[Trace], recall: float) -> Router:
    """Fit a router and set its threshold so that `recall` of the object tokens are covered on the same clips."""
    model, scaler = _fit([examples(trace) for trace in traces])
    found = [examples(trace) for trace in traces]
    threshold = _threshold([_probability(e, model, scaler) for e in found], found, recall)
    return Router(
        cues=CUES,
        mean=tuple(scaler.mean_.tolist()),
        scale=tuple(scaler.scale_.tolist()),
        coefficients=tuple(model.coef_[0].tolist()),
        intercept=float(model.intercept_[0]),
        threshold=threshold,
    )


def judge(traces: Sequence[Trace]) -> Verdict:
    """Fit on all clips but one and look at that one, for each in turn; compare at the recall of the paper's rule."""
    found = [examples(trace) for trace in traces]
    probabilities = []
    for left_out in range(len(found)):
        model, scaler = _fit([e for i, e in enumerate(found) if i != left_out])
        probabilities.append(_probability(found[left_out], model, scaler))
    kept, recall = _of_paper(traces)
    thresholds = np.concatenate([[0.0], np.geomspace(1e-4, 0.9, 80)])
    curve = np.array([_kept_and_recall(probabilities, found, t) for t in thresholds])
    threshold = _threshold(probabilities, found, recall)
    every = np.concatenate([p.ravel() for p in probabilities])
    truth = np.concatenate([(e.tokens > 0).ravel() for e in found])
    observed, predicted = calibration_curve(truth, every, n_bins=10, strategy="quantile")
    return Verdict(
        (kept, recall),
        curve,
        _kept_and_recall(probabilities, found, threshold)[0],
        np.stack([predicted, observed], 1),
    )


def _fit(found: Sequence[Examples]) -> tuple[LogisticRegression, StandardScaler]:
    rows = [e.rows for e in found]
    cues, need = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    scaler = StandardScaler().fit(cues)
    scaler.scale_ = np.where(scaler.scale_ > 0, scaler.scale_, 1.0)
    model = LogisticRegression(C=1.0, max_iter=2000)
    return model.fit(scaler.transform(cues), need), scaler


def _probability(
    e: Examples, model: LogisticRegression, scaler: StandardScaler
) -> NDArray[np.float64]:
    """Of each window, the largest over objects, ``[frames, windows]``."""
    flat = model.predict_proba(scaler.transform(e.cues.reshape(-1, len(CUES))))[:, 1]
    best: NDArray[np.float64] = flat.reshape(e.cues.shape[:3]).max(1)
    return best


def _kept_and_recall(
    probabilities: Sequence[NDArray[np.float64]], found: Sequence[Examples], threshold: float
) -> tuple[float, float]:
    """Shares of windows kept and of object tokens covered, mean over frames, then clips."""
    kept, recall = [], []
    for p, e in zip(probabilities, found, strict=True):
        chosen = p >= threshold
        total = e.tokens.sum(1)
        covered = (e.tokens * chosen).sum(1) / np.maximum(total, 1)
        kept.append(chosen.mean())
        recall.append(np.where(total > 0, covered, 1.0).mean())
    return float(np.mean(kept)), float(np.mean(recall))


def _threshold(
    probabilities: Sequence[NDArray[np.float64]], found: Sequence[Examples], recall: float
) -> float:
    """The largest threshold that covers `recall`."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if _kept_and_recall(probabilities, found, middle)[1] >= recall:
            low = middle
        else:
            high = middle
    return low


def _of_paper(traces: Sequence[Trace]) -> tuple[float, float]:
    """The paper's rule on the same frames: from the second tracked one on."""
    kept, recall = [], []
    for trace in traces:
        replay = replay_windows(trace, PAPER, Guard(kept_share=1.0))
        routed = [t for t in range(1, len(trace.frames) - 1) if bool(trace.tracked[t].all())]
        kept.append(replay.kept[routed].mean())
        recall.append(replay.recall[routed].mean())
    return float(np.mean(kept)), float(np.mean(recall))
