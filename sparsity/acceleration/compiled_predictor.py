"""The accelerated predictor with its encoder and its memory attention compiled."""

from __future__ import annotations

from typing import Any

from sparsity.acceleration.compiled import compiled_parts
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor


class CompiledSAM2VideoPredictor(EfficientSAM2VideoPredictor):
    """`EfficientSAM2VideoPredictor`, compiled when first used; what runs inside can't be observed.

    Prompt encoder, mask decoder and memory encoder stay eager: routing reads the decoder's attention, and
    they are shared with the stock predictor.
    """

    compiled = True

    def _get_image_feature(self, *args: Any, **kwargs: Any) -> Any:
        with compiled_parts():
            return super()._get_image_feature(*args, **kwargs)

    def _prepare_memory_conditioned_features(self, *args: Any, **kwargs: Any) -> Any:
        with compiled_parts():
            return super()._prepare_memory_conditioned_features(*args, **kwargs)
