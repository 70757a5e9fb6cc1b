"""What a training run does when: sizes, kinds of clips, how much of the run is done."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Phase:
    """A stretch of the run: clips of ``length`` frames at ``size`` px, until share ``end``."""

    size: int
    clips: int
    length: int
    end: float


DEFAULT_PHASES = "128:8x5@0.5,192:3x8@0.68,256:2x9@0.84,384:1x8@1"


def parse_phases(text: str) -> list[Phase]:
    """Read ``SIZE:CLIPSxFRAMES@END,...``; the last END is 1."""
    phases = []
    for part in text.split(","):
        size, rest = part.split(":")
        batch, end = rest.split("@")
        clips, length = batch.split("x")
        phases.append(Phase(int(size), int(clips), int(length), float(end)))
    return phases


def kind_shares(progress: float) -> dict[str, float]:
    """Return how often each kind of clip is made: recall first, real video more and more."""
    real = 0.15 + 0.22 * progress
    jump = 0.45 - 0.25 * progress
    drift = 0.05 + 0.17 * min(1.0, progress * 3)
    rest = 1 - real - jump - drift
    return {"davis": real, "jump": jump, "drift": drift, "smooth": rest * 0.5, "still": rest * 0.5}


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
