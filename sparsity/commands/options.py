"""What several subcommands ask for alike: which model, and which clips with which prompts, worked on where."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probes.errors import InputError
from probes.files import check_folder_of

if TYPE_CHECKING:  # they need torch, which takes seconds to import
    from sparsity.clips.prompt import PromptOptions
    from sparsity.clips.sources import ClipSource
    from sparsity.work.spread import Spread

MODEL: dict[str, tuple[Any, Any]] = {
    "model": (
        Annotated[
            str,
            typer.Option(
                "--model",
                help="demo, sam2.1-tiny, -small, -base-plus or -large, a Hugging Face name that was fetched, or a folder",
            ),
        ],
        "demo",
    ),
    "config": (
        Annotated[
            Path | None,
            typer.Option("--config", help="any sam2 configuration in yaml, instead of --model"),
        ],
        None,
    ),
    "checkpoint": (
        Annotated[
            Path | None,
            typer.Option(
                "--checkpoint", help="weights: sam2's .pt or .safetensors, transformers' too"
            ),
        ],
        None,
    ),
    "lora": (
        Annotated[
            Path | None,
            typer.Option("--lora", help="folder of PEFT's adapter, merged into the weights"),
        ],
        None,
    ),
    "weights": (
        Annotated[
            str | None,
            typer.Option("--weights", help='"random": a model that only tracks by place'),
        ],
        None,
    ),
    "seed": (Annotated[int, typer.Option("--seed", help="of random weights")], 0),
    "image_size": (
        Annotated[
            int | None,
            typer.Option(
                "--image-size", help="side of the model's input in pixels; smaller is faster"
            ),
        ],
        None,
    ),
    "device": (Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, …")], None),
    "dtype": (
        Annotated[
            str, typer.Option("--dtype", help="float32 or bfloat16; auto: bfloat16 on a GPU")
        ],
        "auto",
    ),
}
"""Options that say which model, with their defaults: the fields of `sparsity.work.model.ModelChoice`."""


def with_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `MODEL` in place of its parameter `choice`, and a `ModelChoice` of them."""
    asked = inspect.signature(command, eval_str=True, locals={"ModelChoice": None})
    parameters: list[inspect.Parameter] = []
    for parameter in asked.parameters.values():
        if parameter.name != "choice":
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
            continue
        parameters += [
            parameter.replace(name=name, annotation=annotation, default=default)
            for name, (annotation, default) in MODEL.items()
        ]

    @wraps(command)
    def with_choice(**given: Any) -> None:
        from sparsity.work.model import ModelChoice

        choice = ModelChoice(**{name: given.pop(name) for name in MODEL})
        command(**given, choice=choice)

    said: Any = with_choice  # what typer reads
    said.__signature__ = asked.replace(parameters=parameters)
    said.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_choice


Force = Annotated[
    bool, typer.Option("--force", help="overwrite results; use a profile made for another model")
]

Video = Annotated[
    str,
    typer.Argument(
        help="video file, folder of frames, data set (DAVIS, MOSE, SA-V), or folder of videos"
    ),
]
PromptMask = Annotated[
    Path | None,
    typer.Option(
        "--prompt",
        "--prompts",
        help="prompts.json; a mask picture, one value an object; or a folder of these, named after frames or videos",
    ),
]
Points = Annotated[
    list[str] | None,
    typer.Option(
        "--points",
        help="x,y or x,y,label (1 object, 0 background) in pixels, of object 1 or with @object; repeat",
    ),
]
Box = Annotated[
    list[str] | None,
    typer.Option("--box", help="x0,y0,x1,y1 in pixels; repeat, one an object, or with @object"),
]
PromptFrame = Annotated[
    int | None,
    typer.Option(
        "--prompt-frame",
        help="frame the prompt is on; default: the one a mask is named after, or 0",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="refuse a video of which something would be left out")
]
MaxFrames = Annotated[
    int | None, typer.Option("--max-frames", min=1, help="stop after so many frames")
]
Jobs = Annotated[int, typer.Option("--jobs", min=0, help="local worker processes")]
Scheduler = Annotated[
    str | None, typer.Option("--scheduler", help="address of your Dask scheduler, tcp://…")
]
ClipList = Annotated[
    Path | None, typer.Option("--clips", help="file with the clips to take, one a line")
]


def names_in(listed: Path | None) -> list[str] | None:
    """Return the names of the clips that a file lists; None for all."""
    from sparsity.clips.layouts import listed_names

    return None if listed is None else listed_names(listed)


def check_out(out: Path, suffix: str) -> None:
    """Refuse a file that can't be written.

    Raises
    ------
    InputError
        It has another suffix, or there is no such folder.
    """
    if out.suffix.lower() != suffix:
        raise InputError(f"--out is {out}; expected a name that ends in {suffix}; change it")
    check_folder_of(out)


def prompt_of(
    file: Path | None, points: list[str] | None, box: list[str] | None, frame: int | None
) -> PromptOptions:
    """Return the prompt that a command line gives."""
    from sparsity.clips.prompt import PromptOptions

    return PromptOptions(file, tuple(points or ()), tuple(box or ()), frame)


def clips_of(
    video: str, prompt: PromptOptions, listed: Path | None, spread: Spread, strict: bool
) -> ClipSource | None:
    """Tell which clips a command line names; None for one video with a prompt.

    Parameters
    ----------
    video
        One video, a folder of videos, or an annotated data set.
    prompt
        Of many clips: a folder.
    strict
        Whether something left out is refused.

    Raises
    ------
    InputError
        It names one video without a prompt, or one with options for many, or many with options for one.
    """
    from sparsity.clips.layouts import has_layout
    from sparsity.clips.sources import ClipSource, holds_videos

    root = Path(video)
    if prompt.file is not None and prompt.file.is_dir() and holds_videos(root):
        _refuse_for_many(prompt)
        if has_layout(root):
            return ClipSource(dataset=root, prompts=prompt.file, strict=strict)
        return ClipSource(root, prompt.file, strict=strict)
    if not (prompt.file or prompt.points or prompt.boxes):
        if not root.is_dir() or not any(path.is_dir() for path in root.iterdir()):
            raise InputError(
                f"{video} given without a prompt; expected --prompt, --points or --box, or a data set with "
                "annotations; add a prompt"
            )
        _refuse_for_many(prompt)
        return ClipSource(dataset=root, strict=strict)
    for option, given in (
        ("--clips", listed),
        ("--jobs", spread.jobs),
        ("--scheduler", spread.scheduler),
    ):
        if given:
            raise InputError(
                f"{option} and a prompt for one video given; expected a data set, whose prompts are its "
                "annotations, or a folder of videos and one of masks; drop one"
            )
    return None


def _refuse_for_many(prompt: PromptOptions) -> None:
    """Refuse what says where the object is in one video."""
    for option, given in (
        ("--points", prompt.points),
        ("--box", prompt.boxes),
        ("--prompt-frame", prompt.frame),
    ):
        if given:
            raise InputError(
                f"{option} and many clips given; expected masks alone, one a clip, or a data set's annotations; "
                f"leave {option} out, or give one video"
            )
