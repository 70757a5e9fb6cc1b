"""Accelerated predictors, made from stock ones or like sam2 makes them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from sam2.build_sam import build_sam2_video_predictor
from sam2.sam2_video_predictor import SAM2VideoPredictor, SAM2VideoPredictorVOS

from probes.errors import InputError
from probes.models import check_sam2
from probes.observing import is_observed
from probes.transformers_model import is_transformers_model
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.acceleration.watch import check_share
from sparsity.profile import Profile, load_profile

QUANTISED = ("torch.ao.", "torch.nn.quantized", "torchao.", "bitsandbytes.")
"""Where modules and weights come from that hold other numbers than floating point."""


def accelerate(
    predictor: SAM2VideoPredictor,
    profile: Profile | str | Path = "paper",
    *,
    force: bool = False,
    watch: float | None = None,
) -> EfficientSAM2VideoPredictor:
    """Make an accelerated predictor that shares a predictor's modules and settings; the given one stays as it is.

    Parameters
    ----------
    predictor
        An eager `SAM2VideoPredictor`, or one of a class derived from it, whose methods it keeps; an accelerated one is
        accelerated anew.
    profile
        A `Profile`, the name of a built-in one, or a JSON file.
    force
        Use a profile that was calibrated for another model or input size; the report then says so.
    watch
        Share of frames, in (0, 1], that are tracked densely too, half of them at random and half where something seems
        wrong; masks are the same. ``report(state).promise`` says what was found; where the promise is found broken, the
        video goes on with a safer setting, see `sparsity.acceleration.watch`.

    Raises
    ------
    InputError
        `watch` is no share, the predictor is of another class, its encoder has no stages or its weights are quantised, or
        the profile does not fit it.
    """
    _check(predictor)
    if is_observed(predictor):
        raise InputError(
            "a predictor that is being observed was given; accelerate it first, then observe the result"
        )
    return EfficientSAM2VideoPredictor.sharing(
        predictor, load_profile(profile), force, check_share(watch)
    )


def _check(predictor: Any) -> None:
    """Refuse what can't be accelerated, and say why."""
    named = type(predictor).__name__
    if isinstance(predictor, SAM2VideoPredictorVOS):
        raise InputError(
            f"a {named} was given, which compiles sam2's parts; accelerate takes the eager SAM2VideoPredictor; build it "
            "without vos_optimized"
        )
    if not isinstance(predictor, SAM2VideoPredictor):
        if is_transformers_model(predictor):
            raise InputError(
                f"transformers' {named} was given; accelerate takes sam2's predictor, which has other parts; build that with "
                "the same weights: build_predictor and the folder or name that they are from"
            )
        legacy = type(predictor).__module__ == "sam2.sam2_video_predictor_legacy"
        why = ", sam2's legacy one, which keeps all objects of a video in one state" * legacy
        raise InputError(
            f"a {type(predictor).__module__}.{named} was given{why}; accelerate takes "
            "sam2.sam2_video_predictor.SAM2VideoPredictor; build that"
        )
    trunk = getattr(predictor.image_encoder, "trunk", None)
    if not all(hasattr(trunk, name) for name in ("stage_ends", "window_spec", "blocks")):
        raise InputError(
            f"a predictor with a {type(trunk or predictor.image_encoder).__name__} as encoder was given; accelerate takes "
            "SAM 2's Hiera trunk, with stages and windows; use the predictor as it is"
        )
    for name, module in predictor.named_modules():
        kinds = type(module), *(type(weight) for weight in module._parameters.values())
        if any(kind.__module__.startswith(QUANTISED) for kind in kinds):
            raise InputError(
                f"{name} is quantised ({kinds[0].__module__}.{kinds[0].__name__}); accelerate packs weights of floating "
                "point; accelerate the model before it is quantised, or use the predictor as it is"
            )


def build_efficient_sam2_video_predictor(
    config_file: str,
    ckpt_path: str | None = None,
    device: str = "cuda",
    mode: str = "eval",
    hydra_overrides_extra: list[str] | None = None,
    apply_postprocessing: bool = True,
    vos_optimized: bool = False,
    profile: Profile | str | Path = "paper",
    **kwargs: Any,
) -> EfficientSAM2VideoPredictor:
    """Build like ``sam2.build_sam.build_sam2_video_predictor``, with a profile.

    Works too where the calling program has initialised Hydra for itself: a configuration on its search path is taken, as
    sam2 takes it, and sam2's own otherwise.

    Raises
    ------
    InputError
        `vos_optimized` is asked for, the profile does not fit the model, or another package's ``sam2`` is installed.
    """
    if vos_optimized:
        raise InputError(
            "vos_optimized was given, which compiles sam2's parts; expected an eager model: the profile's graphs launch "
            "its parts as CUDA graphs instead; leave it out"
        )
    check_sam2()
    hydra = GlobalHydra.instance()
    of_caller: Any = hydra.hydra
    theirs = of_caller is not None and of_caller.config_loader.repository.config_exists(config_file)
    if not theirs:
        hydra.clear()
    try:
        with nullcontext() if theirs else initialize_config_module("sam2", version_base="1.2"):
            stock = build_sam2_video_predictor(
                config_file,
                ckpt_path,
                device,
                mode,
                hydra_overrides_extra or [],
                apply_postprocessing,
                **kwargs,
            )
    finally:
        GlobalHydra.instance().hydra = of_caller
    return accelerate(stock, profile)
