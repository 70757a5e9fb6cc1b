"""Quality of every row of the benchmark: loss of J&F against dense tracking, with its interval.

    python benchmarks/techniques.py DAVIS --clips calibrate.txt     write benchmarks/techniques.json
    python benchmarks/techniques.py DAVIS --clips dev.txt --out dev.json
    python benchmarks/techniques.py --table                         put the figures into docs/techniques.md

Clips are done one after the other and kept, so an interrupted run goes on. Which techniques are recommended is
chosen on training clips; clips of a benchmark are for the figures at the end alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsity.evaluation.bench import ladder
from sparsity.evaluation.evaluate import evaluate, table
from sparsity.evaluation.jobs import Spread
from sparsity.evaluation.results import Run, load_result
from sparsity.options import ModelChoice
from sparsity.runs import write_text

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "techniques.md"
SPEED = {
    "demo-float32-default": "demo, float32",
    "tiny-float32-default": "Tiny, float32 (AVX2)",
    "base-plus-float32-default": "Base+, float32 (AVX2)",
    "large-float32-default": "Large, float32 (AVX2)",
    "large-float32-avx512": "Large, float32 (AVX-512)",
    "large-bfloat16-default": "Large, bfloat16 (AMX)",
    "base-plus-bfloat16-default": "Base+, bfloat16 (AMX)",
}
"""Results with a time for each row, and what they are called."""
BEGIN, END = "<!-- table: benchmarks/techniques.py -->", "<!-- end of table -->"


def losses(run: Run) -> str:
    """Loss and its interval, as a cell."""
    if run.quality is None or run.quality.loss is None:
        return ""
    ends = run.quality.intervals.get("loss")
    between = "" if ends is None else f" [{ends[0]:.1f}, {ends[1]:.1f}]"
    return f"{run.quality.loss:+.1f}{between}"


def page_table(quality: Path) -> str:
    """Rows of the techniques: loss on the clips of a result, and speed where it was measured."""
    result = load_result(quality)
    measured = {}
    for case, head in SPEED.items():
        path = HERE / "speed" / f"{case}.json"
        if path.exists():
            measured[head] = {run.name: run for run in load_result(path).runs}
    lines = [
        "| row | loss, J&F points | windows | keys read | " + " | ".join(measured) + " |",
        "|---|---|---|---|" + "---|" * len(measured),
    ]
    for run in result.runs[1:]:
        cells = []
        for runs in measured.values():
            ratio = None if run.name not in runs else runs[run.name].ratio
            cells.append("" if ratio is None else f"{ratio.median:.2f}x")
        lines.append(
            f"| {run.name} | {losses(run)} | {run.windows_kept or 0:.0%} | {run.keys_kept or 0:.0%} | "
            + " | ".join(cells)
            + " |"
        )
    clips = len(result.data.clips)
    lines += ["", f"{result.model.name}, {clips} clips of {result.data.root}, "
              f"{result.environment.dtype}: loss against dense, with 95 % interval over clips. Rows with `+` are on top of "
              "`paper`. Times are with random weights and fixed windows but for the demo model, and on CPUs."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", nargs="?", type=Path, help="folder of annotated clips")
    parser.add_argument("--clips", type=Path, help="file with the names of the clips to take")
    parser.add_argument("--out", type=Path, default=HERE / "techniques.json")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="rewrite the table of the page")
    options = parser.parse_args()
    if options.root is not None:
        result = evaluate(
            options.root,
            ModelChoice("demo", dtype=options.dtype, device="cpu"),
            options.out,
            profiles=[row.profile for row in ladder() if row.profile is not None],
            listed=options.clips,
            spread=Spread(options.jobs),
        )
        print(table(result))
    if options.table:
        text = PAGE.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        filled = f"{BEGIN}\n{page_table(options.out)}\n{END}"
        write_text(PAGE, (before + filled + after).rstrip())


if __name__ == "__main__":
    main()
