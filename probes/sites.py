"""Every attention call of a SAM 2 model, under a stable dotted name.

``encoder.stage3.block12.global``, ``encoder.stage3.block3.window``, ``memory.layer2.self``,
``memory.layer2.cross``, ``decoder.layer0.self``, ``decoder.layer0.token_to_image``,
``decoder.layer0.image_to_token``, ``decoder.final.token_to_image``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from sam2.modeling.sam2_base import SAM2Base

from probes.errors import InputError
from probes.transformers_model import stand_in

Part = Literal["encoder", "memory", "decoder"]
Kind = Literal["window", "global", "self", "cross", "token_to_image", "image_to_token"]

PATCH = 4
"""Pixels per token in encoder stage 1."""


@dataclass(frozen=True)
class AttentionSite:
    """One attention call of a model.

    Attributes
    ----------
    name
        Dotted name.
    part, kind
        Where it is and what attends to what. Encoder blocks that pool their queries are windowed.
    heads
        Number of heads h.
    grid
        Tokens per side of the image map that its keys (for ``image_to_token``: queries) lie on.
    stride
        Pixels of the model's input per token of that map.
    window
        Tokens per side of a window; 0 where attention is not windowed.
    pool
        2 where queries are pooled over 2 x 2 tokens, else 1.
    stage, block
        Of the encoder: stages count from 1, blocks from 0 through all stages.
    layer
        Of memory attention or decoder, from 0; None for the decoder's final attention.
    module
        What computes it.
    """

    name: str
    part: Part
    kind: Kind
    heads: int
    grid: int
    stride: int
    window: int = 0
    pool: int = 1
    stage: int | None = None
    block: int | None = None
    layer: int | None = None
    module: Any = field(repr=False, compare=False, kw_only=True)

    @property
    def windows(self) -> int:
        """Windows per side, the last ones padded; 1 where attention is not windowed."""
        return -(-self.grid // self.window) if self.window else 1


def attention_sites(
    model: SAM2Base, part: Part | None = None, kind: Kind | None = None
) -> list[AttentionSite]:
    """List a model's attention calls in the order in which they run.

    Parameters
    ----------
    model
        Any SAM 2 model or predictor, or a ``Sam2VideoModel`` of transformers.
    part
        Only those of ``"encoder"``, ``"memory"`` or ``"decoder"``.
    kind
        Only ``"window"``, ``"global"``, ``"self"``, ``"cross"``, ``"token_to_image"`` or
        ``"image_to_token"``.

    Raises
    ------
    InputError
        It is no such model, or there is no such part or kind.
    """
    for what, given, known in (("part", part, get_args(Part)), ("kind", kind, get_args(Kind))):
        if given is not None and given not in known:
            raise InputError(
                f"{what} {given!r} was asked for; expected one of {', '.join(known)}; choose one, or give patterns of names "
                "to observe"
            )
    model = stand_in(model)
    if not hasattr(model, "memory_attention"):
        raise InputError(
            f"a {type(model).__name__} was given; expected a SAM 2 model or video predictor; build one with build_predictor"
        )
    found = (*_encoder(model), *_memory(model), *_decoder(model))
    return [
        site
        for site in found
        if (part is None or site.part == part) and (kind is None or site.kind == kind)
    ]


def find_sites(model: SAM2Base, patterns: str | Sequence[str]) -> list[AttentionSite]:
    """List the attention calls whose names match one of some patterns, such as ``"memory.*.cross"``.

    Raises
    ------
    InputError
        A pattern matches nothing.
    """
    sites = attention_sites(model)
    names = [site.name for site in sites]
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise InputError(
                f"no attention site matches {pattern!r}; this model has {len(names)} sites, the nearest are "
                f"{', '.join(near)}; see attention_sites(model) or 'efficient-sam2 sites'"
            )
    return [site for site in sites if any(fnmatchcase(site.name, pattern) for pattern in wanted)]


def _encoder(model: SAM2Base) -> Iterator[AttentionSite]:
    trunk = model.image_encoder.trunk
    stride = PATCH
    for index, block in enumerate(trunk.blocks):
        stage = sum(index > end for end in trunk.stage_ends) + 1
        pool = block.q_stride[0] if block.q_stride else 1
        kind: Kind = "window" if block.window_size else "global"
        yield AttentionSite(
            f"encoder.stage{stage}.block{index}.{kind}", "encoder", kind, _heads(block.attn),
            model.image_size // stride, stride, block.window_size, pool, stage, index, module=block.attn,
        )  # fmt: skip
        stride *= pool


def _memory(model: SAM2Base) -> Iterator[AttentionSite]:
    for index, layer in enumerate(model.memory_attention.layers):
        yield _layer_site(model, "memory", index, "self", layer.self_attn)
        yield _layer_site(model, "memory", index, "cross", layer.cross_attn_image)


def _decoder(model: SAM2Base) -> Iterator[AttentionSite]:
    transformer = model.sam_mask_decoder.transformer
    for index, layer in enumerate(transformer.layers):
        yield _layer_site(model, "decoder", index, "self", layer.self_attn)
        yield _layer_site(
            model, "decoder", index, "token_to_image", layer.cross_attn_token_to_image
        )
        yield _layer_site(
            model, "decoder", index, "image_to_token", layer.cross_attn_image_to_token
        )
    last = transformer.final_attn_token_to_image
    yield _layer_site(model, "decoder", None, "token_to_image", last)


def _layer_site(
    model: SAM2Base, part: Part, layer: int | None, kind: Kind, module: Any
) -> AttentionSite:
    """An attention call of memory attention or decoder; without a layer it is the decoder's final one."""
    grid = model.sam_image_embedding_size
    where = "final" if layer is None else f"layer{layer}"
    return AttentionSite(
        f"{part}.{where}.{kind}", part, kind, _heads(module), grid, model.image_size // grid,
        layer=layer, module=module,
    )  # fmt: skip


def _heads(module: Any) -> int:
    """Number of heads of an attention module, of sam2 or of transformers."""
    found = getattr(module, "num_heads", None)
    return int(module.num_attention_heads if found is None else found)
