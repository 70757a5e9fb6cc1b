"""``efficient-sam2 evaluate``: J, F and their loss against the dense run, on annotated clips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsity.commands.options import ClipList, Force, Jobs, Scheduler, names_in, with_model

if TYPE_CHECKING:
    from sparsity.work.model import ModelChoice


@with_model
def evaluate(
    root: Annotated[
        Path, typer.Argument(help="data set in the layout of DAVIS, YouTube-VOS, MOSE or SA-V")
    ],
    out: Annotated[Path, typer.Option("--out", help="JSON file for the result")],
    clips: ClipList = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", help="folder with NAME.json for each clip, in place of its first masks"
        ),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", help="built-in name or JSON file, beside the dense run; repeat"),
    ] = None,
    *,
    choice: ModelChoice,
    jobs: Jobs = 0,
    scheduler: Scheduler = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    force: Force = False,
) -> None:
    """Track annotated clips densely and with profiles; J, F and the loss against dense, with intervals."""
    from sparsity.evaluation.evaluate import evaluate as run
    from sparsity.evaluation.tables import table
    from sparsity.work.spread import Spread

    spread = Spread(jobs, scheduler, gpu=choice.may_take_a_gpu)
    result = run(
        root,
        choice,
        out,
        prompts=prompts,
        profiles=profile or (),
        only=names_in(clips),
        spread=spread,
        force=force,
    )
    print(result.to_json() if as_json else table(result))
