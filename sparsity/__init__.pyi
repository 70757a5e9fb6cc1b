from .acceleration.build import accelerate as accelerate
from .acceleration.build import (
    build_efficient_sam2_video_predictor as build_efficient_sam2_video_predictor,
)
from .acceleration.predictor import EfficientSAM2VideoPredictor as EfficientSAM2VideoPredictor
from .profile import Profile as Profile
from .profile import load_profile as load_profile
from .work.model import ModelChoice as ModelChoice
from .work.segment import run_segment as run_segment

__all__ = [
    "EfficientSAM2VideoPredictor",
    "ModelChoice",
    "Profile",
    "accelerate",
    "build_efficient_sam2_video_predictor",
    "load_profile",
    "run_segment",
]
