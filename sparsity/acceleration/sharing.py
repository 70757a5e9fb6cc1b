"""How an accelerated predictor is made from another one, copied, sent to another process, and given a profile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from sam2.sam2_video_predictor import SAM2VideoPredictor

from probes.errors import InputError
from probes.seam import Seam
from sparsity.acceleration.model.modules import share
from sparsity.acceleration.parts import Parts
from sparsity.acceleration.watch import check_share
from sparsity.profile import Profile, load_profile

STOCK_PROFILE = load_profile("dense")

REGISTERS = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
"""What a predictor holds by name: ours has its own, so that nothing is written through to the one it was made from."""

SHARED = ("memory_encoder", "sam_mask_decoder", "sam_prompt_encoder")
"""Modules of which the accelerated predictor has a form of its own."""


class Shared(SAM2VideoPredictor):
    """A predictor that shares the modules of another one, and has settings, weights of its own making and a profile.

    Attributes
    ----------
    client
        The class of predictors that this class accelerates.
    accelerated
        This class, for predictors of sam2's own class.
    stock
        The predictor that it was made from.
    parts
        What the steps of a frame need of the model.
    seam
        Where observers are told.
    """

    client: ClassVar[type[SAM2VideoPredictor]] = SAM2VideoPredictor
    accelerated: ClassVar[type[Shared]]
    stock: SAM2VideoPredictor
    parts: Parts
    seam: Seam

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "client" not in cls.__dict__:
            cls.accelerated = cls

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise InputError(
            f"{type(self).__name__} was called like sam2's class; expected a stock predictor to accelerate; write "
            "accelerate(predictor), or build_efficient_sam2_video_predictor(config, checkpoint)"
        )

    @classmethod
    def sharing(
        cls, source: SAM2VideoPredictor, profile: Profile, forced: bool, watch: float | None = None
    ) -> Any:
        """Make one that shares a predictor's modules and settings; `accelerate` checks what is given first."""
        client = source.client if isinstance(source, Shared) else type(source)
        shared = made_anew(cls.accelerated, client)
        own = {name: copy(source.__dict__[name]) for name in REGISTERS if name in source.__dict__}
        shared.__dict__ = {**source.__dict__, **own}
        shared.__dict__.setdefault("stock", source)
        shared.__dict__["parts"] = parts = Parts(shared, profile, forced, watch)
        shared.__dict__["seam"] = parts.seam
        for name in SHARED:
            shared._modules[name] = share(source._modules[name], parts)
        return shared

    def __copy__(self) -> Any:
        """Another one on the same weights, with the same profile and settings."""
        own = self.parts.own
        return self.sharing(self, own.profile, own.forced, own.watch)

    def __reduce__(self) -> Any:
        """How it is made in another process, also where it is of a client's class."""
        return made_anew, (self.accelerated, self.client), self.__dict__

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> Any:
        """Refuse what sam2 would answer with a stock predictor.

        Raises
        ------
        InputError
            Always; the message says what to write instead.
        """
        raise InputError(
            f"{cls.__name__}.from_pretrained({model_id!r}) was called, and sam2 would return a stock predictor; "
            f"expected one to accelerate; write accelerate(SAM2VideoPredictor.from_pretrained({model_id!r}))"
        )

    # ------------------------------------------------------------------ profile

    @property
    def profile(self) -> Profile:
        """The profile in use."""
        return self.parts.here.used.profile

    @contextmanager
    def use(
        self,
        profile: Profile | str | Path | None,
        *,
        force: bool = False,
        watch: float | None = None,
    ) -> Iterator[None]:
        """Use another profile for the length of the context; None means stock behaviour, bit for bit.

        What counts is the profile in use while a frame is tracked: consume `propagate_in_video` inside the context.
        Other threads go on with theirs. A predictor that is watched stays so, `watch` is another share; see `accelerate`.

        Raises
        ------
        InputError
            `watch` is no share, or the profile was made for another model or input size (and `force` is not set), or asks
            for what this model cannot have.
        """
        share = self.parts.here.used.watch if watch is None else check_share(watch)
        wanted = STOCK_PROFILE if profile is None else load_profile(profile)
        with self.parts.using(self.parts.fitted(wanted, force, share)):
            yield

    def weights_changed(self) -> None:
        """Take over weights that were changed through ``parameter.data`` (by ``p.data.copy_``, for instance).

        All other changes are noticed: new tensors, ``load_state_dict``, operations in place.
        """
        self.parts.weights.forget()


@cache
def class_for(accelerated: type[Shared], client: type[SAM2VideoPredictor]) -> type[Shared]:
    """The accelerated class for a class of predictors: a client's own keeps its methods, which come before ours."""
    if client is SAM2VideoPredictor:
        return accelerated
    return type(f"Efficient{client.__name__}", (client, accelerated), {"client": client})


def made_anew(accelerated: Any, client: Any) -> Shared:
    """An accelerated predictor without contents, for a class of predictors."""
    made = class_for(accelerated, client)
    return made.__new__(made)
