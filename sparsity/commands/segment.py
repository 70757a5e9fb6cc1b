"""``efficient-sam2 segment``: a video and a prompt in; masks, an overlay and a report out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsity.commands.options import (
    Box,
    ClipList,
    Force,
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

BROKEN = 3
"""Status of a run whose profile's promise was found broken."""


@with_model
def segment(
    video: Video,
    out: Annotated[
        Path, typer.Option("--out", help="folder for masks, overlay and report; one a clip")
    ],
    prompt: PromptMask = None,
    points: Points = None,
    box: Box = None,
    prompt_frame: PromptFrame = None,
    *,
    choice: ModelChoice,
    profile: Annotated[
        str, typer.Option("--profile", help="dense, exact, paper, recommended, demo or a JSON file")
    ] = "paper",
    max_frames: MaxFrames = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="of the results: png, layers, coco-rle or boxes-csv; default: png, and layers for SA-V's archive",
        ),
    ] = None,
    overlay: Annotated[bool, typer.Option(help="draw overlay.mp4")] = True,
    clips: ClipList = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", min=0, help="videos at once: in worker processes, or on one GPU in this one"
        ),
    ] = 0,
    scheduler: Scheduler = None,
    submission: Annotated[
        str | None,
        typer.Option(
            "--submission",
            help="of a data set, write the archive for a server: davis, youtube-vos, mose, sa-v or lvos",
        ),
    ] = None,
    failure: Annotated[
        Path | None,
        typer.Option(
            "--failure",
            help="fitted model that says which masks are likely wrong; the demo model has one",
        ),
    ] = None,
    strict: Strict = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="over the profile's promise: 2 % of frames are tracked densely too; status 3 where it is broken",
        ),
    ] = False,
    watch_share: Annotated[
        float | None, typer.Option("--watch-share", help="watch another share of frames, up to 1")
    ] = None,
    force: Force = False,
) -> None:
    """Track objects through a video, or each video of a data set: indexed PNG masks, an overlay and a report."""
    from sparsity.acceleration.watch import SHARE
    from sparsity.profile import load_profile
    from sparsity.work.record import SegmentClip, segment_clips
    from sparsity.work.segment import RunOptions, run_job
    from sparsity.work.spread import Spread
    from sparsity.work.submission import plan_submission

    share = SHARE if watch and watch_share is None else watch_share
    spread = Spread(jobs, scheduler, gpu=choice.may_take_a_gpu)
    given = prompt_of(prompt, points, box, prompt_frame)
    many = clips_of(video, given, clips, spread, strict)
    archive = None
    if submission is not None:
        archive = plan_submission(submission, many, names_in(clips), max_frames, kind)
    if kind is None:
        kind = "layers" if submission == "sa-v" else "png"
    options = RunOptions(
        choice, load_profile(profile), max_frames, kind, overlay, force, strict, share, failure
    )
    if many is not None:
        work = SegmentClip(many, out, options)
        summary = segment_clips(work, names_in(clips), spread)
        print(summary.text())
        if archive is not None:
            print(archive.text(archive.write(out)))
        for name, found in summary.results.items():
            if found["watched"]:
                print(f"promise  {name}: {found['watched']}")
        _tell_broken([found["promise"] for found in summary.results.values()])
        return
    result = run_job(options.job(video, given, out), options)
    print(result.summary())
    _tell_broken([result.promise])


def _tell_broken(promises: list[str]) -> None:
    """End with a status of its own where a promise was found broken."""
    if any(promise.startswith("broken") for promise in promises):
        raise typer.Exit(BROKEN)
