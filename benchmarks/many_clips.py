"""Show that many clips on a Dask cluster end with every clip once, and with the numbers of one process.

    python benchmarks/many_clips.py --clips 200 --out benchmarks/many_clips.json

Makes clips in DAVIS layout, starts a Dask scheduler and two worker processes, and evaluates the demo model
through it. The evaluation is interrupted (SIGINT) once a quarter is done and started again; once a half is
done, one worker process is killed (SIGKILL). Then the same clips are evaluated in one process, with the
same number of threads, and the two results are compared figure by figure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from probes.files import write_text
from sparsity.clips.made import CLIP_NAMES, make_clip, write_davis
from sparsity.evaluation.evaluate import evaluate
from sparsity.evaluation.meters import environment
from sparsity.evaluation.results import load_result
from sparsity.work.model import ModelChoice
from sparsity.work.spread import Spread

FRAMES, SIZE = 3, (96, 160)


@contextmanager
def cluster() -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """Start a scheduler and two workers as a user would; yields its address and the workers."""
    python = [sys.executable, "-m"]
    scheduler = subprocess.Popen(
        [*python, "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert scheduler.stderr is not None
    address = next(
        line.split("Scheduler at:")[1].strip() for line in scheduler.stderr if "at:" in line
    )
    options = ["--nthreads", "1", "--no-dashboard", "--no-nanny"]
    workers = [
        subprocess.Popen(
            [*python, "distributed.cli.dask_worker", address, *options],
            stderr=subprocess.DEVNULL, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        yield address, workers
    finally:
        for process in (*workers, scheduler):
            process.terminate()
            process.wait(20)


def start(root: Path, out: Path, address: str) -> subprocess.Popen[str]:
    """Start an evaluation through the scheduler in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--root",
        str(root),
        "--out",
        str(out),
        "--scheduler",
        address,
    ]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait while the process runs."""
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.1)


def figures(path: Path) -> dict[str, object]:
    """Return every figure of a result but those that say where it was made."""
    return {run.name: run.model_dump(mode="json") for run in load_result(path).runs}


def prove(count: int, folder: Path) -> dict[str, object]:
    """Do what the module says in `folder`; return what was seen."""
    root, out, alone = folder / "clips", folder / "cluster.json", folder / "alone.json"
    kinds = [CLIP_NAMES[index % len(CLIP_NAMES)] for index in range(count)]
    clips = {f"{i:03d}-{kind}": make_clip(kind, i, FRAMES, SIZE) for i, kind in enumerate(kinds)}
    write_davis(root, clips)
    parts = out.with_name(f"{out.name}.clips")

    def done() -> int:
        return len(list(parts.glob("*.json"))) if parts.is_dir() else 0

    began = time.perf_counter()
    with cluster() as (address, workers):
        first = start(root, out, address)
        wait_until(lambda: done() >= count // 4, first)
        first.send_signal(signal.SIGINT)
        first.wait(60)
        interrupted = done()
        second = start(root, out, address)
        wait_until(lambda: done() >= count // 2, second)
        killed = done()
        workers[0].send_signal(signal.SIGKILL)
        _, said = second.communicate()
    assert second.returncode == 0, said
    seconds = time.perf_counter() - began
    evaluate(root, ModelChoice(device="cpu"), alone, profiles=["paper"], spread=Spread(threads=1))
    return {
        "clips": count,
        "frames_a_clip": FRAMES,
        "done_when_interrupted": interrupted,
        "done_when_a_worker_was_killed": killed,
        "results": len(load_result(out).data.clips),
        "clips_with_quality": len(load_result(out).runs[0].quality.clips),  # type: ignore[union-attr]
        "equal_to_one_process": figures(out) == figures(alone),
        "seconds_on_two_workers": round(seconds, 1),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scheduler", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    if options.scheduler:
        # a program that a shell started in the background would ignore the interrupt
        signal.signal(signal.SIGINT, signal.default_int_handler)
        spread = Spread(scheduler=options.scheduler, threads=1)
        choice = ModelChoice(device="cpu")
        evaluate(options.root, choice, options.out, profiles=["paper"], spread=spread)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seen = prove(options.clips, Path(folder))
    seen["environment"] = environment(torch.device("cpu"), "float32")
    write_text(options.out, json.dumps(seen, indent=1))
    print(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()
