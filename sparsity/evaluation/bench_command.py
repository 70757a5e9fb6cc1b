"""``efficient-sam2 bench``: stock sam2 against the accelerated predictor on this machine, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probes.errors import InputError
from sparsity.options import (
    Checkpoint,
    Config,
    Device,
    DType,
    Force,
    ImageSize,
    Model,
    ModelChoice,
    Seed,
    Weights,
)


def bench(
    out: Annotated[Path, typer.Option("--out", help="JSON file for the result")],
    model: Model = "demo",
    config: Config = None,
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    seed: Seed = 0,
    image_size: ImageSize = None,
    device: Device = None,
    dtype: DType = "auto",
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", help="a row more: built-in name or JSON file; repeat"),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option("--rows", help="measure only this row; repeat; stock must be one of them"),
    ] = None,
    frames: Annotated[
        int, typer.Option("--frames", min=1, help="frames that count, after a full bank")
    ] = 10,
    objects: Annotated[
        int, typer.Option("--objects", min=1, max=8, help="objects of the made clip")
    ] = 1,
    video: Annotated[
        str | None,
        typer.Option("--video", help="folder of frames or video file; default: a made clip"),
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option("--prompt", help="mask of the video's objects on its first frame")
    ] = None,
    windows: Annotated[
        str | None, typer.Option("--windows", help="route by fixed windows, such as 4/16")
    ] = None,
    routes: Annotated[
        Path | None, typer.Option("--routes", help="route by a folder of masks, one a frame")
    ] = None,
    quality: Annotated[
        Path | None, typer.Option("--quality", help="result of evaluate, for the rows' quality")
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="add the compiled rows, stock's and ours; takes minutes"),
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="HTML page with the rows and figures")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    force: Force = False,
) -> None:
    """Time stock sam2, exact rewrites, SWR, SMR and profiles side by side, one frame of each in turn."""
    from figures.benchmark import write_bench_report
    from sparsity.evaluation.bench_request import Request, run_bench
    from sparsity.evaluation.rows import table
    from sparsity.runs import check_different, check_new_file, write_text

    files = tuple(filter(None, (out, report)))
    check_different(*files)
    for file in files:
        check_new_file(file, force)
        if not file.parent.is_dir():
            raise InputError(f"{file} given; {file.parent} is no folder; make it first")
    choice = ModelChoice(model, config, checkpoint, weights, seed, image_size, device, dtype)
    request = Request(
        tuple(profile or ()),
        tuple(rows or ()),
        frames,
        objects,
        video,
        prompt,
        windows,
        routes,
        quality,
        compiled,
    )
    result = run_bench(request, choice, force=force)
    write_text(out, result.to_json())
    if report is not None:
        write_bench_report(result, report)
    print(result.to_json() if as_json else table(result))
