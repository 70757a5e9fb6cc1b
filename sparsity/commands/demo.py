"""``make demo`` and ``efficient-sam2 demo``: the whole story on made clips, with a table and a page of figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[
        Path, typer.Option("--out", help="folder for the page, the overlay and the report")
    ] = Path("demo-output"),
    clips: Annotated[int, typer.Option("--clips", min=5, help="made clips to calibrate on")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Probe, calibrate and track made clips; a table and a page of figures."""
    from sparsity.commands.story import run_demo

    found = run_demo(out, clips)
    print(found.json() if as_json else found.text())
