"""Adapters with weights: fitted in closed form or trained as in the paper, judged, and kept.

The ridge explains by a linear map what stage 3's blocks change on tokens that routing leaves out. The bottleneck, the
paper's shortcut branch, is trained on what memory attention makes of a frame (method 3.3): the dense encoder is the
teacher; the student computes what the inference router chose, on the same frame with the same memory. The squared
error of their memory-conditioned features goes back through memory attention, neck, stage 4 and stage 3's last block;
everything but the adapter is frozen.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from probes.errors import InputError
from probes.files import whole
from probes.models import fingerprint
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.calibration.routed_frames import RoutedFrame, RoutedFrames, remembering, stage3_output
from sparsity.techniques.adapter import Adapter, AdapterFunction, bottleneck
from sparsity.work.store import kept, kept_as, read_json

FITTED = ("ridge", "bottleneck")
KINDS = ("identity", *FITTED, "cached")

RIDGE = 1e-2
"""Penalty of the ridge fit, as a share of the mean variance of a channel."""

DROPOUT = 0.1
"""Of hidden units in training, as the authors do."""

SAVE_EVERY = 5
"""Updates between saved states."""

DONE = "done"
"""Name of the loss and seconds of each update in a saved state, beside the weights' names."""


def fit_ridge(frames: Iterable[RoutedFrame]) -> dict[str, Tensor]:
    """Fit a linear map to what the blocks change on tokens that routing leaves out.

    Frames are read once and not kept.

    Returns
    -------
    dict
        Weights, named as `sparsity.techniques.adapter` reads them.
    """
    count, sums, products = 0, torch.tensor(0.0), torch.tensor(0.0)
    for frame in frames:
        x = frame.entry[frame.outside].double()
        y = (frame.dense - frame.entry)[frame.outside].double()
        both = torch.cat([x, y], 1)
        count, sums, products = count + len(x), sums + both.sum(0), products + x.T @ both
    channels = len(products)
    mean_x, mean_y = (sums / count).split(channels)
    covariance = products / count - mean_x[:, None] * torch.cat([mean_x, mean_y])
    gram, cross = covariance.split(channels, 1)
    penalty = RIDGE * gram.diagonal().mean() * torch.eye(channels, dtype=gram.dtype)
    weight = torch.linalg.solve(gram + penalty, cross).T  # the bias goes unpunished
    return {"weight": weight.float().contiguous(), "bias": (mean_y - weight @ mean_x).float()}


@dataclass(frozen=True)
class Training:
    """Settings of a training.

    Attributes
    ----------
    updates, batch
        Steps of AdamW, and frames whose gradients are summed for one.
    rate
        Learning rate at the start; it falls to nothing along a cosine. The paper's constant 1e-4 needs its hour.
    """

    updates: int = 200
    batch: int = 4
    rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Update:
    """One step of a training: the mean squared error of its frames, and how long it took."""

    loss: float
    seconds: float


def train_bottleneck(
    predictor: EfficientSAM2VideoPredictor,
    frames: Sequence[RoutedFrame],
    training: Training,
    path: Path,
) -> Iterator[Update]:
    """Train update by update, write the weights to `path` at the end; the same start goes on where one was cut off.

    Yields
    ------
    Update
        All of them, those before the cut first.
    """
    weights = initial_weights(frames[0].entry.shape[1], training.seed)
    weights = {name: w.to(predictor.device).requires_grad_() for name, w in weights.items()}
    optimiser = torch.optim.AdamW(weights.values(), lr=training.rate)
    state = path.with_name(f".{path.name}.training")
    stamp = _stamp(predictor, frames, training)
    done = _resume(weights, optimiser, state, stamp)
    yield from done
    with _frozen(predictor):
        for update in range(len(done), training.updates):
            start = time.perf_counter()
            falling = (1 + math.cos(math.pi * update / training.updates)) / 2
            optimiser.param_groups[0]["lr"] = training.rate * falling
            optimiser.zero_grad()
            loss = 0.0
            for number in range(update * training.batch, (update + 1) * training.batch):
                frame = frames[_drawn(number, len(frames), training.seed)].to(predictor.device)
                error = _error(predictor, frame, weights, training.seed + number)
                (error / training.batch).backward()
                loss += error.item() / training.batch
            optimiser.step()
            done.append(Update(loss, time.perf_counter() - start))
            if len(done) % SAVE_EVERY == 0:
                _save(weights, optimiser, done, state, stamp)
            yield done[-1]
    write_adapter({name: w.detach().cpu() for name, w in weights.items()}, path)
    state.unlink(missing_ok=True)


def initial_weights(channels: int, seed: int) -> dict[str, Tensor]:
    """The paper's start, near identity (method 3.1)."""
    generator = torch.Generator().manual_seed(seed)
    half = channels // 2
    return {
        "norm.weight": torch.ones(channels),
        "norm.bias": torch.zeros(channels),
        "down_project.weight": torch.randn(half, channels, generator=generator)
        * (2 / channels) ** 0.5,
        "down_project.bias": torch.zeros(half),
        "up_project.weight": torch.randn(channels, half, generator=generator) * 1e-3,
        "up_project.bias": torch.zeros(channels),
    }


def _error(
    predictor: EfficientSAM2VideoPredictor,
    frame: RoutedFrame,
    weights: dict[str, Tensor],
    seed: int,
) -> Tensor:
    """Mean squared error of the student's memory-conditioned features."""
    generator = torch.Generator().manual_seed(seed)
    half = len(weights["down_project.bias"])
    kept = torch.rand(len(frame.entry), half, generator=generator) >= DROPOUT
    mask = kept.to(frame.entry.device) / (1 - DROPOUT)
    with torch.enable_grad(), torch.autocast(predictor.device.type, enabled=False):
        merged = frame.through(lambda x: bottleneck(x, weights, mask))
        found = remembering(predictor, frame, stage3_output(predictor, merged))
        return torch.nn.functional.mse_loss(found, frame.target)


def _drawn(number: int, frames: int, seed: int) -> int:
    """The frame of the `number`-th draw: all of them in a new order, again and again."""
    epoch, place = divmod(number, frames)
    generator = torch.Generator().manual_seed(seed + 7919 * epoch)
    return int(torch.randperm(frames, generator=generator)[place])


@contextmanager
def _frozen(predictor: EfficientSAM2VideoPredictor) -> Iterator[None]:
    """Ask for no gradients of the model's own weights, and make its rotary tables usable under autograd."""
    asked = [p for p in predictor.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    for module in predictor.memory_attention.modules():
        table = getattr(module, "freqs_cis", None)
        if table is not None and table.is_inference():
            module.freqs_cis = table.clone()
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def _stamp(
    predictor: EfficientSAM2VideoPredictor, frames: Sequence[RoutedFrame], training: Training
) -> str:
    """What a saved state belongs to."""
    first, last = frames[0].target, frames[-1].target
    seen = hashlib.sha256(torch.stack([first.sum(), last.sum()]).cpu().numpy().tobytes())
    return json.dumps(
        [fingerprint(predictor), asdict(training), len(frames), seen.hexdigest()], sort_keys=True
    )


def _save(
    weights: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    done: list[Update],
    path: Path,
    stamp: str,
) -> None:
    """Write weights, moments and what was done, whole or not at all."""
    told = [[update.loss, update.seconds] for update in done]
    tensors = {DONE: torch.tensor(told, dtype=torch.float64)}
    for name, weight in weights.items():
        tensors[name] = weight.detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimiser.state[weight][moment]
    with whole(path) as part:
        save_file({k: t.cpu().contiguous() for k, t in tensors.items()}, part, {"stamp": stamp})


def _resume(
    weights: dict[str, Tensor], optimiser: torch.optim.Optimizer, path: Path, stamp: str
) -> list[Update]:
    """Take over a saved state; the updates that are done, none without one."""
    try:
        with safe_open(path, "pt") as file:
            if file.metadata()["stamp"] != stamp:
                return []
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        done = [Update(loss, seconds) for loss, seconds in tensors[DONE].tolist()]
    except (OSError, SafetensorError, KeyError, TypeError):
        return []
    for name, weight in weights.items():
        weight.data.copy_(tensors[name])
        moments = {m: tensors[f"{m}.{name}"].to(weight.device) for m in ("exp_avg", "exp_avg_sq")}
        optimiser.state[weight] = {"step": torch.tensor(float(len(done))), **moments}
    return done


def judge_adapters(
    predictor: EfficientSAM2VideoPredictor,
    frames: Iterable[RoutedFrame],
    adapters: Mapping[str, AdapterFunction | None],
) -> dict[str, dict[str, float]]:
    """Errors of adapters against the dense encoder, mean over frames.

    Parameters
    ----------
    adapters
        By name; None adds the change that was made last (``cached``).

    Returns
    -------
    dict
        By name: ``stage3``, ``|found - dense| / |dense|`` of stage 3's output over tokens that are not
        computed, and ``remembered``, the same of memory-conditioned features over all tokens.
    """
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in adapters}
    for frame in (one.to(predictor.device) for one in frames):
        with torch.inference_mode(), torch.autocast(predictor.device.type, enabled=False):
            dense = stage3_output(predictor, frame.dense)
            for name, adapter in adapters.items():
                function = adapter or _added(frame.cached)
                found = stage3_output(predictor, frame.through(function))
                pair = (x.flatten(0, 2)[frame.outside] for x in (found, dense))
                remembered = remembering(predictor, frame, found)
                errors[name].append((_relative(*pair), _relative(remembered, frame.target)))
    means = {name: np.mean(values, 0) for name, values in errors.items() if values}
    return {name: {"stage3": float(m[0]), "remembered": float(m[1])} for name, m in means.items()}


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _added(change: Tensor) -> AdapterFunction:
    return lambda x: x + change


@dataclass(frozen=True)
class Fitted:
    """An adapter and what its fit took.

    Attributes
    ----------
    adapter
        With file and SHA-256.
    seconds
        Of the fit.
    loss
        Mean loss in each tenth of a training; empty for a closed form.
    """

    adapter: Adapter
    seconds: float
    loss: tuple[float, ...]


def fit_adapter(
    kind: str,
    predictor: EfficientSAM2VideoPredictor,
    frames: RoutedFrames,
    folder: Path,
    training: Training,
) -> Fitted:
    """Fit an adapter of one of the kinds `FITTED`, or take what was fitted alike.

    Parameters
    ----------
    frames
        From `sparsity.calibration.routed_frames.routed_frames`, whose files' names say what is in them.
    folder
        For the weights and, beside them, what the fit took.
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
            f"adapter {kind} asked for on clips of which no frame is routed (every third counts); expected clips "
            "that follow an object for some frames; give longer clips, or take cached"
        )
    notes = folder / f"{kind}.json"
    key = {"frames": frames.files, "training": None if kind == "ridge" else asdict(training)}
    weights = kept_as(notes, key).with_suffix(".safetensors")

    def fit() -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        start, losses = time.perf_counter(), []
        if kind == "ridge":
            write_adapter(fit_ridge(frames), weights)
            seconds = time.perf_counter() - start
        else:
            steps = train_bottleneck(predictor, frames, training, weights)
            done = list(tqdm(steps, "training", training.updates, unit="update", disable=None))
            losses, seconds = [u.loss for u in done], sum(u.seconds for u in done)
        tenths = np.array_split(losses, min(10, len(losses))) if losses else []
        return {
            "sha256": _digest(weights),
            "seconds": round(seconds, 2),
            "loss": [round(float(tenth.mean()), 6) for tenth in tenths],
        }

    def read(path: Path) -> Fitted:
        found = read_json(path)
        if _digest(weights) != found["sha256"]:
            raise ValueError(f"{weights} is not what was fitted")
        named = {"kind": kind, "file": str(weights.resolve()), "sha256": found["sha256"]}
        return Fitted(Adapter.model_validate(named), found["seconds"], tuple(found["loss"]))

    return kept(notes, key, fit, read)


def write_adapter(weights: dict[str, Tensor], path: Path) -> None:
    """Write fitted weights; the file is whole or absent."""
    with whole(path) as part:
        save_file({name: value.contiguous() for name, value in weights.items()}, part)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
