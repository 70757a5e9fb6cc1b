"""``efficient-sam2 probe``: record what a model attends to, on a video or on a data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from probes.header import QUERY_ROWS
from sparsity.options import (
    Box,
    Checkpoint,
    ClipList,
    Config,
    Device,
    DType,
    ImageSize,
    Jobs,
    MaxFrames,
    Model,
    ModelChoice,
    Points,
    PromptFrame,
    PromptMask,
    Scheduler,
    Seed,
    Video,
    Weights,
)


def probe(
    video: Video,
    out: Annotated[Path, typer.Option("--out", help="folder of the recording, NAME.recording")],
    prompt: PromptMask = None,
    points: Points = None,
    box: Box = None,
    prompt_frame: PromptFrame = 0,
    sites: Annotated[
        list[str] | None,
        typer.Option("--sites", help='sites whose statistics are kept, such as "memory.*"; repeat'),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option("--rows", help="sites whose raw attention is stored for the explorer; repeat"),
    ] = None,
    query_rows: Annotated[
        int, typer.Option("--query-rows", min=1, help="query rows measured, at least")
    ] = QUERY_ROWS,
    clips: ClipList = None,
    max_frames: MaxFrames = None,
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
) -> None:
    """Record attention, masks and memory recall of a dense run, for figures and calibration.

    Of many clips it goes on with those that the recording does not hold yet when it is started again.
    """
    from probes.recording import record
    from probes.video import open_video
    from sparsity.acceleration.build import shared_stock
    from sparsity.evaluation.jobs import Spread
    from sparsity.given_clips import clips_of
    from sparsity.many_clips import record_clips
    from sparsity.prompt import Prompt

    choice = ModelChoice(model, config, checkpoint, weights, seed, image_size, device, dtype)
    spread = Spread(jobs, scheduler, gpu=choice.may_take_a_gpu)
    given = Prompt(prompt, tuple(points or ()), box, prompt_frame)
    many = clips_of(video, given, clips, spread)
    predictor = shared_stock(choice)
    settings: dict[str, Any] = {
        "statistics": sites or "*",
        "rows": rows or (),
        "query_rows": query_rows,
        "autocast": choice.number_format(predictor.device.type) == "bfloat16",
        "model": str(config or model) + (" with random weights" if weights else ""),
    }
    if many is not None:
        recording = record_clips(
            many, choice, out, listed=clips, spread=spread, max_frames=max_frames, **settings
        )
    else:
        source, place = open_video(video), Path(video).resolve()
        name = place.name if place.is_dir() else place.stem
        # files may be named in other encodings
        readable = os.fsencode(name).decode(errors="replace")
        recording = record(
            predictor, source, given.check(source).give_to, out=out, name=readable,
            max_frames=max_frames, progress=True, **settings,
        )  # fmt: skip
    frames = sum(info.frames for info in recording.header.clips)
    size = sum(path.stat().st_size for path in recording.path.iterdir()) / 2**20
    print(f"{recording.path}: {len(recording.names)} clips, {frames} frames, {size:.1f} MiB")
