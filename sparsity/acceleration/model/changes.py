"""Which parts of a model are no longer sam2's own: there a rewrite would pass by what somebody put in.

A rewrite computes what sam2's code computes from the weights. It stands for a part only where every module of it is of
sam2's or torch's own class, with their own forward, no hook, and the norms and activations that SAM 2 has. Everything
else (adapters such as LoRA, hooks, subclasses, patched forwards, quantised or replaced modules) runs through the
modules themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from sam2.modeling.backbones.hieradet import Hiera, MultiScaleAttention, MultiScaleBlock
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.backbones.utils import PatchEmbed
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import MLP, DropPath, LayerNorm2d
from torch import nn
from torch.nn.modules import module as torch_module

ENCODER = frozenset({"image encoder", "early stages", "stage 3", "late stages"})
"""Parts of the image encoder: the encoder as a whole, and what is rewritten in it."""

OWN_CODE = ("sam2.", "torch.nn.modules.", "sparsity.")
"""Where classes come from whose forward the rewrites know."""

OURS = ("probes.", "sparsity.", "torch.utils.", "torch.distributed.")
"""Where hooks come from that only watch: our own observers', and torch's counters'."""

HAS: dict[type, dict[str, Any]] = {
    ImageEncoder: {"trunk": Hiera, "neck": FpnNeck},
    PatchEmbed: {"proj": nn.Conv2d},
    MultiScaleBlock: {
        "norm1": nn.LayerNorm, "norm2": nn.LayerNorm, "attn": MultiScaleAttention, "mlp": MLP,
        "mlp.act": nn.GELU, "mlp.act.approximate": "none", "mlp.sigmoid_output": False, "mlp.layers.*": nn.Linear,
    },
    MultiScaleAttention: {"qkv": nn.Linear, "proj": nn.Linear},
    FpnNeck: {"convs.*.conv": nn.Conv2d, "position_encoding": PositionEmbeddingSine},
    MemoryAttention: {"layers.*": MemoryAttentionLayer, "norm": nn.LayerNorm},
    MemoryAttentionLayer: {
        "self_attn": RoPEAttention, "cross_attn_image": RoPEAttention, "linear1": nn.Linear, "linear2": nn.Linear,
        "norm1": nn.LayerNorm, "norm2": nn.LayerNorm, "norm3": nn.LayerNorm,
    },
    RoPEAttention: dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), nn.Linear),
    MemoryEncoder: {"mask_downsampler": MaskDownSampler, "fuser": Fuser},
    Fuser: {"layers.*": CXBlock},
    CXBlock: {
        "dwconv": nn.Conv2d, "norm": LayerNorm2d, "pwconv1": nn.Linear, "pwconv2": nn.Linear, "act": nn.GELU,
        "act.approximate": "none",
    },
}  # fmt: skip
"""By class of sam2: what the rewrites take for granted of its attributes, classes or values; ``*`` is every member."""

Named = tuple[str, nn.Module]


def changed_parts(model: SAM2Base) -> dict[str, str]:
    """Find what of a predictor isn't sam2's own.

    Returns
    -------
    dict
        By part what was found first, such as ``"image_encoder.trunk.blocks.8 has a forward hook"``.
    """
    found = {}
    for part, (shallow, deep) in _modules_of(model).items():
        every = [*shallow, *(inner for name, module in deep for inner in _inside(name, module))]
        why = next((said for one in every if (said := _why_changed(*one))), None)
        if why is not None:
            found[part] = why
    if "forward_image" in model.__dict__ or not _own(type(model).forward_image):
        found["forward_image"] = "the predictor's forward_image was replaced"
    everywhere = [
        *torch_module._global_forward_hooks.values(),
        *torch_module._global_forward_pre_hooks.values(),
    ]
    if any(not only_watches(hook) for hook in everywhere):
        found |= dict.fromkeys(_modules_of(model), "a hook is registered for all modules of torch")
    return found


def _modules_of(model: SAM2Base) -> dict[str, tuple[list[Named], list[Named]]]:
    """By part: modules that are looked at themselves, and those that are with all inside them."""
    encoder, decoder = model.image_encoder, model.sam_mask_decoder
    if not isinstance(encoder, ImageEncoder) or not isinstance(encoder.trunk, Hiera):
        inside: dict[str, tuple[list[Named], list[Named]]] = {
            "image encoder": ([("image_encoder", encoder)], [])
        }
    else:
        trunk, neck, at = encoder.trunk, encoder.neck, "image_encoder.trunk"
        blocks = [(f"{at}.blocks.{i}", block) for i, block in enumerate(trunk.blocks)]
        convs = [(f"image_encoder.neck.convs.{i}", conv) for i, conv in enumerate(neck.convs)]
        first, last = trunk.stage_ends[1] + 2, trunk.stage_ends[2] + 1
        fine = [
            (f"sam_mask_decoder.{name}", getattr(decoder, name, None))
            for name in ("conv_s0", "conv_s1")
        ]
        early = [(f"{at}.patch_embed", trunk.patch_embed), *blocks[:first], *convs[2:]]
        early += [(name, conv) for name, conv in fine if conv is not None]
        whole = [("image_encoder", encoder), (at, trunk), ("image_encoder.neck", neck)]
        whole.append(("image_encoder.neck.position_encoding", neck.position_encoding))
        inside = {
            "image encoder": (whole, []),
            "early stages": ([], early),
            "stage 3": ([], blocks[first:last]),
            "late stages": ([], [*blocks[last:], *convs[:2]]),
        }
    attention, encode = model.memory_attention, model.memory_encoder
    return {
        **inside,
        "memory attention": ([], [("memory_attention", attention)]),
        "memory encoder": ([], [("memory_encoder", encode)]),
        "prompt encoder": ([], [("sam_prompt_encoder", model.sam_prompt_encoder)]),
        "mask decoder": ([], [("sam_mask_decoder", decoder)]),
    }


def _inside(name: str, module: nn.Module) -> Iterator[Named]:
    """A module and all inside it, by name."""
    return module.named_modules(prefix=name)


def _why_changed(name: str, module: nn.Module) -> str | None:
    """Say in what a module differs from sam2's."""
    kind = type(module)
    if not f"{kind.__module__}.".startswith(OWN_CODE):
        return f"{name} is a {kind.__module__}.{kind.__qualname__}"
    own = module.__dict__.get("forward")
    if own is not None and not type(own).__module__.startswith("probes."):
        return f"{name} has a forward of its own"
    if not _own(kind.forward):
        return f"{kind.__qualname__}.forward was replaced, which {name} is run by"
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if any(not only_watches(hook) for hook in hooks):
        return f"{name} has a forward hook"
    for base in kind.__mro__:
        for path, wanted in HAS.get(base, {}).items():
            for at, value in _values(module, path):
                if value is not wanted and type(value) is not wanted and value != wanted:
                    return f"{name}.{at} is {value if isinstance(value, str) else type(value).__qualname__}"
    relu = isinstance(module, MemoryAttentionLayer) and module.activation_str == "relu"
    if relu and module.activation is not F.relu:
        return f"{name} has an activation of its own"
    if module.training and _drops(module):
        return f"{name} drops values at random, as the model is in training mode"
    return None


def _values(module: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The attributes at a path, by name."""
    head, _, rest = path.partition(".")
    members = module._modules if head == "*" else {head: getattr(module, head, None)}
    for name, value in members.items():
        if not rest:
            yield name, value
        elif value is not None:
            for at, inner in _values(value, rest):
                yield f"{name}.{at}", inner


def _own(function: Callable[..., Any]) -> bool:
    """Whether a function of a class was written there."""
    return f"{function.__module__}.".startswith(OWN_CODE)


def only_watches(hook: Any) -> bool:
    """Whether a hook is one of those that change nothing."""
    named = getattr(hook, "__module__", None) or type(hook).__module__
    return f"{named}.".startswith(OURS)


DROPS = nn.Dropout, DropPath, RoPEAttention
"""Modules that drop values at random in training mode."""


def _drops(module: nn.Module) -> bool:
    if isinstance(module, nn.Dropout):
        return module.p > 0
    if isinstance(module, DropPath):
        return module.drop_prob > 0
    return isinstance(module, RoPEAttention) and module.dropout_p > 0
