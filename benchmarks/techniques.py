"""Quality of every row of the benchmark: loss of J&F against dense tracking, with its interval.

    python benchmarks/techniques.py DAVIS --clips calibrate.txt     write benchmarks/techniques.json
    python benchmarks/techniques.py DAVIS-dev --out benchmarks/techniques-dev.json
    python benchmarks/techniques.py DAVIS … --rows recommended      measure this row alone, and put it among the others
    python benchmarks/techniques.py DAVIS-dev --out benchmarks/techniques-dev-bfloat16.json --dtype bfloat16 --rows exact
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
from sparsity.evaluation.results import Result, Run, load_result
from sparsity.options import ModelChoice
from sparsity.runs import write_text

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "techniques.md"
QUALITY = {
    "techniques.json": "training clips",
    "techniques-dev.json": "DAVIS-dev",
    "techniques-dev-bfloat16.json": "DAVIS-dev, bfloat16",
}
"""Results with a loss for each row, or for some but the first, and what their clips are called."""
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


def page_table() -> str:
    """Rows of the techniques: loss on the clips of each result, and speed where it was measured."""
    chosen, *others = [
        (head, load_result(HERE / name)) for name, head in QUALITY.items() if (HERE / name).exists()
    ]
    times = {
        head: {run.name: run for run in load_result(HERE / "speed" / f"{case}.json").runs}
        for case, head in SPEED.items()
        if (HERE / "speed" / f"{case}.json").exists()
    }
    heads = [f"loss, {head}" for head, _ in (chosen, *others)]
    heads = ["row", *heads, "windows", "keys read", *times]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for run in chosen[1].runs[1:]:
        cells = [run.name, losses(run)]
        for _, result in others:
            found = [other for other in result.runs if other.name == run.name]
            cells += [losses(other) for other in found] or [""]
        cells += [f"{run.windows_kept or 0:.0%}", f"{run.keys_kept or 0:.0%}"]
        for runs in times.values():
            ratio = None if run.name not in runs else runs[run.name].ratio
            cells.append("" if ratio is None else f"{ratio.median:.2f}x")
        lines.append(f"| {' | '.join(cells)} |")
    sizes = [f"{len(r.data.clips)} clips of {r.data.root}" for _, r in (chosen, *others)]
    lines += [
        "",
        f"Loss: points of J&F of the {chosen[1].model.name} model against its dense run, "
        f"{chosen[1].environment.dtype} where not said, {' and '.join(dict.fromkeys(sizes))}, with 95 % interval over "
        "clips. Shares of windows and keys are those of the training clips, on which techniques are chosen. Rows with `+` are "
        "on top of `paper`. Times are with random weights and fixed windows but for the demo model, "
        "and on CPUs.",
    ]
    return "\n".join(lines)


def joined(stored: Result, added: Result) -> Result:
    """Put rows among those of a stored result, which must be of the same model, clips and dense run."""
    dense, profiles = stored.runs[0], "profiles"
    settings = stored.data.settings | {profiles: added.data.settings[profiles]}
    same = stored.model == added.model and dense.quality == added.runs[0].quality
    if not same or stored.data.model_copy(update={"settings": settings}) != added.data:
        raise SystemExit("the stored result is of another model, other clips or another dense run")
    found = {run.name: run for run in (*stored.runs, *added.runs)}
    order = [dense.name, *(row.name for row in ladder() if row.name in found)]
    settings[profiles] = [found[name].profile for name in order[1:]]
    data = stored.data.model_copy(update={"settings": settings})
    return stored.model_copy(update={"data": data, "runs": [found[name] for name in order]})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", nargs="?", type=Path, help="folder of annotated clips")
    parser.add_argument("--clips", type=Path, help="file with the names of the clips to take")
    parser.add_argument("--out", type=Path, default=HERE / "techniques.json")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--jobs", type=int, default=0)
    names = [row.name for row in ladder() if row.profile is not None]
    parser.add_argument(
        "--rows", nargs="+", default=[], choices=names, help="rows to add to the result"
    )
    parser.add_argument("--table", action="store_true", help="rewrite the table of the page")
    options = parser.parse_args()
    if options.root is not None:
        profiles = [row.profile for row in ladder() if row.profile is not None]
        chosen = [p for p in profiles if not options.rows or p.name in options.rows]
        added = options.out.exists() and bool(options.rows)
        beside = options.out.with_name(f"{options.out.stem}-rows.json")
        result = evaluate(
            options.root,
            ModelChoice("demo", dtype=options.dtype, device="cpu"),
            beside if added else options.out,
            profiles=chosen,
            listed=options.clips,
            spread=Spread(options.jobs),
        )
        if added:
            result = joined(load_result(options.out), result)
            write_text(options.out, result.to_json())
            beside.unlink()
        print(table(result))
    if options.table:
        text = PAGE.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        filled = f"{BEGIN}\n{page_table()}\n{END}"
        write_text(PAGE, (before + filled + after).rstrip())


if __name__ == "__main__":
    main()
