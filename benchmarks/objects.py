"""What further objects cost: stock sam2 and ours with one and with several objects, random weights.

    python benchmarks/objects.py                                      Large, 1 and 4 objects, float32
    python benchmarks/objects.py --model sam2.1-tiny --size 512       something smaller
    python benchmarks/objects.py --routes MASKS                       windows of a mask track, all objects united

Both counts are measured in one process, each interleaved with stock; the result is
``benchmarks/objects/MODEL-DTYPE.json``. A further object costs the difference of the two medians, shared out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from probes.files import write_text
from sparsity.evaluation.benchmark import Request, run_bench, table
from sparsity.evaluation.results import Result
from sparsity.work.model import ModelChoice

FOLDER = Path(__file__).with_name("objects")
ROWS = ("stock", "exact", "paper", "recommended")


def per_further_object(one: Result, several: Result) -> dict[str, float]:
    """Milliseconds that each object after the first one adds to a frame, by row."""
    first = {run.name: run.ms_per_frame for run in one.runs}
    further: dict[str, float] = {}
    for run in several.runs:
        alone, together = first[run.name], run.ms_per_frame
        if alone is None or together is None or run.objects is None:
            continue
        further[run.name] = round((together.median - alone.median) / (run.objects - 1), 1)
    return further


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="sam2.1-large")
    parser.add_argument("--size", type=int, help="side of the model's input in pixels")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--frames", type=int, default=3, help="that count")
    parser.add_argument("--windows", help="KEPT/TOTAL; default: a quarter")
    parser.add_argument("--routes", type=Path, help="folder of masks, one a frame")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    choice = ModelChoice(
        options.model, weights="random", image_size=options.size, device="cpu", dtype=options.dtype
    )
    found = []
    for objects in (1, options.objects):
        request = Request(
            rows=ROWS,
            frames=options.frames,
            objects=objects,
            windows=options.windows,
            routes=options.routes,
        )
        found.append(run_bench(request, choice))
        print(f"{objects} objects\n{table(found[-1])}\n", flush=True)
    further = per_further_object(*found)
    print("\n".join(f"a further object, {name}: {ms:.0f} ms" for name, ms in further.items()))
    out = options.out or FOLDER / f"{options.model.removeprefix('sam2.1-')}-{options.dtype}.json"
    out.parent.mkdir(exist_ok=True)
    document = {
        "ms_per_further_object": further,
        "results": [json.loads(result.to_json()) for result in found],
    }
    write_text(out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
