"""The command ``efficient-sam2``: one function a subcommand; the work is done in the packages.

Bad input ends with one line on stderr and status 2, an interrupt with status 130.
"""

from __future__ import annotations

import os
import sys
import warnings
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from figures.explorer.command import explore
from probes.errors import InputError
from sparsity.calibration.command import calibrate
from sparsity.evaluation.bench_command import bench
from sparsity.evaluation.evaluate_command import evaluate
from sparsity.options import (
    Box,
    Checkpoint,
    ClipList,
    Config,
    Device,
    DType,
    Force,
    ImageSize,
    Jobs,
    MaxFrames,
    Model,
    Points,
    PromptFrame,
    PromptMask,
    Scheduler,
    Seed,
    Video,
    Weights,
)
from sparsity.probe_command import probe

UsageError: Any = typer.BadParameter.__base__
"""What typer raises for a command line it can't parse; newer versions carry a click of their own."""

INTERRUPTED = 130

app = typer.Typer(
    name="efficient-sam2",
    help="SAM 2 video tracking with sparse attention: observe, calibrate, accelerate. Independent of the "
    "paper's authors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command(
    epilog="Example: efficient-sam2 segment clip.mp4 --box 40,60,200,220 --profile exact --out result"
)
def segment(
    video: Video,
    out: Annotated[
        Path, typer.Option("--out", help="folder for masks, overlay and report; one a clip")
    ],
    prompt: PromptMask = None,
    points: Points = None,
    box: Box = None,
    prompt_frame: PromptFrame = 0,
    model: Model = "demo",
    config: Config = None,
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    seed: Seed = 0,
    image_size: ImageSize = None,
    device: Device = None,
    dtype: DType = "auto",
    profile: Annotated[
        str,
        typer.Option("--profile", help="dense, exact, paper, recommended, demo or a JSON file"),
    ] = "paper",
    max_frames: MaxFrames = None,
    clips: ClipList = None,
    jobs: Jobs = 0,
    scheduler: Scheduler = None,
    force: Force = False,
) -> None:
    """Track objects through a video, or each video of a data set: indexed PNG masks, an overlay and a report."""
    from sparsity.evaluation.jobs import Spread
    from sparsity.given_clips import clips_of
    from sparsity.many_clips import SegmentClip, segment_clips
    from sparsity.profiles import load_profile
    from sparsity.segment import ModelChoice, Prompt, run_segment

    choice = ModelChoice(model, config, checkpoint, weights, seed, image_size, device, dtype)
    spread = Spread(jobs, scheduler, gpu=choice.may_take_a_gpu)
    given = Prompt(prompt, tuple(points or ()), box, prompt_frame)
    many = clips_of(video, given, clips, spread)
    if many is not None:
        work = SegmentClip(many, choice, out, load_profile(profile), max_frames, force)
        print(segment_clips(work, clips, spread).text())
        return
    result = run_segment(
        video, given, choice, out, profile=profile, max_frames=max_frames, force=force
    )
    print(result.summary())


app.command(
    "calibrate",
    epilog="Example: efficient-sam2 calibrate --made 30 --max-drop 1.0 --out mine.json --report mine.html",
)(calibrate)
app.command(
    "explore",
    epilog="Example: efficient-sam2 explore clip.recording --video clip.mp4 --out page.html",
)(explore)
app.command(
    "probe",
    epilog="Example: efficient-sam2 probe clip.mp4 --box 40,60,200,220 --out clip.recording",
)(probe)
app.command("bench", epilog="Example: efficient-sam2 bench --model demo --out bench.json")(bench)


@app.command(epilog="Example: efficient-sam2 fetch sam2.1-tiny")
def fetch(
    name: Annotated[str, typer.Argument(help="sam2.1-tiny, -small, -base-plus or -large")],
) -> None:
    """Fetch an official checkpoint once, verified; later commands find it by the model's name."""
    from probes.checkpoints import fetch_checkpoint

    print(fetch_checkpoint(name, progress=True))


@app.command(epilog="Example: efficient-sam2 demo --out demo-output")
def demo(
    out: Annotated[
        Path, typer.Option("--out", help="folder for the page, the overlay and the report")
    ] = Path("demo-output"),
    clips: Annotated[int, typer.Option("--clips", min=5, help="made clips to calibrate on")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Probe, calibrate and track made clips; a table and a page of figures."""
    from sparsity.demo_run import run_demo

    found = run_demo(out, clips)
    print(found.json() if as_json else found.text())


app.command(
    epilog="Example: efficient-sam2 evaluate DAVIS --model demo --profile paper --out result.json"
)(evaluate)

profile_app = typer.Typer(help="Look at profiles.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(profile_app, name="profile")


@profile_app.command("show", epilog="Example: efficient-sam2 profile show paper")
def profile_show(
    profile: Annotated[str, typer.Argument(help="a built-in profile's name or a JSON file")],
) -> None:
    """Print a profile as JSON, every setting spelled out."""
    from sparsity.profiles import load_profile

    print(load_profile(profile).to_json())


@profile_app.command("list", epilog="Example: efficient-sam2 profile list")
def profile_list() -> None:
    """Name the built-in profiles, and what each promises."""
    from sparsity.profiles import BUILTIN, CALIBRATED, load_profile

    for name in (*BUILTIN, *CALIBRATED):
        loaded = load_profile(name)
        promise = loaded.promise.text() if loaded.promise else "promises nothing"
        print(
            f"{name:11} for {'any model' if loaded.model is None else loaded.model[:19] + '…'}: {promise}"
        )


@profile_app.command("check", epilog="Example: efficient-sam2 profile check mine.json")
def profile_check(
    profile: Annotated[str, typer.Argument(help="a built-in profile's name or a JSON file")],
) -> None:
    """Say whether a profile is valid, for which model it was made, and what it promises."""
    from sparsity.profiles import load_profile

    loaded = load_profile(profile)
    print(f"{loaded.name}: valid, for {loaded.model or 'any model'}")
    print(loaded.promise.text() if loaded.promise else "promises nothing: nobody calibrated it")


def run(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    # sam2 draws a progress bar of its own and warns on every frame where its CUDA extension is absent
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", message="cannot import name '_C' from 'sam2'")
    try:
        status: Any = app(arguments, prog_name="efficient-sam2", standalone_mode=False)
    except InputError as error:
        return _refuse(str(error))
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return 2
        return _refuse(f"{error.format_message().rstrip('.')}; see efficient-sam2 --help")
    except OSError as error:
        return _refuse(f"{error}; expected a file or folder that can be used; choose another")
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    if status == INTERRUPTED:  # some versions of typer return it, others raise
        print("interrupted; the same command goes on with what is not finished", file=sys.stderr)
    return status if isinstance(status, int) else 0


def _refuse(message: str) -> int:
    print(f"efficient-sam2: {' '.join(message.split())}", file=sys.stderr)
    return 2


def main() -> None:
    """Entry point of the console script."""
    if isinstance(sys.stdout, TextIOWrapper):  # stderr already spells out what its encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run())


if __name__ == "__main__":
    main()
