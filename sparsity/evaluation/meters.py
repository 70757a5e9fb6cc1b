"""What is read while a frame is computed: seconds, in all and by step, operations and memory; and on which machine."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from probes.models import fingerprint
from probes.observing import STEPS, listen
from probes.seam import Step
from sparsity.evaluation.results import Model
from sparsity.work.model import ModelChoice

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
    """Collect the seconds spent in each of `probes.observing.STEPS` inside the context.

    On a GPU it waits for the device around every step, so it is for a frame of its own, not for one that is timed.
    """
    spent = dict.fromkeys(STEPS.values(), 0.0)

    def note(step: Step) -> None:
        if predictor.device.type == "cuda":
            torch.cuda.synchronize(predictor.device)
        spent[step.name] += time.perf_counter() * (-1 if step.begins else 1)

    with listen(predictor, step=note):
        yield spent


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


Shape = tuple[int, ...]


def attention_flops(query: Shape, key: Shape, value: Shape, *rest: Any, **options: Any) -> int:
    """Count ``softmax(q kᵀ) v`` for shapes ``[B, h, N, c]``, ``[B, h, M, c]``, ``[B, h, M, d]``.

    >>> attention_flops((1, 1, 10, 4), (1, 1, 20, 4), (1, 1, 20, 8))
    4800
    """
    b, h, n, c = query
    m, d = key[2], value[3]
    return 2 * b * h * n * m * (c + d)


def linear_flops(x: Shape, weight: Shape, *rest: Any, out_shape: Shape, **options: Any) -> int:
    """Count a linear layer ``[n, i] -> [n, o]``; a packed weight's own shape says nothing.

    >>> linear_flops((10, 4), (8, 4), out_shape=(10, 8))
    640
    """
    rows = 1
    for size in x[:-1]:
        rows *= size
    return 2 * rows * x[-1] * out_shape[-1]


def _formulas() -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for library, name, formula in (
        ("aten", "_scaled_dot_product_flash_attention_for_cpu", attention_flops),
        ("mkldnn", "_linear_pointwise", linear_flops),
        ("quantized", "linear_dynamic", linear_flops),
    ):
        operator = getattr(getattr(torch.ops, library), name, None)
        if operator is not None:
            found[operator] = formula
    return found


@contextmanager
def counted_flops() -> Iterator[FlopCounterMode]:
    """Count inside the context; ``get_total_flops()`` of what is yielded says how many so far.

    Slows everything down: never inside a timed section.
    """
    with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        yield counter


ALLOCATOR = (
    "MALLOC_MMAP_MAX_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_ARENA_MAX",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "THP_MEM_ALLOC_ENABLE",
    "PYTORCH_CUDA_ALLOC_CONF",
)
"""Variables that change how memory is handed out; on a CPU they move stock sam2 by 20 %."""


def model_of(choice: ModelChoice, predictor: Any) -> Model:
    """Describe what is about to be measured: a choice, and the predictor that was built of it."""
    return Model(
        name=choice.name,
        fingerprint=fingerprint(predictor),
        image_size=predictor.image_size,
        trained=choice.trained,
    )


def environment(device: torch.device, dtype: str) -> dict[str, Any]:
    """Describe where and how something is about to be measured."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sam2": version("sam2"),
        "device": device.type,
        "dtype": dtype,
        "allocator": {name: os.environ[name] for name in ALLOCATOR if name in os.environ},
        "commit": commit(),
    }


def commit() -> str | None:
    """Return the commit of the sources that run, with a + where files differ from it; None outside git."""
    root = Path(__file__).parents[2]
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
