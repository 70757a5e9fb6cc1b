"""Write the tables of docs/calibration-evidence.md from adapters.json, promise.json and search.json of benchmarks/.

    python benchmarks/write_calibration.py

What stands between the marks is replaced. Kinds of adapters that there are no more are left out.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

from probes.files import write_text
from sparsity.techniques.adapter import Adapter

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "calibration-evidence.md"


def main() -> None:
    """Fill the page."""
    text = PAGE.read_text(encoding="utf-8")
    report = json.loads((HERE / "adapters.json").read_text(encoding="utf-8"))
    text = replaced(text, "adapters", adapters(report))
    searched = json.loads((HERE / "search.json").read_text(encoding="utf-8"))
    text = replaced(text, "search", search(searched))
    promised = json.loads((HERE / "promise.json").read_text(encoding="utf-8"))
    for name, of in PROMISED.items():
        text = replaced(text, name, of(promised))
    write_text(PAGE, text.rstrip("\n"))


def replaced(text: str, name: str, table: str) -> str:
    """Put a table between the marks of its name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    found, count = re.subn(
        f"{begin}.*?{end}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.S
    )
    assert count == 1, f"the page has no place for {name}"
    return found


def covered(report: dict[str, Any]) -> str:
    """How often statements about one setting cover, the worst of the populations."""
    of = list(report["simulated"].values())
    counts = sorted(of[0], key=int)
    rows = []
    for kind in ("share over a loss", "share over the worst", "mean, approximate"):
        worst = (min(by[n]["statements"][kind] for by in of) for n in counts)
        rows.append([kind, *(f"{100 * share:.1f}" for share in worst)])
    return table(["videos", *counts], rows)


def false_promises(report: dict[str, Any]) -> str:
    """How often anything promised is false after the whole choice, the worst of the levels, and after several questions."""
    of = report["simulated"]
    counts = sorted(next(iter(of.values())), key=int)
    asked = [n for n in counts if "questions" in next(iter(of.values()))[n]]
    rows = []
    for name, by in of.items():
        worst = (max(c["false"] for c in by[n]["choices"] if c["starts"] == 1) for n in counts)
        row = [name, *(f"{100 * share:.1f}" for share in worst)]
        rows.append([*row, " / ".join(f"{100 * by[n]['questions']:.1f}" for n in asked)])
    heads = ["population", *(f"{n} clips" for n in counts), f"five questions, {' / '.join(asked)}"]
    return table(heads, rows)


def honesty(report: dict[str, Any]) -> str:
    """What the whole choice takes and states with all recorded clips."""
    heads = [
        "max-drop", "draws that choose nothing", "nothing stated is false, all draws", "own bound covers, all",
        "median loss of what is chosen",
    ]  # fmt: skip
    rows = []
    for study in report["studies"]:
        none, median = study["nothing_held"] / study["draws"], study["median_mean"]
        shares = (none, study["coverage"], study["coverage_of_own_bound"])
        cells = (f"{100 * share:.1f} %" for share in shares)
        rows.append([f"{study['max_drop']:g}", *cells, "" if median is None else f"{median:.2f}"])
    return table(heads, rows)


def starts(report: dict[str, Any]) -> str:
    """Mean cost of what is chosen of recorded clips, by the number of places where testing starts."""
    by = report["simulated"]["recorded"]
    found: dict[tuple[str, float], list[str]] = {}
    for n in sorted(by, key=int):
        for choice in by[n]["choices"]:
            found.setdefault((n, choice["max_drop"]), []).append(f"{choice['cost']:.3f}")
    rows = [[n, f"{level:g}", *costs] for (n, level), costs in found.items() if int(n) >= FEWEST]
    return table(["clips", "max-drop", "1 start", "2", "4"], rows)


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Lay out a table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


PROMISED = {"covered": covered, "false": false_promises, "honesty": honesty, "starts": starts}
"""Tables of benchmarks/promise.json by the name of their place."""

FEWEST = 10
"""Clips from which on the places of testing are compared."""


def search(report: dict[str, Any]) -> str:
    """What calibration took beside the cheapest of the grid, as a table."""
    heads = ["frames", "accepted", "chosen", "cost", "cheapest of the grid", "cost", "ratio"]
    rows = [
        [
            frames,
            f"{row['max_drift']:g}",
            row["chosen"],
            f"{row['cost']:.3f}",
            row["cheapest"] or "none holds",
            f"{row['cheapest_cost']:.3f}",
            f"{row['ratio']:.2f}",
        ]
        for frames, of in report.items()
        for row in of["asked"]
    ]
    return table(heads, rows)


def adapters(report: dict[str, Any]) -> str:
    """The adapters as a table."""
    dev = "davis" in report["rows"]["identity"]
    heads = [
        "adapter", "stage-3 error", "less identity's", "error of F_M", "J&F", "loss", "M MAC", "ms",
        *(["J&F, DAVIS-dev", "loss"] if dev else []),
    ]  # fmt: skip
    rows = []
    for kind in get_args(Adapter.model_fields["kind"].annotation):
        row = report["rows"][kind]
        cells = [
            kind,
            f"{row['stage3_error'][0]:.3f}",
            spread(row["stage3_less_identity"], 3) if kind != "identity" else "",
            spread(row["remembered_error"], 3),
            f"{row['j_and_f'][0]:.1f}",
            spread(row["loss"], 2),
            f"{row['macs'] / 1e6:.1f}",
            f"{row['ms']:.2f}",
        ]
        if dev:
            cells += [f"{row['davis']['j_and_f'][0]:.1f}", spread(row["davis"]["loss"], 2)]
        rows.append(cells)
    training = report["training"]
    said = (
        f"Fitted on {report['fitted_on']['frames']} routed frames of {len(report['fitted_on']['clips']) - 1} DAVIS "
        f"training clips and {report['fitted_on']['clips'][-1]}, judged on {len(report['judged_on'])} others "
        f"({report['rows']['identity']['windows'][0]:.0%} of the windows computed); in brackets 95 % over clips; those of "
        "losses are of a BCa bootstrap, which is narrower than it says on so few. "
        f"The bottleneck took {training['updates']} updates of {training['batch']} frames, its error fell from "
        f"{training['loss'][0]:.4f} in the first tenth of them to {training['loss'][-1]:.4f} in the last. "
        f"{sentence(report['note'])}"
    )
    return f"{table(heads, rows)}\n\n{said}"


def sentence(text: str) -> str:
    """A note as a sentence."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def spread(values: list[float], digits: int) -> str:
    """A mean with its interval."""
    mean, low, high = (f"{v:.{digits}f}" for v in values)
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
