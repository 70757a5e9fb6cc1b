"""``efficient-sam2 probe``: record what a model attends to, on a video or on a data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probes.records import QUERY_ROWS, ROW_SIDE
from sparsity.commands.options import (
    Box,
    ClipList,
    Jobs,
    MaxFrames,
    Points,
    PromptFrame,
    PromptMask,
    Scheduler,
    Strict,
    Video,
    clips_of,
    names_in,
    prompt_of,
    with_model,
)

if TYPE_CHECKING:
    from sparsity.work.model import ModelChoice


@with_model
def probe(
    video: Video,
    out: Annotated[Path, typer.Option("--out", help="folder of the recording, NAME.recording")],
    prompt: PromptMask = None,
    points: Points = None,
    box: Box = None,
    prompt_frame: PromptFrame = None,
    sites: Annotated[
        list[str] | None,
        typer.Option("--sites", help='sites whose statistics are kept, such as "memory.*"; repeat'),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option("--rows", help="sites whose raw attention is stored for the explorer; repeat"),
    ] = None,
    row_side: Annotated[
        int,
        typer.Option("--row-side", min=1, help="queries per side whose raw attention is stored"),
    ] = ROW_SIDE,
    row_heads: Annotated[
        bool, typer.Option("--row-heads", help="store raw attention head by head, not their mean")
    ] = False,
    query_rows: Annotated[
        int, typer.Option("--query-rows", min=1, help="query rows measured, at least")
    ] = QUERY_ROWS,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", help="record an accelerated run, not the stock one; as segment's"
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option("--table", help="all numbers as one table too, FILE.parquet (extra: tables)"),
    ] = None,
    clips: ClipList = None,
    max_frames: MaxFrames = None,
    *,
    choice: ModelChoice,
    jobs: Jobs = 0,
    scheduler: Scheduler = None,
    strict: Strict = False,
) -> None:
    """Record attention, masks and memory recall of a run, for figures and (of the stock predictor) calibration.

    Of many clips it goes on with those that the recording does not hold yet when it is started again.
    """
    from probes.recording import record
    from probes.tables import check_tables, write_table
    from probes.video import open_video
    from sparsity.profile import load_profile
    from sparsity.work.model import predictor_under, shared_stock
    from sparsity.work.record import record_clips
    from sparsity.work.spread import Spread

    if table is not None:
        check_tables(table)
    spread = Spread(jobs, scheduler, gpu=choice.may_take_a_gpu)
    given = prompt_of(prompt, points, box, prompt_frame)
    many = clips_of(video, given, clips, spread, strict)
    followed = None if profile is None else load_profile(profile)
    settings: dict[str, Any] = {
        "statistics": sites or "*",
        "rows": rows or (),
        "row_side": row_side,
        "row_heads": row_heads,
        "query_rows": query_rows,
        "autocast": choice.number_format(shared_stock(choice).device.type) == "bfloat16",
        "model": choice.name + ("" if choice.trained else " with random weights"),
    }
    if many is not None:
        recording = record_clips(
            many,
            choice,
            out,
            only=names_in(clips),
            spread=spread,
            max_frames=max_frames,
            profile=followed,
            **settings,
        )
    else:
        source, place = open_video(video, strict), Path(video).resolve()
        name = place.name if place.is_dir() else place.stem
        # files may be named in other encodings
        readable = os.fsencode(name).decode(errors="replace")
        with predictor_under(choice, followed) as predictor:
            recording = record(
                predictor, source, given.check(source, strict), out=out, name=readable,
                max_frames=max_frames, progress=True, **settings,
            )  # fmt: skip
    frames = sum(info.frames for info in recording.header.clips)
    size = sum(path.stat().st_size for path in recording.path.iterdir()) / 2**20
    if table is not None:
        write_table(recording.to_frame(), table)
    print(f"{recording.path}: {len(recording.names)} clips, {frames} frames, {size:.1f} MiB")
