"""Which model a command works with, built once a process, the same one in every process that takes a clip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor

from probes.errors import InputError
from probes.models import build_predictor, find_device, fingerprint
from sparsity.acceleration.build import accelerate
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.profile import Profile
from sparsity.work.spread import Work

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
    lora: Path | None = None
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
        device = self.check()
        return build_predictor(
            None if self.config else self.model,
            config=self.config,
            checkpoint=self.checkpoint,
            lora=self.lora,
            weights="random" if self.weights else None,
            seed=self.seed,
            image_size=self.image_size,
            device=device,
        )

    def check(self) -> torch.device | None:
        """Look at the options that need no model; return the device, None where `probes.models.build_predictor` takes one.

        Raises
        ------
        InputError
            One can't be used.
        """
        if self.dtype not in DTYPES:
            raise InputError(
                f"dtype {self.dtype!r} given; expected {', '.join(DTYPES)}; choose one of them"
            )
        if self.weights not in (None, "random"):
            raise InputError(
                f'weights {self.weights!r} given; expected "random"; name a file with --checkpoint'
            )
        return find_device(self.device) if self.device else None

    @property
    def name(self) -> str:
        """The model's name, or its configuration file."""
        return str(self.config or self.model)

    @property
    def trained(self) -> bool:
        """False for random weights, which say nothing about quality."""
        return self.weights != "random"

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
        enabled = self.number_format(device_type) == "bfloat16"
        return torch.autocast(device_type, dtype=torch.bfloat16, enabled=enabled)


@lru_cache(maxsize=4)  # a command has one; tests switch among some
def shared_stock(choice: ModelChoice) -> SAM2VideoPredictor:
    """Build the stock predictor of a choice once a process."""
    return choice.build()


@lru_cache(maxsize=4)
def shared_predictor(choice: ModelChoice) -> EfficientSAM2VideoPredictor:
    """Accelerate the model of a choice once a process; `use` it with the profile that is wanted."""
    return accelerate(shared_stock(choice), "dense")


def predictor_for(
    choice: ModelChoice, profiles: Iterable[Profile], force: bool
) -> EfficientSAM2VideoPredictor:
    """`shared_predictor` of a choice, of which it is known before any work that it can have these profiles.

    Raises
    ------
    InputError
        One doesn't fit the model.
    """
    predictor = shared_predictor(choice)
    for profile in profiles:
        with predictor.use(profile, force=force):
            pass
    return predictor


def stamp_of(predictor: SAM2VideoPredictor, choice: ModelChoice) -> dict[str, Any]:
    """What decides the figures of a clip beside the clip: those of another model or device are not gone on with."""
    return {
        "model": fingerprint(predictor),
        "size": predictor.image_size,
        "device": predictor.device.type,
        "dtype": choice.number_format(predictor.device.type),
        "made_by": version("efficient-sam2"),
    }


@contextmanager
def predictor_under(choice: ModelChoice, profile: Profile | None) -> Iterator[SAM2VideoPredictor]:
    """Give the model of a choice while it follows a profile; the stock predictor where there is none.

    Raises
    ------
    InputError
        The profile was made for another model.
    """
    if profile is None:
        yield shared_stock(choice)
        return
    predictor = shared_predictor(choice)
    with predictor.use(profile):
        yield predictor


@dataclass(frozen=True)
class SameModel:
    """Work that is done by one model alone, in whatever process takes a clip.

    Attributes
    ----------
    work
        Takes the shared model of `choice` in its process.
    model
        Fingerprint of the model that the command began with.
    """

    work: Work
    choice: ModelChoice
    model: str

    def __call__(self, clip: str) -> Any:
        _hold(self.choice, self.model)
        return self.work(clip)


@lru_cache(maxsize=1)  # weights are hashed once a command; after another one they are again
def _hold(choice: ModelChoice, model: str) -> None:
    """Build this process's model anew where its file was replaced since.

    Raises
    ------
    InputError
        It is another one all the same.
    """
    if fingerprint(shared_stock(choice)) == model:
        return
    shared_predictor.cache_clear()
    shared_stock.cache_clear()
    found = fingerprint(shared_stock(choice))
    if found != model:
        raise InputError(
            f"the model of a worker is {found[:19]}…, that of the command {model[:19]}…; expected the same weights on "
            "every machine; copy the checkpoint there, or run the command again if it was replaced"
        )
