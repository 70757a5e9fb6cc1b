"""``efficient-sam2 probe``: record what a model attends to, on a video or on a data set."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from probes.errors import InputError
from sparsity.options import (
    Checkpoint,
    Config,
    Device,
    DType,
    ImageSize,
    Model,
    ModelChoice,
    Seed,
    Weights,
)


def probe(
    video: Annotated[
        str, typer.Argument(help="video file, folder of frames, or data set (DAVIS, MOSE, SA-V)")
    ],
    out: Annotated[Path, typer.Option("--out", help="folder of the recording, NAME.recording")],
    prompt: Annotated[
        Path | None,
        typer.Option("--prompt", help="mask picture; one object for each value above 0"),
    ] = None,
    points: Annotated[
        list[str] | None,
        typer.Option("--points", help="x,y or x,y,label (1 object, 0 background); repeat"),
    ] = None,
    box: Annotated[str | None, typer.Option("--box", help="x0,y0,x1,y1 in pixels")] = None,
    prompt_frame: Annotated[int, typer.Option("--prompt-frame", help="frame the prompt is on")] = 0,
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
    ] = 256,
    clips: Annotated[
        Path | None, typer.Option("--clips", help="file with the clips to take, one a line")
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", min=1, help="stop after so many frames")
    ] = None,
    model: Model = "demo",
    config: Config = None,
    checkpoint: Checkpoint = None,
    weights: Weights = None,
    seed: Seed = 0,
    image_size: ImageSize = None,
    device: Device = None,
    dtype: DType = "auto",
) -> None:
    """Record attention, masks and memory recall of a dense run, for figures and calibration.

    Started again, it goes on with the clips that the recording does not hold yet.
    """
    from probes.recording import record_clips

    choice = ModelChoice(model, config, checkpoint, weights, seed, image_size, device, dtype)
    given = _clips(video, prompt, points or [], box, prompt_frame, clips)
    predictor = choice.build()
    name = str(config or model) + (" with random weights" if weights else "")
    recording = record_clips(
        predictor, given, out=out, statistics=sites or "*", rows=rows or (), query_rows=query_rows,
        max_frames=max_frames, autocast=choice.number_format(predictor.device.type) == "bfloat16",
        model=name, progress=True,
    )  # fmt: skip
    frames = sum(info.frames for info in recording.header.clips)
    size = sum(path.stat().st_size for path in recording.path.iterdir()) / 2**20
    print(f"{recording.path}: {len(recording.names)} clips, {frames} frames, {size:.1f} MiB")


def _clips(
    video: str,
    prompt: Path | None,
    points: list[str],
    box: str | None,
    prompt_frame: int,
    listed: Path | None,
) -> list[tuple[str, Any, Any]]:
    """Name, video and prompt of each clip: the one that was prompted, or those of a data set."""
    from probes.video import open_video
    from sparsity.evaluation.layouts import clip_names, open_clip
    from sparsity.prompt import Prompt

    if prompt or points or box:
        if listed is not None:
            raise InputError(
                "a prompt and a list of clips given; a data set's prompts are its annotations; drop one"
            )
        source = open_video(video)
        checked = Prompt(prompt, tuple(points), box, prompt_frame).check(source)
        return [(Path(video).stem, source, checked.give_to)]
    root = Path(video)
    if not root.is_dir() or not any(path.is_dir() for path in root.iterdir()):
        raise InputError(
            f"{video} given without a prompt; expected --prompt, --points or --box, or a data set with "
            "annotations; add a prompt"
        )
    opened = [open_clip(root, name) for name in clip_names(root, listed)]
    return [(clip.name, clip.video, partial(_give, clip)) for clip in opened]


def _give(clip: Any, predictor: Any, state: dict[str, Any]) -> None:
    """Prompt a data set's objects, each on the first frame that shows it."""
    for frame in sorted(set(clip.starts.values())):
        for object_id, mask in clip.prompts(frame).items():
            predictor.add_new_mask(state, frame, object_id, mask)
