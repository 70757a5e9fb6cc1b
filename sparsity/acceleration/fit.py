"""Whether a model can have a profile: its fingerprint, and the shapes that techniques rely on."""

from __future__ import annotations

from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.sam2_base import SAM2Base

from probes.errors import InputError
from probes.models import fingerprint
from sparsity.acceleration.model.encoder import window_grid
from sparsity.acceleration.model.quantized import why_not_int8
from sparsity.profile import Profile

WINDOWED_LAST = "the last block of stage 3 attends inside windows, where SAM 2's sees all tokens"


def has_stages(model: SAM2Base) -> bool:
    """Whether a model's encoder is built as SAM 2's; another one runs as it is."""
    encoder = model.image_encoder
    return isinstance(encoder, ImageEncoder) and isinstance(encoder.trunk, Hiera)


def check_fit(profile: Profile, model: SAM2Base, force: bool) -> bool:
    """Check that a model can have a profile; an encoder or memory attention of another kind runs as it is.

    Returns
    -------
    bool
        Whether the profile was made for another model or input size, and `force` let it pass.

    Raises
    ------
    InputError
        The profile was made for another model or input size (and `force` is not set), or asks for what this
        model cannot have.
    """
    named, own_encoder = f"profile {profile.name!r}", has_stages(model)
    if profile.routing is not None and own_encoder and (reason := why_not_routed(model)):
        raise InputError(f"{named} routes {reason}; set routing to null")
    if profile.exact and own_encoder and (reason := why_not_exact(model)):
        raise InputError(f"{named} is exact, but {reason}; set exact to false")
    if profile.quantize is not None and (reason := why_not_int8(model.device)):
        raise InputError(f"{named} quantizes to int8, but {reason}; set quantize to null")
    retrieval = profile.retrieval
    reads = retrieval is not None or profile.exact
    own_memory = isinstance(model.memory_attention, MemoryAttention)
    if reads and own_memory and (reason := why_not_sparse(model)):
        raise InputError(
            f"{named} changes memory attention, but {reason}; set retrieval to null and exact to false"
        )
    if retrieval is not None and isinstance(retrieval.keep, tuple):
        layers = len(model.memory_attention.layers)
        if len(retrieval.keep) != layers:
            raise InputError(
                f"{named} has {len(retrieval.keep)} values of retrieval.keep, the model has {layers} "
                f"memory-attention layers; give one value or {layers}"
            )
    several = (
        model.multimask_output_in_sam
        and model.multimask_output_for_tracking
        and model.multimask_min_pt_num == 0  # tracked frames have no points
    )
    if (below := profile.memory_policy.stable_below) and not several:
        raise InputError(
            f"{named} has memory_policy.stable_below {below}, but the model tracks with a single mask; expected candidates "
            "to choose from (multimask_output_for_tracking, multimask_min_pt_num 0); set it to null"
        )
    judge = profile.guard.failure
    if (
        judge is not None
        and not force
        and not judge.fits(own := fingerprint(model), model.image_size)
    ):
        raise InputError(
            f"{named} has a guard.failure for {judge.model[:19]}… at {judge.image_size} pixels, this model is {own[:19]}… at "
            f"{model.image_size}; fit one for it, or set guard.failure and guard.failure_above to null"
        )
    other = None
    if profile.model is not None and profile.model != (own := fingerprint(model)):
        other = f"for the model {profile.model[:19]}…, this one is {own[:19]}…"
    elif profile.image_size not in (None, model.image_size):
        other = (
            f"at an image_size of {profile.image_size} pixels, this model's is {model.image_size}"
        )
    if other is not None and not force:
        raise InputError(
            f"{named} was calibrated {other}; calibrate it for this model, or force it"
        )
    return other is not None


def why_not_routed(model: SAM2Base) -> str | None:
    """Say why windows of a model can't be routed, or None if they can."""
    trunk, grid = model.image_encoder.trunk, window_grid(model)
    if getattr(trunk.blocks[trunk.stage_ends[2]], "window_size", 0) > 0:
        return f"windows, but {WINDOWED_LAST}"
    if grid.window % 2 or grid.tokens % 2:
        return (
            f"cells of 2 x 2 tokens, but windows of {grid.window} tokens a side on a grid of {grid.tokens} can't be cut "
            "so"
        )
    return None


def why_not_exact(model: SAM2Base) -> str | None:
    """Say why the exact rewrites do not fit a model's encoder, or None if they do."""
    trunk, neck = model.image_encoder.trunk, model.image_encoder.neck
    spec, ends, pooled = trunk.window_spec, trunk.stage_ends, trunk.q_pool_blocks
    if len(ends) != 4 or pooled != [end + 1 for end in ends[:3]] or tuple(trunk.q_stride) != (2, 2):
        return "the trunk does not have four stages with 2 x 2 pooling between them"
    if getattr(trunk.blocks[ends[2]], "window_size", 0) > 0:
        return WINDOWED_LAST
    if any(block <= ends[1] + 1 or block > ends[2] for block in trunk.global_att_blocks):
        return "a global block lies outside stage 3"
    if (
        spec[0] != 2 * spec[1]
        or spec[1] % 2
        or spec[2] != 2 * spec[3]
        or (model.image_size // 4) % spec[0]
    ):
        return f"windows {tuple(spec)} do not nest on a {model.image_size} pixel input"
    if (
        list(neck.fpn_top_down_levels) != [2, 3]
        or neck.fpn_interp_model != "nearest"
        or neck.fuse_type != "sum"
    ):
        return "the neck mixes other levels than SAM 2's"
    if model.image_encoder.scalp != 1 or not model.use_high_res_features_in_sam:
        return "the model does not feed high-resolution features to the decoder"
    return None


def why_not_sparse(model: SAM2Base) -> str | None:
    """Say why this memory attention does not fit a model, or None if it does."""
    for layer in model.memory_attention.layers:
        if not isinstance(layer, MemoryAttentionLayer):
            continue  # it runs as it is
        if any(getattr(a, "num_heads", 1) != 1 for a in (layer.self_attn, layer.cross_attn_image)):
            return "its memory attention has several heads"
        if (
            layer.pos_enc_at_attn
            or layer.pos_enc_at_cross_attn_queries
            or not layer.pos_enc_at_cross_attn_keys
        ):
            return "its memory attention adds positions elsewhere than SAM 2's"
        if layer.activation_str != "relu":
            return f"its memory attention uses {layer.activation_str}, not relu"
    return None
