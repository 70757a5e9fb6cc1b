"""Whether a profile can be had by a model: its fingerprint, and the shapes its techniques rely on."""

from __future__ import annotations

from sam2.modeling.sam2_base import SAM2Base

from probes.errors import InputError
from probes.models import fingerprint
from sparsity.acceleration.encoder import window_grid
from sparsity.profile import Profile
from sparsity.window_cues import CUES

WINDOWED_LAST = "the last block of stage 3 attends inside windows, where SAM 2's sees all tokens"


def check_fit(profile: Profile, model: SAM2Base, force: bool) -> bool:
    """Check that a model can have a profile.

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
    named = f"profile {profile.name!r}"
    routed, trunk = profile.windows is not None, model.image_encoder.trunk
    if routed and trunk.blocks[trunk.stage_ends[2]].window_size > 0:
        raise InputError(f"{named} routes windows, but {WINDOWED_LAST}; set windows to null")
    if profile.windows is not None and profile.windows.trimmed:
        grid = window_grid(model)
        if grid.window % 2 or grid.tokens % 2:
            raise InputError(
                f"{named} trims windows to cells of 2 x 2 tokens, but windows of {grid.window} tokens a side on a grid "
                f"of {grid.tokens} can't be cut so; set windows.trimmed to false"
            )
    if profile.technique("encoder") and (reason := why_not_exact(model)):
        raise InputError(f"{named} asks for the technique 'encoder', but {reason}; switch it off")
    memory = profile.memory
    sparse = memory is not None or profile.technique("memory_attention")
    if sparse and (reason := why_not_sparse(model)):
        raise InputError(f"{named} changes memory attention, but {reason}; set memory to null")
    layers = len(model.memory_attention.layers)
    if memory is not None and isinstance(memory.keep, tuple) and len(memory.keep) != layers:
        raise InputError(
            f"{named} has {len(memory.keep)} values of memory.keep, the model has {layers} "
            f"memory-attention layers; give one value or {layers}"
        )
    if profile.router is not None and (unknown := set(profile.router.cues) - set(CUES)):
        raise InputError(
            f"{named} has a router that reads {min(unknown)!r}; expected cues among {', '.join(CUES[:3])}, …; "
            "calibrate anew"
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


def why_not_exact(model: SAM2Base) -> str | None:
    """Say why the exact rewrites do not fit a model's encoder, or None if they do."""
    trunk, neck = model.image_encoder.trunk, model.image_encoder.neck
    spec, ends, pooled = trunk.window_spec, trunk.stage_ends, trunk.q_pool_blocks
    if len(ends) != 4 or pooled != [end + 1 for end in ends[:3]] or tuple(trunk.q_stride) != (2, 2):
        return "the trunk does not have four stages with 2 x 2 pooling between them"
    if trunk.blocks[ends[2]].window_size > 0:
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
        if layer.self_attn.num_heads != 1 or layer.cross_attn_image.num_heads != 1:
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
