"""Measure time per frame against stock sam2: the real architectures with random weights, and the demo model.

    python benchmarks/speed.py            measure every case that has no file yet
    python benchmarks/speed.py --list     name the cases
    python benchmarks/speed.py CASE …     measure these, anew

Every case is a process of its own, because the allocator is chosen when a process starts; its result is
``benchmarks/speed/CASE.json``. Random weights are routed by fixed windows, the demo model by its own masks, with
the quality of ``benchmarks/techniques.json``. "no-mmap" keeps freed memory instead of returning it to the system
(``MALLOC_MMAP_MAX_=0``), which alone makes stock sam2 faster on a CPU; both sides always run alike. Run
it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from probes.files import write_text
from sparsity.evaluation.benchmark import Request, run_bench, table
from sparsity.work.model import ModelChoice

FOLDER = Path(__file__).with_name("speed")
QUALITY = FOLDER.with_name("techniques.json")

ALLOCATORS = {
    "default": {},
    "no-mmap": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000"},
}


@dataclass(frozen=True)
class Case:
    """One process's work."""

    model: str
    windows: str | None
    dtype: str
    allocator: str
    frames: int
    rows: tuple[str, ...] = ()
    objects: int = 1
    compile: bool = False
    quality: Path | None = None

    @property
    def name(self) -> str:
        """Name of the case and of its file."""
        several = f"-{self.objects}-objects" if self.objects > 1 else ""
        short = self.model.removeprefix("sam2.1-")
        compiled = "-compiled" if self.compile else ""
        return f"{short}{several}-{self.dtype}-{self.allocator}{compiled}"


MAIN = ("stock", "exact", "paper")
METHODS = ("stock", "exact", "SWR", "SMR", "SWR + SMR", "paper", "recommended")
MODELS = {"large": "4/16", "base-plus": "6/25", "small": "6/25", "tiny": "6/25"}

CASES = [
    *(
        Case(f"sam2.1-{model}", windows, "bfloat16", allocator, 9, METHODS)
        for allocator in ALLOCATORS
        for model, windows in MODELS.items()
        if (model, allocator) != ("large", "default")
    ),
    Case("sam2.1-large", "4/16", "bfloat16", "default", 9),
    Case("demo", None, "float32", "default", 20, quality=QUALITY),
    Case("demo", None, "float32", "default", 20, MAIN, compile=True, quality=QUALITY),
    Case("sam2.1-large", "4/16", "bfloat16", "default", 3, MAIN, objects=4),
    Case("sam2.1-tiny", "6/25", "bfloat16", "default", 5, MAIN, compile=True),
    Case("sam2.1-large", "4/16", "bfloat16", "default", 5, MAIN, compile=True),
    Case("sam2.1-tiny", "6/25", "float32", "default", 5),
    Case("sam2.1-tiny", "6/25", "float32", "default", 5, MAIN, compile=True),
    Case("sam2.1-base-plus", "6/25", "float32", "default", 5, METHODS),
    Case("sam2.1-base-plus", "6/25", "float32", "default", 3, MAIN, compile=True),
    Case("sam2.1-large", "4/16", "float32", "default", 5, METHODS),
    Case("sam2.1-large", "4/16", "float32", "default", 3, MAIN, compile=True),
]


def measure(case: Case) -> None:
    """Measure a case in this process and write its file."""
    weights = "random" if case.quality is None else None
    choice = ModelChoice(case.model, weights=weights, device="cpu", dtype=case.dtype)
    request = Request(
        rows=case.rows,
        frames=case.frames,
        objects=case.objects,
        windows=case.windows,
        compile=case.compile,
        quality=case.quality,
    )
    result = run_bench(request, choice)
    write_text(FOLDER / f"{case.name}.json", result.to_json())
    print(f"{case.name}\n{table(result)}\n", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = {case.name: case for case in CASES}
    parser.add_argument("cases", nargs="*", choices=[[], *known], metavar="CASE")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print("\n".join(known))
        return
    FOLDER.mkdir(exist_ok=True)
    if options.here:
        measure(known[options.cases[0]])
        return
    for name in options.cases or [n for n in known if not (FOLDER / f"{n}.json").exists()]:
        allocator = ALLOCATORS[known[name].allocator]
        environment = {**os.environ, "TQDM_DISABLE": "1", **allocator}
        quiet = ["-W", "ignore:cannot import name '_C' from 'sam2'"]
        command = [sys.executable, *quiet, __file__, name, "--here"]
        subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
