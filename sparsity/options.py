"""What several subcommands ask for alike: which model, on which device, in which number format."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probes.errors import InputError

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

Model = Annotated[
    str, typer.Option("--model", help="demo, sam2.1-tiny, -small, -base-plus or -large")
]
Config = Annotated[
    Path | None, typer.Option("--config", help="any sam2 configuration in yaml, instead of --model")
]
Checkpoint = Annotated[
    Path | None, typer.Option("--checkpoint", help="weights: sam2's .pt or .safetensors")
]
Weights = Annotated[
    str | None, typer.Option("--weights", help='"random": a model that only tracks by place')
]
Seed = Annotated[int, typer.Option("--seed", help="of random weights")]
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", help="side of the model's input in pixels; smaller is faster"),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, …")]
DType = Annotated[str, typer.Option("--dtype", help="float32 or bfloat16; auto: bfloat16 on a GPU")]
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
        help="mask picture, one object for each value above 0; for a folder of videos a folder of them",
    ),
]
Points = Annotated[
    list[str] | None,
    typer.Option("--points", help="x,y or x,y,label (1 object, 0 background); repeat"),
]
Box = Annotated[str | None, typer.Option("--box", help="x0,y0,x1,y1 in pixels")]
PromptFrame = Annotated[int, typer.Option("--prompt-frame", help="frame the prompt is on")]
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

DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class ModelChoice:
    """The model options of a command line; see `probes.models.build_predictor`.

    Attributes
    ----------
    dtype
        ``"float32"``, ``"bfloat16"`` (autocast), or ``"auto"``: bfloat16 on a GPU, float32 on a CPU.
    """

    model: str = "demo"
    config: Path | None = None
    checkpoint: Path | None = None
    weights: str | None = None
    seed: int = 0
    image_size: int | None = None
    device: str | None = None
    dtype: str = "auto"

    def build(self) -> SAM2VideoPredictor:
        """Build the stock predictor.

        Raises
        ------
        InputError
            An option can't be used.
        """
        import torch

        from probes.models import build_predictor

        if self.dtype not in DTYPES:
            raise InputError(
                f"dtype {self.dtype!r} given; expected {', '.join(DTYPES)}; choose one of them"
            )
        if self.weights not in (None, "random"):
            raise InputError(
                f'weights {self.weights!r} given; expected "random"; name a file with --checkpoint'
            )
        try:
            device = torch.device(self.device) if self.device else None
            torch.zeros(1, device=device).cpu()  # some hold no numbers, such as meta
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"device {self.device!r} can't be used ({str(error).splitlines()[0][:100]}); expected cpu "
                "or cuda; choose one that is here"
            ) from None
        return build_predictor(
            None if self.config else self.model,
            config=self.config,
            checkpoint=self.checkpoint,
            weights="random" if self.weights else None,
            seed=self.seed,
            image_size=self.image_size,
            device=device,
        )

    @property
    def may_take_a_gpu(self) -> bool:
        """Whether the model goes to a GPU where the process that builds it sees one."""
        return self.device is None or self.device.startswith("cuda")

    def number_format(self, device_type: str) -> str:
        """Return ``"float32"`` or ``"bfloat16"``: what is computed in on such a device."""
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if device_type == "cuda" else "float32"

    def autocast(self, device_type: str) -> AbstractContextManager[None]:
        """Return the context in which the model is to run."""
        import torch

        enabled = self.number_format(device_type) == "bfloat16"
        return torch.autocast(device_type, dtype=torch.bfloat16, enabled=enabled)
