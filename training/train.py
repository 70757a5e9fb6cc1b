"""Train the demo model: plain torch and sam2's own classes, on a CPU or a GPU.

    python -m training.train --davis DAVIS --stills STILLS --out RUN --hours 8

Kill it at any time and start the same command again: it goes on from its last checkpoint. The
schedule follows the share of the run that is done, so it always ends annealed: after ``--steps``
steps, or when the hours are over, however fast the machine was. With ``--start`` the run begins
with given weights further on in the schedule (``--enter``).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from probes.files import whole
from probes.weights import load_strictly, read_checkpoint
from training.data import Batch, Order, Phase, Pool, batches, load_pool
from training.losses import (
    PROMPTED,
    attention_loss,
    mask_loss,
    occupancy,
    pointer_loss,
    token_contrast,
)
from training.network import (
    autocast,
    build_model,
    fast_bfloat16,
    prepare_weights,
    relative_rate,
    set_size,
)
from training.teaching import AttentionTeacher
from training.unroll import prompt_step, unroll

DEFAULT_PHASES = "128:8x5@0.5,192:3x8@0.68,256:2x9@0.84,384:1x8@1"
VALIDATION_SIZE = 384
PEAK_RATE = 1.2e-3
EMA_DECAY = 0.997
WARM_UP = 60  # steps
SMALLEST_TARGET = 0.002  # share of frame 0 below which a target is not asked for
PROMPTED_FRAMES = 3  # of a clip, on which targets are clicked and boxed without memory


def parse_phases(text: str) -> list[Phase]:
    """Read ``SIZE:CLIPSxFRAMES@END,...``; the last END is 1."""
    phases = []
    for part in text.split(","):
        size, rest = part.split(":")
        batch, end = rest.split("@")
        clips, length = batch.split("x")
        phases.append(Phase(int(size), int(clips), int(length), float(end)))
    return phases


@dataclass
class Clock:
    """The share of the run that is done, by steps or by hours, surviving interruptions."""

    steps: int | None
    deadline: float | None  # seconds since the epoch
    start_share: float = 0.0
    started: float = 0.0
    first_share: float = 0.0  # of the run's step 0

    def share(self, step: int) -> float:
        if self.steps is not None:
            return min(1.0, self.first_share + (1 - self.first_share) * step / self.steps)
        assert self.deadline is not None
        left = (self.deadline - time.time()) / max(1.0, self.deadline - self.started)
        return min(1.0, 1 - (1 - self.start_share) * max(0.0, left))


def free_threads(most: int) -> int:
    """Return how many threads to use now: ``most``, less what other programs keep busy.

    Two threads that share a core with another program spend their time waiting for each other.
    """
    loads = Path("/proc/loadavg")
    if not loads.exists():
        return most
    running = int(loads.read_text().split()[3].split("/")[0])
    return max(1, most - max(0, running - 1))


def jaccard(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Return the intersection over union of boolean masks [N, ...] as [N]; both empty: 1."""
    found, true = found.flatten(1), true.flatten(1)
    union = (found | true).sum(1)
    return torch.where(union > 0, (found & true).sum(1) / union.clamp(min=1), 1.0)


@torch.no_grad()
def validate(model: Any, pool: Pool, device: str, length: int = 16) -> dict[str, Any]:
    """Track the held-out clips at the demo model's size from frame 0's mask; mean J over frames 1.. in %."""
    set_size(model, VALIDATION_SIZE)
    clips = torch.stack([clip[:length] for clip in pool.held_out]).to(device)
    side = (VALIDATION_SIZE, VALIDATION_SIZE)
    scaled = F.interpolate(clips.flatten(0, 1).float() / 255, side, mode="bilinear")
    scaled = scaled.unflatten(0, clips.shape[:2])
    masks = scaled[:, :, 3:] > 0.5
    model.eval()
    with autocast(device):
        out = unroll(model, scaled[:, :, :3], masks)
    true = out.targets > 0.5
    each = torch.stack([jaccard(s.best[:, 0] > 0, true[:, s.frame]) for s in out.steps]).mean(0)
    frozen = torch.stack([jaccard(true[:, 0], true[:, s.frame]) for s in out.steps]).mean()
    model.train()
    return {
        "calibrate_j": round(100 * each.mean().item(), 1),
        "calibrate_each": [round(100 * x) for x in each.tolist()],
        "frozen_mask_j": round(100 * frozen.item(), 1),
    }


class Trainer:
    """The state of a run: weights, their running mean, optimiser, random numbers, progress."""

    def __init__(self, pool: Pool, out: Path, phases: list[Phase], device: str, seed: int) -> None:
        self.pool, self.out, self.phases, self.device = pool, out, phases, device
        torch.manual_seed(seed)
        random.seed(seed)
        self.model = build_model().to(device)
        prepare_weights(self.model)
        self.mean = build_model().to(device)
        self.mean.load_state_dict(self.model.state_dict())
        groups = [
            {
                "params": [parameter],
                "weight_decay": 0.05 if parameter.ndim > 1 else 0.0,
                "relative_rate": relative_rate(name),
            }
            for name, parameter in self.model.named_parameters()
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)
        self.teacher = AttentionTeacher()
        self.step, self.share, self.seconds, self.best = 0, 0.0, 0.0, -1.0
        self.smooth: dict[str, float] = {}

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "mean": self.mean.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": [self.step, self.share, self.seconds, self.best],
            "torch_random": torch.get_rng_state(),
            "python_random": json.dumps(random.getstate()),
        }
        with whole(self.out / "checkpoint.pt") as part:
            torch.save(state, part)

    def resume(self) -> bool:
        """Go on from the checkpoint in the output folder, if there is one."""
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.mean.load_state_dict(state["mean"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.share, self.seconds, self.best = state["progress"]
        torch.set_rng_state(state["torch_random"].cpu())
        version, numbers, gauss = json.loads(state["python_random"])
        random.setstate((version, tuple(numbers), gauss))
        return True

    def start_from(self, weights: Path, share: float) -> None:
        """Take given weights and enter the schedule where ``share`` of it is done."""
        state = read_checkpoint(weights)
        load_strictly(self.model, state, weights)
        load_strictly(self.mean, state, weights)
        self.share = share

    def log(self, **entry: Any) -> None:
        """Append a line to the log and show it."""
        entry = {"step": self.step, "share": round(self.share, 4), **entry}
        entry["hours"] = round(self.seconds / 3600, 4)
        line = json.dumps(entry)
        with (self.out / "log.jsonl").open("a") as log:
            log.write(line + "\n")
        print(line, file=sys.stderr, flush=True)

    def orders(self, clock: Clock) -> Iterator[Order]:
        """Say what the next batch is for, now and whenever asked again."""
        while True:
            share = clock.share(self.step)
            yield share, next(p for p in self.phases if share < p.end or p is self.phases[-1])

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the losses of a batch, weighted."""
        done = self.share
        frames, masks = (x.to(self.device, non_blocking=True) for x in batch)
        frames, length = frames.float() / 255, frames.shape[1]
        times = [0]
        for _ in range(length - 1):
            times.append(times[-1] + random.choice((1, 1, 1, 2)))
        with autocast(self.device):
            out = unroll(
                self.model,
                frames,
                masks,
                times=times,
                forced=max(0.0, 0.6 - 0.9 * done),
                hide=0.3 if done > 0.3 else 0.0,
                cut=random.choice((0.0, 0.5)) if done > 0.5 else 0.0,
                teacher=self.teacher,
            )
            clicked = random.sample(range(length), min(PROMPTED_FRAMES, length))
            prompted = [prompt_step(self.model, out, clicked, kind) for kind in ("click", "box")]
        true = torch.cat([out.targets[:, frame] for frame in clicked])
        clear = true.flatten(1).mean(1) > SMALLEST_TARGET
        usable = out.targets[:, 0].flatten(1).mean(1) > SMALLEST_TARGET
        occupied = occupancy(out.targets)
        found = [x for s in out.steps if (x := attention_loss(s, occupied)) is not None]
        zero = frames.new_zeros(())
        per_frame = [mask_loss(s, out.targets[:, s.frame], usable) for s in out.steps]
        pointers = [pointer_loss(s, occupied.shape[-1]) for s in out.steps]
        attention = torch.stack(found).mean() if found else zero
        asked = [mask_loss(x, true, clear, PROMPTED) for x in prompted]
        return {
            "mask": torch.stack(per_frame).mean(),
            "prompt": 0.4 * torch.stack(asked).sum(),
            "attention": (0.3 - 0.15 * done) * attention,
            "pointer": 0.1 * torch.stack(pointers).mean(),
            "contrast": 0.3 * (1 - done) * token_contrast(out.levels[-1], masks),
        }

    def take_step(self, batch: Batch) -> None:
        """Make one step of the optimiser and of the running mean."""
        set_size(self.model, batch[0].shape[-1])
        anneal = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.share))
        for group in self.optimiser.param_groups:
            rate = PEAK_RATE * anneal * min(1.0, (self.step + 1) / WARM_UP)
            group["lr"] = rate * group["relative_rate"]
        losses = self.losses(batch)
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.step += 1
        decay = min(EMA_DECAY, (1 + self.step) / (20 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.mean.parameters()), list(self.model.parameters()), 1 - decay
            )
        for name, loss in losses.items():
            value = loss.item()
            self.smooth[name] = 0.97 * self.smooth.get(name, value) + 0.03 * value

    def check(self) -> None:
        """Validate the running mean and keep the best of the run."""
        figures = validate(self.mean, self.pool, self.device)
        set_size(self.mean, VALIDATION_SIZE)
        self.log(**figures)
        if figures["calibrate_j"] >= self.best:
            self.best = figures["calibrate_j"]
            with whole(self.out / "best.pt") as part:
                torch.save({"model": self.mean.state_dict(), **figures}, part)

    def run(
        self, clock: Clock, threads: int, workers: int, save_every: float, check_every: float
    ) -> None:
        """Train until the clock has run out; seconds between checkpoints and validations."""
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
        clock.started, clock.start_share = time.time(), self.share
        saved = checked = time.time()
        self.teacher.attach(self.model)
        self.model.train()
        made = batches(self.pool, self.orders(clock), workers)
        while (share := clock.share(self.step)) < 1 and not stopped:
            self.share = share
            begun = time.process_time()
            torch.set_num_threads(free_threads(threads))
            self.take_step(next(made))
            self.seconds += time.process_time() - begun
            if self.step % 20 == 0:
                rounded = {k: round(v, 4) for k, v in self.smooth.items()}
                self.log(
                    size=self.model.image_size,
                    time=round(time.time()),
                    threads=torch.get_num_threads(),
                    **rounded,
                )
            if time.time() - checked > check_every:
                self.check()
                checked = time.time()
            if time.time() - saved > save_every:
                self.save()
                saved = time.time()
        if not stopped:
            self.share = 1.0
            self.check()
        self.save()
        self.teacher.detach(self.model)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--davis", type=Path, required=True, help="DAVIS-layout folder")
    parser.add_argument("--stills", type=Path, required=True, help="folder with images.csv")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and log go here")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="length of the run in steps")
    length.add_argument("--hours", type=float, help="time from now to the end of the run")
    parser.add_argument("--start", type=Path, help="weights to begin with, .safetensors or .pt")
    parser.add_argument(
        "--enter", type=float, default=0.5, help="share of the schedule to start at"
    )
    parser.add_argument("--phases", default=DEFAULT_PHASES, help="SIZE:CLIPSxFRAMES@END,...")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches ahead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=150, help="seconds")
    parser.add_argument("--check-every", type=float, default=600, help="seconds")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    pool = load_pool(options.davis, options.stills, cache=options.out / "pool.pt")
    phases = parse_phases(options.phases)
    trainer = Trainer(pool, options.out, phases, options.device, options.seed)
    resumed = trainer.resume()
    if options.start and not resumed:
        trainer.start_from(options.start, options.enter)
    trainer.log(resumed=resumed, parameters=sum(p.numel() for p in trainer.model.parameters()))
    deadline = None if options.hours is None else time.time() + 3600 * options.hours
    # In bfloat16 the CPU's fused attention is slow to differentiate on small windows.
    on_cpu = torch.device(options.device).type == "cpu"
    explicit = on_cpu and fast_bfloat16(options.device)
    with sdpa_kernel(SDPBackend.MATH) if explicit else nullcontext():
        clock = Clock(options.steps, deadline, first_share=options.enter if options.start else 0.0)
        trainer.run(
            clock, options.threads, options.workers, options.save_every, options.check_every
        )


if __name__ == "__main__":
    main()
