"""``efficient-sam2 bench``: stock sam2 against the accelerated predictor on this machine, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probes.errors import InputError
from probes.files import write_text
from sparsity.commands.options import Force, with_model

if TYPE_CHECKING:
    from sparsity.work.model import ModelChoice


@with_model
def bench(
    out: Annotated[Path, typer.Option("--out", help="JSON file for the result")],
    *,
    choice: ModelChoice,
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
        int, typer.Option("--objects", min=1, max=32, help="objects of the made clip")
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
        typer.Option("--compile", help="add a row of sam2 as it compiles itself; takes minutes"),
    ] = False,
    end_to_end: Annotated[
        bool,
        typer.Option("--end-to-end", help="instead: file in, masks out, at 720p, 1080p and 4K"),
    ] = False,
    size: Annotated[
        list[str] | None, typer.Option("--size", help="of --end-to-end: 720p, 1080p or 4K; repeat")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="HTML page with the rows and figures")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    force: Force = False,
) -> None:
    """Time stock sam2, exact rewrites, SWR, SMR and profiles side by side, one frame of each in turn."""
    from figures.benchmark import write_bench_report
    from sparsity.evaluation.benchmark import Request, run_bench, table
    from sparsity.evaluation.end_to_end import SIZES, run_end_to_end
    from sparsity.evaluation.end_to_end import table as end_to_end_table
    from sparsity.work.store import check_different, check_new_file

    files = tuple(filter(None, (out, report)))
    check_different(*files)
    for file in files:
        check_new_file(file, force)
        if not file.parent.is_dir():
            raise InputError(f"{file} given; {file.parent} is no folder; make it first")
    if end_to_end:
        given = {
            "--rows": rows,
            "--objects": objects > 1,
            "--video": video,
            "--prompt": prompt,
            "--windows": windows,
            "--routes": routes,
            "--quality": quality,
            "--compile": compiled,
            "--report": report,
        }
        if other := next((option for option, value in given.items() if value), None):
            raise InputError(
                f"--end-to-end and {other} given; expected profiles and sizes; drop one of the two"
            )
        measured = run_end_to_end(
            profile or ("recommended",), choice, frames=frames, sizes=size or tuple(SIZES), force=force
        )  # fmt: skip
        write_text(out, measured.to_json())
        print(measured.to_json() if as_json else end_to_end_table(measured))
        return
    if size:
        raise InputError(
            f"--size {size[0]} given without --end-to-end; expected both or none; add it, or drop --size"
        )
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
