"""Write the tables of docs/calibration-evidence.md from benchmarks/shortcuts.json and benchmarks/router.json.

    python benchmarks/write_calibration.py

What stands between the marks is replaced; a part whose figures are not there is left as it is.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sparsity.runs import write_text

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "calibration-evidence.md"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, table in (("shortcuts", shortcuts), ("router", router)):
        path = HERE / f"{name}.json"
        if path.is_file():
            text = replaced(text, name, table(json.loads(path.read_text(encoding="utf-8"))))
    write_text(PAGE, text.rstrip("\n"))


def replaced(text: str, name: str, table: str) -> str:
    """Put a table between the marks of its name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    found, count = re.subn(
        f"{begin}.*?{end}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.S
    )
    assert count == 1, f"the page has no place for {name}"
    return found


def shortcuts(report: dict[str, Any]) -> str:
    """The five shortcuts as a table."""
    dev = "davis" in report["rows"]["identity"]
    head = "| shortcut | stage-3 error | less identity's | error of F_M | J&F | loss | M MAC | ms |"
    lines = [head + (" J&F, DAVIS-dev | loss |" if dev else ""), "|---" * (10 if dev else 8) + "|"]
    for kind, row in report["rows"].items():
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
        f"({report['rows']['identity']['windows'][0]:.0%} of the windows computed); in brackets 95 % over clips. "
        f"The bottleneck took {training['updates']} updates of {training['batch']} frames, its error fell from "
        f"{training['loss'][0]:.4f} in the first tenth of them to {training['loss'][-1]:.4f} in the last. "
        f"{sentence(report['note'])}"
    )
    return "\n".join([*lines, "", said])


def router(report: dict[str, Any]) -> str:
    """What is kept at equal recall, by set of clips."""
    lines = [
        "| held-out clips | recall | paper's rule | its masks alone | router | fewer | who knew the next frame |",
        "|---" * 7 + "|",
    ]
    for name, found in report["sets"].items():
        alone = found["paper_without_saliency"]
        cells = [
            f"{name} ({len(found['clips'])})",
            f"{found['paper']['recall']:.4f}",
            f"{found['paper']['kept']:.3f}",
            f"{alone['kept']:.3f} (recall {alone['recall']:.4f})",
            f"{found['router']['kept']:.3f}",
            spread([100 * found["saved"], *(100 * v for v in found["saved_interval"])], 1) + " %",
            f"{found['oracle']['kept']:.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{sentence(report['note'])}"])


def sentence(text: str) -> str:
    """A note as a sentence."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def spread(values: list[float], digits: int) -> str:
    """A mean with its interval."""
    mean, low, high = (f"{v:.{digits}f}" for v in values)
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
