"""``efficient-sam2 score``: masks or boxes that any tool wrote, against a data set's own; a row a tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsity.commands.options import ClipList, Jobs, Scheduler, names_in


def score(
    predictions: Annotated[
        list[Path],
        typer.Argument(
            help="folders of masks: CLIP/NAME.png, CLIP/masks/NAME.png or CLIP/OBJECT/NAME.png; or CLIP.csv"
        ),
    ],
    truth: Annotated[
        Path,
        typer.Argument(
            help="data set: DAVIS, YouTube-VOS, MOSE, LVOS, VOST or SA-V; with true boxes LaSOT, GOT-10k or OTB"
        ),
    ],
    clips: ClipList = None,
    rules: Annotated[
        str | None,
        typer.Option(
            "--rules",
            help="YouTube-VOS, MOSEv2, VOST or LVOS: its own figures too; default: what the data says",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for the scores")] = None,
    jobs: Jobs = 0,
    scheduler: Scheduler = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the scores as JSON")] = False,
    force: Annotated[bool, typer.Option("--force", help="overwrite scores")] = False,
) -> None:
    """Score folders of masks or boxes, whichever tool made them, by the same rules as evaluate."""
    from sparsity.evaluation.score import score as run
    from sparsity.evaluation.score import table
    from sparsity.work.spread import Spread

    scores = run(
        predictions,
        truth,
        only=names_in(clips),
        rules=rules,
        out=out,
        spread=Spread(jobs, scheduler),
        force=force,
    )
    print(scores.to_json() if as_json else table(scores))
