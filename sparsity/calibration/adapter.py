"""Train the paper's shortcut, the bottleneck, on what memory attention makes of a frame (method 3.3).

The dense encoder is the teacher; the student computes the windows that the inference router chose, on the same
frame with the same memory. The squared error of their memory-conditioned features goes back through memory
attention, neck, stage 4 and stage 3's last block; everything but the adapter is frozen.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from probes.models import fingerprint
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.acceleration.shortcuts import bottleneck
from sparsity.calibration.routed_frames import RoutedFrame, remembering, stage3_output
from sparsity.calibration.shortcuts import write_shortcut

DROPOUT = 0.1
"""Of hidden units in training, as the authors do."""

SAVE_EVERY = 5
"""Updates between saved states."""

DONE = "done"
"""Name of the loss and seconds of each update in a saved state, beside the weights' names."""


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
    write_shortcut({name: w.detach().cpu() for name, w in weights.items()}, path)
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
    part = path.with_name(f"{path.name}.part")
    save_file(
        {k: t.cpu().contiguous() for k, t in tensors.items()},
        part,
        {"stamp": stamp},
    )
    part.replace(path)


def _resume(
    weights: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    path: Path,
    stamp: str,
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
