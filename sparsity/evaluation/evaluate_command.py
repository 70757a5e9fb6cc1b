"""``efficient-sam2 evaluate``: J, F and their loss against the dense run, on annotated clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsity.options import (
    Checkpoint,
    ClipList,
    Config,
    Device,
    DType,
    Force,
    ImageSize,
    Jobs,
    Model,
    ModelChoice,
    Scheduler,
    Seed,
    Weights,
)


def evaluate(
    root: Annotated[
        Path, typer.Argument(help="data set in the layout of DAVIS, YouTube-VOS, MOSE or SA-V")
    ],
    out: Annotated[Path, typer.Option("--out", help="JSON file for the result")],
    clips: ClipList = None,
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", help="built-in name or JSON file, beside the dense run; repeat"),
    ] = None,
    model: Model = "demo",
    config: Config = None,
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    seed: Seed = 0,
    image_size: ImageSize = None,
    device: Device = None,
    dtype: DType = "auto",
    jobs: Jobs = 0,
    scheduler: Scheduler = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    force: Force = False,
) -> None:
    """Track annotated clips densely and with profiles; J, F and the loss against dense, with intervals."""
    from sparsity.evaluation.evaluate import evaluate as run
    from sparsity.evaluation.evaluate import table
    from sparsity.evaluation.jobs import Spread

    choice = ModelChoice(model, config, checkpoint, weights, seed, image_size, device, dtype)
    spread = Spread(jobs, scheduler, gpu=choice.may_take_a_gpu)
    result = run(
        root, choice, out, profiles=profile or (), listed=clips, spread=spread, force=force
    )
    print(result.to_json() if as_json else table(result))
