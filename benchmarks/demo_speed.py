"""Measure the demo model's speed and quality on the same rows.

    python benchmarks/demo_speed.py --davis FOLDER --list clips.txt [--jobs N] [--compile]

First every row's profile is evaluated on annotated clips of DAVIS layout (``benchmarks/speed/demo-DTYPE-quality.json``;
interrupted, it goes on with the next clip; a result of other weights is made anew), then all rows are timed
(``benchmarks/speed/demo-DTYPE-default.json``, less than five minutes on two cores). Both in the same number
format. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from probes.errors import InputError
from sparsity.evaluation.bench import ladder
from sparsity.evaluation.bench_request import Request, run_bench
from sparsity.evaluation.evaluate import evaluate
from sparsity.evaluation.jobs import Spread
from sparsity.evaluation.rows import table
from sparsity.options import DTYPES, ModelChoice
from sparsity.runs import write_text

FOLDER = Path(__file__).with_name("speed")
FRAMES = 20


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--davis", type=Path, required=True, help="folder of DAVIS layout")
    parser.add_argument("--list", type=Path, help="file with the clips to take, one a line")
    parser.add_argument("--dtype", default="float32", choices=DTYPES[1:])
    parser.add_argument("--jobs", type=int, default=0, help="worker processes for the quality")
    parser.add_argument("--compile", action="store_true", help="time the compiled rows too")
    options = parser.parse_args()
    choice = ModelChoice(device="cpu", dtype=options.dtype)
    quality = FOLDER / f"demo-{options.dtype}-quality.json"
    profiles = [variant.profile for variant in ladder() if variant.profile is not None]

    def evaluated(force: bool) -> None:
        evaluate(
            options.davis, choice, quality, profiles=profiles, listed=options.list,
            spread=Spread(options.jobs), force=force,
        )  # fmt: skip

    try:
        evaluated(force=False)
    except InputError:
        if not quality.exists():
            raise
        evaluated(force=True)
    request = Request(frames=FRAMES, quality=quality, compile=options.compile)
    result = run_bench(request, choice)
    write_text(FOLDER / f"demo-{options.dtype}-default.json", result.to_json())
    print(table(result))


if __name__ == "__main__":
    main()
