"""Accelerated predictors, made from stock ones or like sam2 makes them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from sam2.build_sam import build_sam2_video_predictor
from sam2.sam2_video_predictor import SAM2VideoPredictor

from probes.errors import InputError
from probes.models import check_sam2
from sparsity.acceleration.compiled import check_compiler
from sparsity.acceleration.compiled_predictor import CompiledSAM2VideoPredictor
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.profile import Profile
from sparsity.profiles import load_profile

if TYPE_CHECKING:
    from sparsity.options import ModelChoice


def accelerate(
    predictor: SAM2VideoPredictor,
    profile: Profile | str | Path = "paper",
    *,
    force: bool = False,
    compiled: bool = False,
) -> EfficientSAM2VideoPredictor:
    """Make an accelerated predictor that shares a stock predictor's modules; the stock one stays as it is.

    Parameters
    ----------
    predictor
        An eager `SAM2VideoPredictor`.
    profile
        A `Profile`, the name of a built-in one, or a JSON file.
    force
        Use a profile that was calibrated for another model or input size; the report then says so.
    compiled
        Compile the exact techniques' parts when they first run; see `sparsity.acceleration.compiled`.

    Raises
    ------
    InputError
        The predictor is of another class, the profile does not fit it, or torch can't compile here.
    """
    if isinstance(predictor, EfficientSAM2VideoPredictor):
        predictor = predictor._stock
    if type(predictor) is not SAM2VideoPredictor:
        raise InputError(
            f"a {type(predictor).__name__} was given; accelerate takes sam2's eager SAM2VideoPredictor; "
            "build it without vos_optimized, and accelerate it with compiled=True"
        )
    if "_observed" in predictor.__dict__:
        raise InputError(
            "a predictor that is being observed was given; accelerate it first, then observe the result"
        )
    if compiled:
        check_compiler(predictor.device)
    kind = CompiledSAM2VideoPredictor if compiled else EfficientSAM2VideoPredictor
    return kind.sharing(predictor, load_profile(profile), force)


@lru_cache(maxsize=1)
def shared_stock(choice: ModelChoice) -> SAM2VideoPredictor:
    """Build the stock predictor of a choice once a process."""
    return choice.build()


@lru_cache(maxsize=1)
def shared_predictor(choice: ModelChoice) -> EfficientSAM2VideoPredictor:
    """Accelerate the model of a choice once a process; `use` it with the profile that is wanted."""
    return accelerate(shared_stock(choice), "dense")


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

    `vos_optimized` compiles our own formulations instead of sam2's. Works too where the calling program has
    initialised Hydra for itself.
    """
    check_sam2()
    hydra = GlobalHydra.instance()
    of_caller = hydra.hydra
    hydra.clear()
    try:
        with initialize_config_module("sam2", version_base="1.2"):
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
    return accelerate(stock, profile, compiled=vos_optimized)
