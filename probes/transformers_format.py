"""What Hugging Face's transformers calls the tensors and settings of a SAM 2 (``Sam2VideoModel``), and sam2 the same.

Derived from both packages' own modules (sam2 1.1.0, transformers 5.24); nothing of transformers is imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from probes.errors import InputError


class Place(NamedTuple):
    """A tensor of transformers, or one row of it: sam2 keeps each kind of point's embedding by itself."""

    name: str
    row: int | None = None


TWICE = "prompt_encoder.shared_embedding.positional_embedding"
"""Written by transformers beside `SHARED`, the same numbers; one of the two is enough."""

SHARED = "shared_image_embedding.positional_embedding"

_POINT = re.compile(r"sam_prompt_encoder\.point_embeddings\.(\d+)\.weight")

_MLP = re.compile(
    r"(.*(?:mlp|_head|output_hypernetworks_mlps\.\d+|obj_ptr_proj))\.layers\.(\d+)\.(\w+)"
)

# From sam2's names; each is looked for once in a name, in this order.
_RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^no_mem_embed$", "no_memory_embedding"),
        (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
        (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
        (r"^no_obj_ptr$", "no_object_pointer"),
        (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
        (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
        (r"^obj_ptr_proj\.", "object_pointer_proj."),
        (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
        (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
        (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
        (r"^sam_prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", SHARED),
        (r"^sam_prompt_encoder\.", "prompt_encoder."),
        (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
        (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
        (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
        (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
        (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
        (r"^sam_mask_decoder\.", "mask_decoder."),
        (r"\.output_upscaling\.0\.", ".upscale_conv1."),
        (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
        (r"\.output_upscaling\.3\.", ".upscale_conv2."),
        (r"\.pix_feat_proj\.", ".feature_projection."),
        (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
        (r"\.fuser\.", ".memory_fuser."),
        (r"\.gamma$", ".scale"),
        (r"\.dwconv\.", ".depthwise_conv."),
        (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
        (r"\.norm(\d?)\.", r".layer_norm\1."),
        (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
        (r"\.out_proj\.", ".o_proj."),
    )
)

_DOWNSAMPLER = re.compile(r"(memory_encoder\.mask_downsampler)\.encoder\.(\d+)\.(\w+)")


def is_transformers(names: Iterable[str]) -> bool:
    """Whether tensors are named as transformers names them."""
    return any(name.startswith("vision_encoder.") for name in names)


def transformers_names(names: Iterable[str]) -> dict[str, Place]:
    """Where transformers keeps each tensor of a sam2 model.

    Parameters
    ----------
    names
        All of the model's names: which layer of a perceptron is its last is seen by them.

    >>> transformers_names(["no_mem_embed"])
    {'no_mem_embed': Place(name='no_memory_embedding', row=None)}
    """
    names = list(names)
    last: dict[str, int] = {}
    for name in names:
        for pattern in (_MLP, _DOWNSAMPLER):
            if found := pattern.fullmatch(name):
                last[found[1]] = max(last.get(found[1], 0), int(found[2]))
    return {name: _place(name, last) for name in names}


def _place(name: str, last: Mapping[str, int]) -> Place:
    if found := _POINT.fullmatch(name):
        return Place("prompt_encoder.point_embed.weight", int(found[1]))
    if found := _MLP.fullmatch(name):
        layer = int(found[2])
        at = "proj_in" if not layer else f"layers.{layer - 1}"
        name = f"{found[1]}.{'proj_out' if layer == last[found[1]] else at}.{found[3]}"
    elif found := _DOWNSAMPLER.fullmatch(name):  # convolution, norm and activation in turn
        layer, kind = divmod(int(found[2]), 3)
        at = f"layers.{layer}.{('conv', 'layer_norm')[kind]}"
        if int(found[2]) == last[found[1]]:
            at = "final_conv"
        name = f"{found[1]}.{at}.{found[3]}"
    for pattern, new in _RENAMED:
        name = pattern.sub(new, name)
    return Place(name)


# ---------------------------------------------------------------------- settings

_SAME = {
    "image_size": "image_size",
    "num_maskmem": "num_maskmem",
    "sigmoid_scale_for_mem_enc": "sigmoid_scale_for_mem_enc",
    "sigmoid_bias_for_mem_enc": "sigmoid_bias_for_mem_enc",
    "multimask_output_in_sam": "multimask_output_in_sam",
    "multimask_min_pt_num": "multimask_min_pt_num",
    "multimask_max_pt_num": "multimask_max_pt_num",
    "multimask_output_for_tracking": "multimask_output_for_tracking",
    "max_object_pointers_in_encoder": "max_obj_ptrs_in_encoder",
    "max_cond_frame_num": "max_cond_frames_in_attn",
    "enable_occlusion_spatial_embedding": "no_obj_embed_spatial",
    "enable_temporal_pos_encoding_for_object_pointers": (
        "add_tpos_enc_to_obj_ptrs proj_tpos_enc_in_obj_ptrs use_signed_tpos_enc_to_obj_ptrs"
    ),
    "memory_attention_num_layers": "memory_attention.num_layers",
    "memory_attention_feed_forward_hidden_size": "memory_attention.layer.dim_feedforward",
    "memory_attention_num_attention_heads": (
        "memory_attention.layer.self_attention.num_heads memory_attention.layer.cross_attention.num_heads"
    ),
    "memory_fuser_num_layers": "memory_encoder.fuser.num_layers",
    "vision_config.backbone_channel_list": "image_encoder.neck.backbone_channel_list",
    "vision_config.fpn_top_down_levels": "image_encoder.neck.fpn_top_down_levels",
    "vision_config.backbone_config.blocks_per_stage": "image_encoder.trunk.stages",
    "vision_config.backbone_config.global_attention_blocks": "image_encoder.trunk.global_att_blocks",
    "vision_config.backbone_config.window_size_per_stage": "image_encoder.trunk.window_spec",
    "vision_config.backbone_config.window_positional_embedding_background_size": (
        "image_encoder.trunk.window_pos_embed_bkg_spatial_size"
    ),
}  # fmt: skip
"""transformers' settings and those of sam2 that they set; what a file leaves out is Tiny's, as in transformers."""

_DOUBLED = {
    "vision_config.backbone_config.embed_dim_per_stage": "image_encoder.trunk.embed_dim",
    "vision_config.backbone_config.num_attention_heads_per_stage": "image_encoder.trunk.num_heads",
}
"""Lists of which sam2 has the first number and doubles it from stage to stage."""

_GELU = "gelu"
_FIXED = {
    "vision_config.backbone_config.hidden_act": _GELU,
    "vision_config.backbone_config.layer_norm_eps": 1e-6,
    "vision_config.backbone_config.mlp_ratio": 4.0,
    "vision_config.backbone_config.num_query_pool_stages": 3,
    "vision_config.backbone_config.query_stride": [2, 2],
    "vision_config.backbone_config.patch_stride": [4, 4],
    "vision_config.fpn_hidden_size": 256,
    "vision_config.num_feature_levels": 3,
    "prompt_encoder_config.hidden_act": _GELU,
    "prompt_encoder_config.patch_size": 16,
    "prompt_encoder_config.layer_norm_eps": 1e-6,
    "mask_decoder_config.num_hidden_layers": 2,
    "mask_decoder_config.num_attention_heads": 8,
    "mask_decoder_config.attention_downsample_rate": 2,
    "mask_decoder_config.num_multimask_outputs": 3,
    "mask_decoder_config.dynamic_multimask_via_stability": True,
    "mask_decoder_config.dynamic_multimask_stability_delta": 0.05,
    "mask_decoder_config.dynamic_multimask_stability_thresh": 0.98,
    "memory_attention_hidden_size": 256,
    "memory_attention_downsample_rate": 1,
    "memory_attention_feed_forward_hidden_act": "relu",
    "memory_attention_rope_theta": 10000,
    "rope_parameters.rope_theta": 10000,
    "memory_encoder_output_channels": 64,
    "memory_fuser_hidden_act": _GELU,
    "mask_downsampler_hidden_act": _GELU,
    "mask_downsampler_stride": 2,
    "mask_downsampler_total_stride": 16,
}
"""Settings that tensors' shapes don't tell, with the only value that is taken over."""


def settings_in(path: Path) -> dict[str, Any]:
    """Read a ``config.json`` of transformers as changes of sam2's configuration of Tiny, by dotted name.

    Raises
    ------
    InputError
        It is no configuration of a SAM 2, or of one that sam2 can't build.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        kind = given.get("model_type")
    except (ValueError, AttributeError):
        kind = None
    if kind not in ("sam2_video", "sam2"):
        raise InputError(
            f"{path} is of model_type {kind!r}; expected transformers' configuration of a SAM 2 (sam2_video); give the "
            "folder of another model"
        )
    changes: dict[str, Any] = {}
    for theirs, ours in _SAME.items():
        if (value := _value(given, theirs)) is not None:
            changes |= dict.fromkeys(ours.split(), value)
    for theirs, name in _DOUBLED.items():
        if (value := _value(given, theirs)) is not None:
            _hold(path, theirs, value, [value[0] * 2**stage for stage in range(len(value))])
            changes[name] = value[0]
    for theirs, only in _FIXED.items():
        if (value := _value(given, theirs)) is not None:
            _hold(path, theirs, value, only)
    if isinstance(size := changes.get("image_size"), list):
        _hold(path, "image_size", size, size[:1] * len(size))
        changes["image_size"] = size[0]
    return changes


def _value(given: Any, name: str) -> Any:
    """A setting by its dotted name; None where it isn't there."""
    for part in name.split("."):
        given = given.get(part) if isinstance(given, dict) else None
    return given


def _hold(path: Path, name: str, value: Any, only: Any) -> None:
    same = value == only or (isinstance(only, list) and value == only[0])
    if not same and not (isinstance(value, list) and value == [only] * len(value)):
        raise InputError(
            f"{path} sets {name} to {value}; expected {only}, which sam2 has; take a model without that change"
        )
