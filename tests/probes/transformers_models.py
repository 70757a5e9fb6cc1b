"""transformers' own SAM 2 with random weights, as an independent implementation to hold ours against."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from tests.clients.torchvision_ops import declare

TRUNKS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "base-plus": {
        "hidden_size": 112,
        "num_attention_heads": 2,
        "blocks_per_stage": [2, 3, 16, 3],
        "embed_dim_per_stage": [112, 224, 448, 896],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "global_attention_blocks": [12, 16, 20],
        "window_positional_embedding_background_size": [14, 14],
    },
    "narrow": {
        "hidden_size": 24,
        "embed_dim_per_stage": [24, 48, 96, 192],
        "window_size_per_stage": [8, 4, 4, 2],
    },
}
"""Encoders: of Tiny, of Base+, and of Tiny with fewer channels."""


def imported(name: str) -> Any:
    """Import transformers or a part of it, or PEFT, when a test needs it; they import torchvision where it is installed."""
    declare()
    return import_module(name)


def make_transformers(trunk: str = "narrow", size: int = 256, seed: int = 0) -> Any:
    """Make a ``Sam2VideoModel`` whose weights are drawn so that memory matters to the masks and objects are there."""
    transformers = imported("transformers")
    settings = {"model_type": "sam2_hiera_det_model", "image_size": [size, size], **TRUNKS[trunk]}
    width = settings.get("embed_dim_per_stage", [96])[0]
    config = transformers.Sam2VideoConfig(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": settings,
            "backbone_channel_list": [8 * width, 4 * width, 2 * width, width],
            "backbone_feature_sizes": [[size // stride] * 2 for stride in (4, 8, 16)],
        },
        prompt_encoder_config={"image_size": size},
        memory_attention_feed_forward_hidden_size=256 if trunk == "narrow" else 2048,
        image_size=size,
        memory_attention_rope_feat_sizes=[size // 16] * 2,
    )
    model = transformers.Sam2VideoModel(config).eval()
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            std = (
                0.02 if name.startswith("vision") or weight.ndim == 1 else weight[0].numel() ** -0.5
            )
            weight.copy_(torch.randn(weight.shape, generator=drawn) * std)
            if weight.ndim == 1 and not name.endswith("bias"):
                weight += 1
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(10)
        places = model.shared_image_embedding.positional_embedding
        places.copy_(torch.randn(places.shape, generator=drawn))
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(places)
    return model


def make_session(model: Any, frames: torch.Tensor, size: tuple[int, int]) -> Any:
    """Begin transformers' own session on frames ``[T, 3, S, S]`` of a video of some height and width."""
    modeling = imported("transformers.models.sam2_video.modeling_sam2_video")
    return modeling.Sam2VideoInferenceSession(
        video=frames, video_height=size[0], video_width=size[1], dtype=torch.float32
    )


def give_points(session: Any, points: torch.Tensor, labels: torch.Tensor, frame: int = 0) -> None:
    """Prompt object 1 with points ``[N, 2]`` in pixels of the model's input; labels 2 and 3 are a box's corners."""
    index = session.obj_id_to_idx(1)
    given = {"point_coords": points[None, None], "point_labels": labels[None, None]}
    session.add_point_inputs(index, frame, given)
    session.obj_with_new_inputs = [1]
