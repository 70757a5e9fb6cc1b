"""Clocks: how long one frame takes on its device, where in the model, and how much memory it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

STAGES = {
    "_get_image_feature": "image encoder",
    "_prepare_memory_conditioned_features": "memory attention",
    "_forward_sam_heads": "mask decoder",
    "_encode_new_memory": "memory encoder",
}
"""Methods of sam2's predictor that a tracked frame goes through, none inside another."""

REST = "rest"
"""Everything else of a frame: bookkeeping, choosing windows, masks at the video's size."""


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Run something once and return how long it took: CUDA events on a GPU, wall time elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(torch.cuda.current_stream(device))
        run()
        end.record(torch.cuda.current_stream(device))
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / 1000
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@contextmanager
def stage_seconds(predictor: Any) -> Iterator[dict[str, float]]:
    """Collect the seconds spent in each of `STAGES` inside the context.

    Wraps the methods on this instance and removes the wrappers again. On a GPU it waits for the device
    around every stage, so it is for a frame of its own, not for one that is timed.
    """
    spent = dict.fromkeys(STAGES.values(), 0.0)

    def wrapped(method: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            results = []
            spent[stage] += seconds_of(
                lambda: results.append(method(*args, **kwargs)), predictor.device
            )
            return results[0]

        return timed

    for name, stage in STAGES.items():
        object.__setattr__(predictor, name, wrapped(getattr(predictor, name), stage))
    try:
        yield spent
    finally:
        for name in STAGES:
            object.__delattr__(predictor, name)


class PeakMemory:
    """The most memory the process (on a GPU: torch on that GPU) held at once since `reset`."""

    _CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def reset(self) -> bool:
        """Begin anew; False where the system can't, which is everywhere but on Linux and on a GPU."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return True
        try:
            self._CLEAR.write_text("5")  # resets VmHWM, see proc(5)
        except OSError:
            return False
        return True

    def megabytes(self) -> float:
        """Return the peak since the last `reset`, in MiB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        line = next(
            text for text in self._STATUS.read_text().splitlines() if text.startswith("VmHWM")
        )
        return int(line.split()[1]) / 1024
