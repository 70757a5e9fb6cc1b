"""Quality of every row of the benchmark: loss of J&F against dense tracking, with its interval.

    python benchmarks/techniques.py DAVIS --clips calibrate.txt     write benchmarks/techniques.json
    python benchmarks/techniques.py DAVIS-dev --out benchmarks/techniques-dev.json --rows exact paper recommended …
    python benchmarks/techniques.py DAVIS … --rows recommended      measure this row alone, and put it among the others
    python benchmarks/techniques.py DAVIS-dev --out benchmarks/techniques-dev-bfloat16.json --dtype bfloat16 --rows exact …
    python benchmarks/techniques.py DAVIS … --policies exact paper recommended --out benchmarks/policies-train.json

``benchmarks/write_techniques.py`` puts them into docs/techniques.md. Clips are done one after the other and kept, so
an interrupted run goes on. Which techniques are recommended is chosen on training clips; clips of a benchmark are for the
figures at the end alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from made_clips import BASES, POLICIES, profile_of

from probes.files import write_text
from sparsity.clips.layouts import listed_names
from sparsity.evaluation.evaluate import evaluate
from sparsity.evaluation.interleaved import ladder
from sparsity.evaluation.results import Result, load_result
from sparsity.evaluation.tables import table
from sparsity.work.model import ModelChoice
from sparsity.work.spread import Spread

HERE = Path(__file__).parent


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
    parser.add_argument("root", type=Path, help="folder of annotated clips")
    parser.add_argument("--clips", type=Path, help="file with the names of the clips to take")
    parser.add_argument("--out", type=Path, default=HERE / "techniques.json")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--jobs", type=int, default=0)
    names = [row.name for row in ladder() if row.profile is not None]
    parser.add_argument(
        "--rows", nargs="+", default=[], choices=names, help="rows to add to the result"
    )
    parser.add_argument(
        "--policies",
        nargs="+",
        choices=BASES,
        help="every memory policy on top of these profiles, in place of the rows",
    )
    options = parser.parse_args()
    profiles = [row.profile for row in ladder() if row.profile is not None]
    if options.policies:
        profiles = [profile_of(base, row) for base in options.policies for row in POLICIES]
    chosen = [p for p in profiles if not options.rows or p.name in options.rows]
    added = options.out.exists() and bool(options.rows)
    beside = options.out.with_name(f"{options.out.stem}-rows.json")
    result = evaluate(
        options.root,
        ModelChoice("demo", dtype=options.dtype, device="cpu"),
        beside if added else options.out,
        profiles=chosen,
        only=None if options.clips is None else listed_names(options.clips),
        spread=Spread(options.jobs),
    )
    if added:
        result = joined(load_result(options.out), result)
        write_text(options.out, result.to_json())
        beside.unlink()
    print(table(result))


if __name__ == "__main__":
    main()
