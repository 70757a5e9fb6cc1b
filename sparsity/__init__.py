"""Sparse SAM 2 video tracking: profiles, the accelerated predictor, calibration and evaluation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsity.acceleration.build import accelerate as accelerate
    from sparsity.acceleration.build import (
        build_efficient_sam2_video_predictor as build_efficient_sam2_video_predictor,
    )
    from sparsity.acceleration.predictor import (
        EfficientSAM2VideoPredictor as EfficientSAM2VideoPredictor,
    )
    from sparsity.profile import Profile as Profile
    from sparsity.profiles import load_profile as load_profile

_HOME = {
    "EfficientSAM2VideoPredictor": "sparsity.acceleration.predictor",
    "Profile": "sparsity.profile",
    "accelerate": "sparsity.acceleration.build",
    "build_efficient_sam2_video_predictor": "sparsity.acceleration.build",
    "load_profile": "sparsity.profiles",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sparsity' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
