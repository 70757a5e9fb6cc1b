"""Fit shortcuts: what a window that is not computed goes through instead of stage 3's blocks.

`mean` and `ridge` have closed forms; `bottleneck` is the paper's adapter, trained here on the same pairs of
tokens (the paper trains it through memory attention on memory-conditioned features: method section 3). The
rest of the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from sparsity.acceleration.encoder import Routing
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.acceleration.shortcuts import ShortcutFunction, bottleneck
from sparsity.calibration.clips import CalibrationClip
from sparsity.calibration.replay import replay_windows
from sparsity.calibration.traces import Trace
from sparsity.profile import Guard, Windows

FITTED = ("mean", "ridge", "bottleneck")
KINDS = ("identity", *FITTED, "cached")

RIDGE = 1e-2
"""Penalty of the ridge fit, as a share of the mean variance of a channel."""

EVERY = 3
"""Frames between those that pairs are taken from."""

STEPS, BATCH, RATE = 600, 1024, 1e-3
"""Training of the bottleneck."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Tokens before and behind stage 3's routed blocks, of windows that routing leaves out.

    Attributes
    ----------
    entry, change
        float32 ``[n, C]``: what enters, and what the blocks add to it.
    """

    entry: Tensor
    change: Tensor


def stage3_entry(predictor: EfficientSAM2VideoPredictor, image: Tensor) -> Tensor:
    """Tokens as they enter stage 3's routed blocks, float32 ``[grid, grid, C]``."""
    with torch.inference_mode():
        entry, _ = predictor._encoder.early(image[None].to(predictor.device).float())
    return entry


def bypassed_windows(trace: Trace, windows: Windows) -> list[tuple[int, ...] | None]:
    """Windows that are computed on each frame, as routing decides on the trace; None on dense frames."""
    decisions = replay_windows(trace, windows, Guard(kept_share=1.0)).decisions
    return [None, *(decision.windows for decision in decisions)]


def collect(
    predictor: EfficientSAM2VideoPredictor, clip: CalibrationClip, trace: Trace, windows: Windows
) -> Pairs:
    """Take pairs of tokens from every third frame of a clip."""
    state = predictor.init_state(clip.video)
    entries, changes = [], []
    kept = bypassed_windows(trace, windows)
    for t in range(2, len(trace.frames), EVERY):
        chosen = kept[t]
        if chosen is None:
            continue
        entry = stage3_entry(predictor, state["images"][trace.frames[t]])
        with torch.inference_mode():
            _, change = predictor._encoder.through_stage3(entry, Routing(keep_change=True))
        assert change is not None, "it was asked for"
        outside = ~_inside(trace, chosen)
        entries.append(entry.reshape(-1, entry.shape[-1])[outside].clone())
        changes.append(change[outside].clone())
    return Pairs(torch.cat(entries), torch.cat(changes))


def _inside(trace: Trace, windows: tuple[int, ...]) -> Tensor:
    """Which tokens lie in windows, bool ``[tokens]``."""
    place = torch.arange(trace.grid.tokens) // trace.grid.window
    of_token = (place[:, None] * trace.grid.side + place[None]).reshape(-1)
    return torch.isin(of_token, torch.tensor(windows))


def fit_shortcut(kind: str, pairs: Sequence[Pairs], seed: int = 0) -> dict[str, Tensor]:
    """Fit a shortcut's weights, named as `sparsity.acceleration.shortcuts` reads them.

    Raises
    ------
    ValueError
        The kind has no weights.
    """
    x, y = (torch.cat([getattr(p, name) for p in pairs]) for name in ("entry", "change"))
    if kind == "mean":
        return {"mean": y.mean(0)}
    if kind == "ridge":
        return _ridge(x.double(), y.double())
    if kind == "bottleneck":
        return _bottleneck(x, y, seed)
    raise ValueError(f"shortcut {kind!r} has no weights; expected one of {', '.join(FITTED)}")


def _ridge(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The linear map with the least squared error and a penalty on its size; the bias goes unpunished."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred = x - mean_x
    gram = centred.T @ centred
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, centred.T @ (y - mean_y)).T
    return {"weight": weight.float().contiguous(), "bias": (mean_y - weight @ mean_x).float()}


def _bottleneck(x: Tensor, y: Tensor, seed: int) -> dict[str, Tensor]:
    """The adapter from the paper's start (near identity), trained on the squared error of the change."""
    channels = x.shape[1]
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(channels // 2, channels, generator=generator) * (2 / channels) ** 0.5
    weights = {
        "norm.weight": torch.ones(channels),
        "norm.bias": torch.zeros(channels),
        "down_project.weight": down,
        "down_project.bias": torch.zeros(channels // 2),
        "up_project.weight": torch.randn(channels, channels // 2, generator=generator) * 1e-3,
        "up_project.bias": torch.zeros(channels),
    }
    for value in weights.values():
        value.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights.values(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            rows = torch.randint(len(x), (BATCH,), generator=generator)
            loss = (bottleneck(x[rows], weights) - x[rows] - y[rows]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return {name: value.detach() for name, value in weights.items()}


def write_shortcut(weights: dict[str, Tensor], path: Path) -> None:
    """Write fitted weights; the file is whole or absent."""
    part = path.with_name(f".{path.name}.part")
    save_file({name: value.contiguous() for name, value in weights.items()}, part)
    part.replace(path)


def stage3_error(
    predictor: EfficientSAM2VideoPredictor,
    clip: CalibrationClip,
    trace: Trace,
    windows: Windows,
    shortcuts: dict[str, ShortcutFunction | None],
) -> dict[str, float]:
    """Relative error of stage 3's output with each shortcut, mean over a clip's routed frames.

    Parameters
    ----------
    shortcuts
        By name; None adds the change of the clip's last dense frame (``cached``).

    Returns
    -------
    dict
        ``|routed - dense| / |dense|`` over all tokens, by name.
    """
    state = predictor.init_state(clip.video)
    kept = bypassed_windows(trace, windows)
    cached: Tensor | None = None
    errors: dict[str, list[float]] = {name: [] for name in shortcuts}
    for t, chosen in enumerate(kept):
        if chosen is not None and t % EVERY:
            continue
        entry = stage3_entry(predictor, state["images"][trace.frames[t]])
        with torch.inference_mode():
            dense, change = predictor._encoder.through_stage3(entry, Routing(keep_change=True))
            if chosen is None:
                cached = change
                continue
            for name, function in shortcuts.items():
                through = function if function is not None else _added(cached)
                routed, _ = predictor._encoder.through_stage3(entry, Routing(chosen, through))
                errors[name].append(float((routed - dense).norm() / dense.norm()))
    return {name: float(np.mean(values)) for name, values in errors.items() if values}


def _added(change: Tensor | None) -> Callable[[Tensor], Tensor]:
    assert change is not None, "the first frame is dense"
    return lambda x: x + change


def against_identity(
    errors: Sequence[dict[str, float]], kind: str
) -> tuple[float, tuple[float, float]]:
    """Mean difference of a shortcut's error to identity's over clips, and its 95 % interval (Student's t)."""
    from scipy import stats

    found: NDArray[np.float64] = np.array([e[kind] - e["identity"] for e in errors])
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5
    return float(found.mean()), (float(found.mean() - half), float(found.mean() + half))
