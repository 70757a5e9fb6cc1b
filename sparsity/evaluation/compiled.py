"""sam2 as it compiles itself, to be measured against."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from typing import Any

import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor, SAM2VideoPredictorVOS

from probes.errors import InputError


class MarkedSAM2VideoPredictorVOS(SAM2VideoPredictorVOS):
    """sam2's compiled predictor, which says where a frame begins.

    On a GPU torch records its parts as CUDA graphs and would else take a new frame's for more of the last one.
    """

    @wraps(SAM2VideoPredictorVOS._run_single_frame_inference)
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


def check_compiler(device: torch.device) -> None:
    """Refuse a machine on which torch can't compile.

    Raises
    ------
    InputError
        There is no C++ compiler for a CPU, or no Triton for a GPU.
    """
    what = "a compiled predictor was asked for"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise InputError(
                f"{what}; expected Triton, which torch compiles with on a GPU; install triton, or leave "
                "compilation out"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise InputError(
            f"{what}; expected a C++ compiler, which torch compiles with on a CPU; install g++ or name a "
            "compiler in CXX, or leave compilation out"
        ) from None
