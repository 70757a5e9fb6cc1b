"""Write the tables of docs/calibration-evidence.md from benchmarks/adapters.json and benchmarks/search.json.

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
    write_text(PAGE, text.rstrip("\n"))


def replaced(text: str, name: str, table: str) -> str:
    """Put a table between the marks of its name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    found, count = re.subn(
        f"{begin}.*?{end}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.S
    )
    assert count == 1, f"the page has no place for {name}"
    return found


def search(report: dict[str, Any]) -> str:
    """What calibration took beside the cheapest of the grid, as a table."""
    head = "| frames | accepted | chosen | cost | cheapest of the grid | cost | ratio |"
    lines = [head, "|---" * 7 + "|"]
    for frames, row in ((frames, row) for frames, of in report.items() for row in of["asked"]):
        cells = (
            frames,
            f"{row['max_drift']:g}",
            row["chosen"],
            f"{row['cost']:.3f}",
            row["cheapest"] or "none holds",
            f"{row['cheapest_cost']:.3f}",
            f"{row['ratio']:.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def adapters(report: dict[str, Any]) -> str:
    """The adapters as a table."""
    dev = "davis" in report["rows"]["identity"]
    head = "| adapter | stage-3 error | less identity's | error of F_M | J&F | loss | M MAC | ms |"
    lines = [head + (" J&F, DAVIS-dev | loss |" if dev else ""), "|---" * (10 if dev else 8) + "|"]
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
        lines.append("| " + " | ".join(cells) + " |")
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
    return "\n".join([*lines, "", said])


def sentence(text: str) -> str:
    """A note as a sentence."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def spread(values: list[float], digits: int) -> str:
    """A mean with its interval."""
    mean, low, high = (f"{v:.{digits}f}" for v in values)
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
