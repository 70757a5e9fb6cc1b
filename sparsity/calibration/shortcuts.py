"""Fit and judge shortcuts: what a window that is not computed goes through instead of stage 3's blocks.

`mean` and `ridge` have closed forms and are fitted here to what the blocks change; the paper's `bottleneck` is
trained through memory attention (`sparsity.calibration.adapter`). The rest of the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.acceleration.shortcuts import ShortcutFunction
from sparsity.calibration.routed_frames import RoutedFrame, remembering, stage3_output
from sparsity.runs import part_of

CLOSED = ("mean", "ridge")
FITTED = (*CLOSED, "bottleneck")
KINDS = ("identity", *FITTED, "cached")

RIDGE = 1e-2
"""Penalty of the ridge fit, as a share of the mean variance of a channel."""

RESAMPLES = 10_000
"""Of the bootstrap."""


def fit_closed(kind: str, frames: Iterable[RoutedFrame]) -> dict[str, Tensor]:
    """Fit a shortcut with a closed form to what the blocks change on tokens that routing leaves out.

    Frames are read once and not kept.

    Returns
    -------
    dict
        Weights, named as `sparsity.acceleration.shortcuts` reads them.

    Raises
    ------
    ValueError
        The kind has no closed form.
    """
    if kind not in CLOSED:
        raise ValueError(
            f"shortcut {kind!r} has no closed form; expected one of {', '.join(CLOSED)}"
        )
    count, sums, products = 0, torch.tensor(0.0), torch.tensor(0.0)
    for frame in frames:
        x = frame.entry[frame.outside].double()
        y = (frame.dense - frame.entry)[frame.outside].double()
        both = torch.cat([x, y], 1)
        count, sums, products = count + len(x), sums + both.sum(0), products + x.T @ both
    channels = len(products)
    mean_x, mean_y = (sums / count).split(channels)
    if kind == "mean":
        return {"mean": mean_y.float()}
    covariance = products / count - mean_x[:, None] * torch.cat([mean_x, mean_y])
    gram, cross = covariance.split(channels, 1)
    penalty = RIDGE * gram.diagonal().mean() * torch.eye(channels, dtype=gram.dtype)
    weight = torch.linalg.solve(gram + penalty, cross).T  # the bias goes unpunished
    return {"weight": weight.float().contiguous(), "bias": (mean_y - weight @ mean_x).float()}


def write_shortcut(weights: dict[str, Tensor], path: Path) -> None:
    """Write fitted weights; the file is whole or absent."""
    part = part_of(path)
    save_file({name: value.contiguous() for name, value in weights.items()}, part)
    part.replace(path)


def judge_shortcuts(
    predictor: EfficientSAM2VideoPredictor,
    frames: Iterable[RoutedFrame],
    shortcuts: Mapping[str, ShortcutFunction | None],
) -> dict[str, dict[str, float]]:
    """Errors of shortcuts against the dense encoder, mean over frames.

    Parameters
    ----------
    shortcuts
        By name; None adds the change that was made last (``cached``).

    Returns
    -------
    dict
        By name: ``stage3``, ``|found - dense| / |dense|`` of stage 3's output over tokens of windows that are not
        computed, and ``remembered``, the same of memory-conditioned features over all tokens.
    """
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in shortcuts}
    for frame in (one.to(predictor.device) for one in frames):
        with torch.inference_mode(), torch.autocast(predictor.device.type, enabled=False):
            dense = stage3_output(predictor, frame.dense)
            for name, shortcut in shortcuts.items():
                function = shortcut or _added(frame.cached)
                found = stage3_output(predictor, frame.through(function))
                pair = (x.flatten(0, 2)[frame.outside] for x in (found, dense))
                remembered = remembering(predictor, frame, found)
                errors[name].append((_relative(*pair), _relative(remembered, frame.target)))
    means = {name: np.mean(values, 0) for name, values in errors.items() if values}
    return {name: {"stage3": float(m[0]), "remembered": float(m[1])} for name, m in means.items()}


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _added(change: Tensor) -> ShortcutFunction:
    return lambda x: x + change


def interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean over clips, by the bootstrap over clips.

    Parameters
    ----------
    values
        One a clip, ``[n]``.
    """
    from scipy import stats

    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(seed)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
