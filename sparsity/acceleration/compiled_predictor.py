"""Compiled predictors: ours with its encoder and memory attention compiled, and sam2's own."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor, SAM2VideoPredictorVOS

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


class MarkedSAM2VideoPredictorVOS(SAM2VideoPredictorVOS):
    """sam2's compiled predictor, which says where a frame begins.

    On a GPU torch records its parts as CUDA graphs and would else take a new frame's for more of the last one.
    """

    def _run_single_frame_inference(self, *args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return super()._run_single_frame_inference(*args, **kwargs)


def compiled_stock(predictor: SAM2VideoPredictor) -> MarkedSAM2VideoPredictorVOS:
    """Return a copy of a stock predictor as sam2 compiles it with ``vos_optimized``; the original stays eager.

    It is made of an existing predictor, so that weights are the same however they were made.
    """
    copied = copy.deepcopy(predictor)
    copied.__class__ = MarkedSAM2VideoPredictorVOS
    with redirect_stdout(sys.stderr):  # sam2 announces it on stdout
        copied._compile_all_components()
    # as sam2_base.py does with compile_image_encoder
    encoder = copied.image_encoder
    encoder.forward = torch.compile(
        encoder.forward, mode="max-autotune", fullgraph=True, dynamic=False
    )
    return copied


@contextmanager
def without_autotuned_products() -> Iterator[None]:
    """Let ``max-autotune`` take ATen's products and convolutions, as long as the context lasts.

    On a CPU it otherwise writes, compiles and times C++ candidates for every shape before the first frame is done.
    """
    import torch._inductor.config as inductor

    with inductor.patch(max_autotune_gemm_backends="ATEN", max_autotune_conv_backends="ATEN"):
        yield
