"""Write the tables of docs/techniques.md from benchmarks/speed/, benchmarks/gpu/ and the results of benchmarks/techniques.py
and benchmarks/made_clips.py.

    python benchmarks/write_techniques.py

What stands between the marks is replaced.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from made_clips import BASES, OBJECTS, ROWS, pairs_of, profile_of
from write_calibration import replaced

from probes.estimates import over_clips
from probes.files import write_text
from sparsity.evaluation.interleaved import ladder
from sparsity.evaluation.results import Result, Run, load_result

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "techniques.md"

SPEED = {
    "large-float32-default": "Large, 4/16, float32 | AVX2",
    "base-plus-float32-default": "Base+, 6/25, float32 | AVX2",
    "tiny-float32-default": "Tiny, 6/25, float32 | AVX2",
    "demo-float32-default": "demo, its own windows, float32 | AVX2",
    "large-float32-avx512": "Large, 4/16, float32 | AVX-512",
    "base-plus-float32-avx512": "Base+, 6/25, float32 | AVX-512",
    "tiny-float32-avx512": "Tiny, 6/25, float32 | AVX-512",
    "demo-float32-avx512": "demo, its own windows, float32 | AVX-512",
    "large-bfloat16-default": "Large, 4/16, bfloat16 | AMX",
    "base-plus-bfloat16-default": "Base+, 6/25, bfloat16 | AMX",
    "small-bfloat16-default": "Small, 6/25, bfloat16 | AMX",
    "tiny-bfloat16-default": "Tiny, 6/25, bfloat16 | AMX",
    "large-bfloat16-no-mmap": "Large, bfloat16, freed memory kept | AMX",
    "base-plus-bfloat16-no-mmap": "Base+, bfloat16, freed memory kept | AMX",
    "tiny-bfloat16-no-mmap": "Tiny, bfloat16, freed memory kept | AMX",
}
"""Results of benchmarks/speed.py by what was timed, and the CPU's units."""
PROFILES = ("exact", "SWR + SMR", "paper", "recommended")
"""Rows of the ladder that users choose among, and both methods inside stock code."""

COMPILED = {
    "large-float32-default-compiled": "Large, 4/16, float32",
    "base-plus-float32-default-compiled": "Base+, 6/25, float32",
    "tiny-float32-default-compiled": "Tiny, 6/25, float32",
    "demo-float32-default-compiled": "demo, its own windows, float32",
    "tiny-bfloat16-default-compiled": "Tiny, 6/25, bfloat16 with AMX",
    "large-bfloat16-default-compiled": "Large, 4/16, bfloat16 with AMX",
}
EAGER_AND_COMPILED = ("stock", "stock compiled", "exact", "paper")
"""Rows of these results; ours was compiled too when they were measured, which it can't be any more."""

GPU = {
    "large-1-object": "Large, 4/16, one object",
    "large-4-objects": "Large, 4/16, four objects",
    "base-plus-4-objects": "Base+, 6/25, four objects",
    "large-1-object-compiled": "Large, 4/16, one object, an hour later",
}
GPU_ROWS = ("exact without graphs", "paper without graphs", "exact", "paper", "recommended")

TIMED = {
    "demo-float32-default": "demo, float32",
    "tiny-float32-default": "Tiny, float32",
    "large-bfloat16-default": "Large, bfloat16",
}
"""Results that hold a time for every technique."""


def speed() -> str:
    """Times of a frame by model, format and CPU, with the profiles' ratios."""
    lines = [
        "| | CPU | stock sam2 | `exact` | both methods, stock code around them | `paper` | `recommended` |",
        "|---" * 7 + "|",
    ]
    for case, what in SPEED.items():
        runs = _runs(case)
        cells = [what, f"{runs['stock'].ms_per_frame.median / 1000:.2f} s"]
        cells += [_ratio(runs.get(name)) for name in PROFILES]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compiled() -> str:
    """Seconds of a frame of sam2, as it is and compiled, and of ours."""
    names = EAGER_AND_COMPILED
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for case, what in COMPILED.items():
        if not _file(case).exists():
            continue
        runs = _runs(case)
        seconds = [f"{runs[name].ms_per_frame.median / 1000:.2f} s" for name in names]
        lines.append(f"| {what} | {' | '.join(seconds)} |")
    return "\n".join(lines)


def gpu() -> str:
    """Milliseconds of a frame on a GPU, with the rows' ratios."""
    lines = [f"| | stock sam2 | {' | '.join(GPU_ROWS)} |", "|---" * (len(GPU_ROWS) + 2) + "|"]
    for case, what in GPU.items():
        document = json.loads((HERE / "gpu" / f"{case}.json").read_text(encoding="utf-8"))
        rows = {row["name"]: row for row in document["rows"]}
        cells = [what, f"{rows['stock']['ms_per_frame']['median']:.1f} ms"]
        for name in GPU_ROWS:
            row = rows.get(name)
            ms = row and f"{row['ms_per_frame']['median']:.1f} ms"
            cells.append(f"{ms} ({row['ratio']['median']:.1f}x)" if row else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def techniques() -> str:
    """Loss, agreement, shares and speed of every row of the ladder."""
    training, dev = (
        load_result(HERE / f"{name}.json") for name in ("techniques", "techniques-dev")
    )
    measured = {run.name: run for run in dev.runs}
    times = {head: _runs(case) for case, head in TIMED.items()}
    heads = [
        "row",
        "loss, training clips",
        "loss, DAVIS-dev",
        "agreement there",
        "windows",
        "keys",
        *times,
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    rows = {variant.name for variant in ladder()}
    for run in (run for run in training.runs[1:] if run.name in rows):
        cells = [run.name, loss(run), "", ""]
        if (there := measured.get(run.name)) is not None:
            quality = there.quality
            assert quality is not None and quality.agreement is not None, "rows were compared"
            cells[2:] = [loss(there), f"{quality.agreement:.0f} %"]
        cells += [f"{run.windows_kept or 0:.0%}", f"{run.keys_kept or 0:.0%}"]
        cells += [_ratio(runs.get(run.name)) for runs in times.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _conditions(training, dev)])


def policies() -> str:
    """J&F that memory policies gain against the same profile as it is, on made and on real clips."""
    made, kinds = _made("policies"), OBJECTS["policies"]
    sets = {"training clips": "policies-train", "DAVIS-dev": "policies-dev"}
    real = [
        {run.name: run.quality.clips for run in load_result(_there(name)).runs if run.quality}
        for name in sets.values()
    ]
    heads = ["on top of", "policy", *map(_words, kinds), "swaps", "found again", *sets]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for base in BASES:
        for row in ROWS["policies"]:
            as_is = row == ROWS["policies"][0]
            cells, every = [f"`{base}`", f"`{row}`" + ", J&F" * as_is], []
            for kind in kinds:
                pairs = pairs_of(made["rows"], "policies", kind, base, row)
                every += [mine for mine, _ in pairs]
                cells.append(_gain([(a["jf"], b["jf"]) for a, b in pairs], as_is))
            if not every:
                continue
            cells.append(f"{sum(one['swaps'] for one in every):.0f}")
            back = sum(one["back"] for one in every)
            cells.append(f"{sum(one['found'] for one in every):.0f} of {back:.0f}")
            for runs in real:
                mine = runs.get(profile_of(base, row).name, {})
                both = [(mine[clip].j_and_f, runs[base][clip].j_and_f) for clip in mine]
                cells.append(_gain(both, as_is))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cadence() -> str:
    """J&F that features of every second frame lose against the same profile as it is, and the ratio of CPU seconds."""
    made, kinds = _made("cadence"), OBJECTS["cadence"]
    heads = ["on top of", *(f"{_words(kind)}: J&F lost | CPU" for kind in kinds)]
    lines = [f"| {' | '.join(heads)} |", "|---" * (2 * len(kinds) + 1) + "|"]
    for base in BASES:
        cells = [f"`{base}`"]
        for kind in kinds:
            pairs = pairs_of(made["rows"], "cadence", kind, base, ROWS["cadence"][1])
            cells.append(_gain([(b["jf"], a["jf"]) for a, b in pairs]))
            cpu = sum(b["cpu"] for _, b in pairs) / sum(a["cpu"] for a, _ in pairs)
            cells.append(f"{cpu:.2f}x")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _made(what: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_there(what).read_text(encoding="utf-8"))
    return found


def _there(what: str) -> Path:
    return HERE / f"{what}.json"


def _words(kind: str) -> str:
    return kind.replace("_", " ").replace("distractors", "look-alikes")


def _gain(pairs: list[tuple[float, float]], as_is: bool = False) -> str:
    """Mean of the first, or mean difference of pairs with its interval, as a cell; blank where nothing was measured."""
    if not pairs:
        return ""
    if as_is:
        return f"{sum(one for one, _ in pairs) / len(pairs):.1f}"
    gain = over_clips([one - other for one, other in pairs])
    if math.isnan(gain.low):
        return f"{gain.mean:+.1f} ({len(pairs)} clip{'s' * (len(pairs) > 1)})"
    return f"{gain.mean:+.1f} [{gain.low:.1f}, {gain.high:.1f}]"


def loss(run: Run) -> str:
    """Loss and its interval, as a cell."""
    assert run.quality is not None and run.quality.loss is not None, "rows were compared"
    low, high = run.quality.intervals["loss"]
    return f"{run.quality.loss:+.1f} [{low:.1f}, {high:.1f}]"


def _conditions(training: Result, dev: Result) -> str:
    sizes = " and ".join(f"{len(r.data.clips)} clips of {r.data.root}" for r in (training, dev))
    return (
        f"Loss: points of J&F of the {training.model.name} model against its dense run, {training.environment.dtype}, "
        f"{sizes}, with 95 % interval over clips; below zero the row scored above the dense run. Agreement: mean J with "
        "the dense run's masks. Windows computed and keys read are shares on the training clips. Rows with `+` are on top "
        "of `paper`; where DAVIS-dev is blank it wasn't measured. Times: random weights and fixed windows but for the demo model."
    )


def _file(case: str) -> Path:
    return HERE / "speed" / f"{case}.json"


def _runs(case: str) -> dict[str, Run]:
    return {run.name: run for run in load_result(_file(case)).runs}


def _ratio(run: Run | None) -> str:
    return "" if run is None or run.ratio is None else f"{run.ratio.median:.2f}x"


def main() -> None:
    """Fill the page."""
    text = PAGE.read_text(encoding="utf-8")
    for table in (speed, compiled, gpu, techniques, policies, cadence):
        text = replaced(text, table.__name__, table())
    write_text(PAGE, text.rstrip("\n"))


if __name__ == "__main__":
    main()
