"""Fit the shortcut that is asked for: routed frames are kept by clip, weights by kind, so a second start goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from probes.errors import InputError
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.calibration.adapter import Training, train_bottleneck
from sparsity.calibration.clips import ClipSource
from sparsity.calibration.routed_frames import RoutedFrames, collect, frames_in
from sparsity.calibration.shortcuts import CLOSED, FITTED, fit_closed, write_shortcut
from sparsity.profile import Shortcut, Windows
from sparsity.runs import write_text

FIT_FRAMES = 24
"""Of each clip that is fitted on."""


@dataclass(frozen=True)
class Fitted:
    """A shortcut and what its fit took.

    Attributes
    ----------
    shortcut
        With file and SHA-256 where it has weights.
    seconds
        Of the fit.
    loss
        Mean loss in each tenth of a training; empty for a closed form.
    """

    shortcut: Shortcut
    seconds: float = 0.0
    loss: tuple[float, ...] = ()


def routed_frames(
    predictor: EfficientSAM2VideoPredictor,
    source: ClipSource,
    names: Sequence[str],
    windows: Windows,
    folder: Path,
    most_frames: int | None = None,
) -> RoutedFrames:
    """Collect routed frames, one file a clip; what lies whole in the folder is taken from there.

    Parameters
    ----------
    windows
        The inference router.
    folder
        For one model, router and `most_frames`.
    most_frames
        Track no more than so many of each clip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.safetensors" for name in names]
    for name, path in zip(
        tqdm(names, desc="routed", unit="clip", disable=None), paths, strict=True
    ):
        if frames_in(path) is None:
            collect(predictor, source.open(name), windows, path, most_frames=most_frames)
    return RoutedFrames(paths)


def fit_shortcut(
    kind: str,
    predictor: EfficientSAM2VideoPredictor,
    frames: RoutedFrames,
    folder: Path,
    training: Training,
) -> Fitted:
    """Fit a shortcut of one of the kinds `FITTED`, or take what was fitted alike.

    Parameters
    ----------
    folder
        For ``KIND.safetensors`` and, beside it, what the fit took.
    training
        Of the bottleneck.

    Raises
    ------
    InputError
        There is no routed frame.
    """
    assert kind in FITTED
    if not len(frames):
        raise InputError(
            f"shortcut {kind} asked for on clips of which no frame is routed (every third counts); expected clips "
            "that follow an object for some frames; give longer clips, or take cached"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path, notes = folder / f"{kind}.safetensors", folder / f"{kind}.json"
    settings = {"frames": frames.clips, "training": None if kind in CLOSED else asdict(training)}
    found = _read(notes)
    if found.get("settings") != settings or found.get("sha256") != _digest(path):
        losses: list[float] = []
        if kind in CLOSED:
            start = time.perf_counter()
            write_shortcut(fit_closed(kind, frames), path)
            seconds = time.perf_counter() - start
        else:
            steps = train_bottleneck(predictor, frames, training, path)
            done = list(tqdm(steps, "training", training.updates, unit="update", disable=None))
            losses, seconds = [u.loss for u in done], sum(u.seconds for u in done)
        tenths = np.array_split(losses, min(10, len(losses))) if losses else []
        found = {
            "settings": settings,
            "sha256": _digest(path),
            "seconds": round(seconds, 2),
            "loss": [round(float(tenth.mean()), 6) for tenth in tenths],
        }
        write_text(notes, json.dumps(found))
    shortcut = Shortcut.model_validate(
        {"kind": kind, "file": str(path.resolve()), "sha256": found["sha256"]}
    )
    return Fitted(shortcut, found["seconds"], tuple(found["loss"]))


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _read(notes: Path) -> dict[str, Any]:
    """What was noted of a fit; nothing where there is no whole file."""
    try:
        found = json.loads(notes.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
