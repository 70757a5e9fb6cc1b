"""The image encoder with routed windows (SWR) and exact rewrites.

Two independent switches. *Routing* computes stage 3's blocks after its pooling block on chosen windows
only; the other windows go through a shortcut, and the last global block sees all tokens again (method 2.2).
*Exact* rewrites everything around it: stages 1-2 and the pooling block are local to 32 x 32 pixels of the
input, so they run depth-first in strips of windows that stay in the cache; the neck's and the decoder's
1 x 1 convolutions are composed; position encodings nobody reads are not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from probes.seam import Seam
from sparsity.acceleration.blocks import Block
from sparsity.acceleration.linear import Linear
from sparsity.acceleration.shortcuts import ShortcutFunction
from sparsity.acceleration.windows import window_tokens
from sparsity.select import WindowGrid

STRIP_TOKENS = 8192
"""Stage-1 tokens of one strip: its activations stay in the last-level cache."""

Features = dict[str, object]
"""sam2's ``backbone_out``: ``vision_features``, ``vision_pos_enc``, ``backbone_fpn``."""


@dataclass(frozen=True)
class Routing:
    """How one image is encoded.

    Attributes
    ----------
    windows
        Windows of stage 3 to compute; None for all.
    shortcut
        What the other windows go through.
    keep_change
        Whether to return what the blocks changed (for the cached shortcut).
    """

    windows: tuple[int, ...] | None = None
    shortcut: ShortcutFunction | None = None
    keep_change: bool = False


def window_grid(model: SAM2Base) -> WindowGrid:
    """Stage 3's windows of a model at its image size."""
    return WindowGrid(model.image_size // 16, int(model.image_encoder.trunk.window_spec[2]))


def why_not_exact(model: SAM2Base) -> str | None:
    """Say why the exact rewrites do not fit a model's encoder, or None if they do."""
    trunk, neck = model.image_encoder.trunk, model.image_encoder.neck
    spec, ends, pooled = trunk.window_spec, trunk.stage_ends, trunk.q_pool_blocks
    if len(ends) != 4 or pooled != [end + 1 for end in ends[:3]] or tuple(trunk.q_stride) != (2, 2):
        return "the trunk does not have four stages with 2 x 2 pooling between them"
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


class Encoder:
    """Encodes images with a model's weights in one dtype; see the module's docstring.

    Parameters
    ----------
    model
        Its weights are cast and packed when first used.
    dtype
        Of the products.
    """

    def __init__(self, model: SAM2Base, dtype: torch.dtype, seam: Seam) -> None:
        self.model, self.dtype, self.seam = model, dtype, seam
        trunk = model.image_encoder.trunk
        self.first, self.last = trunk.stage_ends[1] + 2, trunk.stage_ends[2]

    def __call__(
        self, image: Tensor, routing: Routing, *, exact: bool
    ) -> tuple[Features, Tensor | None]:
        """Encode one image.

        Parameters
        ----------
        image
            Normalised, ``[1, 3, S, S]``.

        Returns
        -------
        tuple
            sam2's backbone output, and the change that stage 3's blocks made, ``[tokens, C]`` float32,
            where it was asked for.
        """
        if exact:
            with torch.autocast(image.device.type, enabled=False):
                with self.seam.joined():
                    x, high_res = self._early(image)
                x, change = self.through_stage3(x, routing)
                return self._late(x, high_res), change
        return self._stock_around(image, routing)

    def through_stage3(self, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor | None]:
        """Run stage 3's blocks behind its pooling block on ``[grid, grid, C]`` float32 (method 2.2)."""
        grid, channels = x.shape[0], x.shape[-1]
        where = window_tokens(grid, window_grid(self.model).window, routing.windows, x.device)
        whole = len(where.tokens) == grid * grid
        entry = x.reshape(grid * grid, channels)
        packed = entry.index_select(0, where.tokens)
        for index in range(self.first, self.last):
            block = self.stage3[index]
            if self._is_global(index):
                packed = block.among(packed, where.tokens)
            else:
                packed = block.windowed(packed, where)
        merged = entry if whole or routing.shortcut is None else routing.shortcut(entry)
        merged = merged.index_copy(0, where.tokens, packed)
        change = merged - entry if routing.keep_change else None
        return self.stage3[self.last].among(merged).view(grid, grid, channels), change

    def _early(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Patch embedding to stage 3's pooling block, strip by strip of stage-1 windows."""
        trunk = self.model.image_encoder.trunk
        window, half, quarter = (
            trunk.window_spec[0],
            trunk.window_spec[0] // 2,
            trunk.window_spec[0] // 4,
        )
        weight, bias, stride, padding = self._patch
        image = image.to(self.dtype, memory_format=torch.channels_last)
        patches = F.conv2d(image, weight, bias, stride=stride, padding=padding)
        patches = patches[0].permute(1, 2, 0)  # rows of tokens, contiguous
        side = len(patches) // window
        cut = patches.view(side, window, side, window, -1).transpose(1, 2)
        position = self._position(len(patches), window)
        rows = max(1, STRIP_TOKENS // (side * window * window))
        ends, early = trunk.stage_ends, self._early_blocks
        level0, level1 = self._composed
        fine = patches.new_empty(side, side, window * window, len(level0.weight))
        middle = patches.new_empty(side, side, half * half, len(level1.weight))
        out: Tensor | None = None
        for row in range(0, side, rows):
            x = position[row : row + rows] + cut[row : row + rows]
            here = len(x)
            count = here * side
            x = x.view(count * window * window, -1)
            for block in early[: ends[0] + 1]:
                x = block.windows_of(x, count, window)
            fine[row : row + here] = level0(x.to(self.dtype)).view(here, side, window * window, -1)
            x = early[ends[0] + 1].pooled(x, count, window)
            for block in early[ends[0] + 2 : ends[1] + 1]:
                x = block.windows_of(x, count, half)
            middle[row : row + here] = level1(x.to(self.dtype)).view(here, side, half * half, -1)
            x = early[ends[1] + 1].pooled(x, count, half)
            if out is None:
                out = x.new_empty(side, quarter, side, quarter, x.shape[-1])
            out[row : row + here] = x.view(here, side, quarter, quarter, -1).transpose(1, 2)
        assert out is not None, "an image has at least one window"
        return out.view(side * quarter, side * quarter, -1), [
            _to_map(fine, window),
            _to_map(middle, half),
        ]

    def _late(self, x: Tensor, high_res: list[Tensor]) -> Features:
        """Stage 4 and the neck, from stage 3's output ``[grid, grid, C]``."""
        grid, channels = x.shape[0], x.shape[-1]
        window = window_grid(self.model).window
        where = window_tokens(grid, window, None, x.device)
        into = window_tokens(grid // 2, window // 2, None, x.device)
        flat = x.view(grid * grid, channels)
        deep = self._late_blocks[0].pooled_padded(flat, grid, where, into)
        for block in self._late_blocks[1:]:
            deep = block.windowed(deep, into)
        lateral, top = self._neck
        coarse = top(deep.to(self.dtype))
        above = coarse.new_empty(coarse.shape).index_copy_(0, into.tokens, coarse).float()
        half = grid // 2
        fused = lateral(flat.to(self.dtype)).float().view(half, 2, half, 2, -1) + above.view(
            half, 1, half, 1, -1
        )
        feature = fused.view(1, grid, grid, -1).permute(0, 3, 1, 2)
        unread = [
            feature.new_zeros(()).expand(1, feature.shape[1], *level.shape[-2:])
            for level in high_res
        ]
        return {
            "vision_features": feature,
            "vision_pos_enc": [*unread, self._last_position(feature)],
            "backbone_fpn": [*high_res, feature],
        }

    def _stock_around(self, image: Tensor, routing: Routing) -> tuple[Features, Tensor | None]:
        """Routed stage 3 inside otherwise stock code; with all windows it is bit-equal to stock."""
        model, trunk = self.model, self.model.image_encoder.trunk
        x = trunk.patch_embed(image)
        x = x + trunk._get_pos_embed(x.shape[1:3])
        levels, change, entry = [], None, x
        for index, block in enumerate(trunk.blocks):
            if routing.windows is not None and self.first <= index <= self.last:
                if index == self.first:
                    with torch.autocast(image.device.type, enabled=False):
                        x = self.through_stage3(x[0].float(), routing)[0][None]
            else:
                if index == self.first:
                    entry = x
                if index == self.last and routing.keep_change:
                    change = (x - entry).flatten(0, 2).float()
                x = block(x)
            if index in trunk.stage_ends:
                levels.append(x.permute(0, 3, 1, 2))
        features, positions = model.image_encoder.neck(levels)
        scalp = model.image_encoder.scalp
        if scalp > 0:
            features, positions = features[:-scalp], positions[:-scalp]
        output: Features = {
            "vision_features": features[-1],
            "vision_pos_enc": positions,
            "backbone_fpn": features,
        }
        if model.use_high_res_features_in_sam:
            features[0] = model.sam_mask_decoder.conv_s0(features[0])
            features[1] = model.sam_mask_decoder.conv_s1(features[1])
        return output, change

    def _block(self, index: int) -> Block:
        trunk = self.model.image_encoder.trunk
        stage = sum(index > end for end in trunk.stage_ends) + 1
        kind = "global" if self._is_global(index) else "window"
        return Block(
            trunk.blocks[index], self.dtype, f"encoder.stage{stage}.block{index}.{kind}", self.seam
        )

    def _is_global(self, index: int) -> bool:
        return self.model.image_encoder.trunk.blocks[index].window_size == 0

    @cached_property
    def stage3(self) -> dict[int, Block]:
        """Blocks of the routed part by index."""
        return {index: self._block(index) for index in range(self.first, self.last + 1)}

    @cached_property
    def _early_blocks(self) -> list[Block]:
        return [self._block(index) for index in range(self.first)]

    @cached_property
    def _late_blocks(self) -> list[Block]:
        return [
            self._block(index)
            for index in range(self.last + 1, len(self.model.image_encoder.trunk.blocks))
        ]

    @cached_property
    def _patch(self) -> tuple[Tensor, Tensor | None, tuple[int, ...], tuple[int, ...]]:
        conv = self.model.image_encoder.trunk.patch_embed.proj
        bias = None if conv.bias is None else conv.bias.detach().to(self.dtype)
        weight = conv.weight.detach().to(self.dtype, memory_format=torch.channels_last)
        return weight, bias, conv.stride, conv.padding

    @cached_property
    def _composed(self) -> tuple[Linear, Linear]:
        """The neck's lateral convolution and the decoder's, as one linear map, for levels 0 and 1."""
        convs, decoder = self.model.image_encoder.neck.convs, self.model.sam_mask_decoder
        pairs = ((convs[-1].conv, decoder.conv_s0), (convs[-2].conv, decoder.conv_s1))
        first, second = (_compose(inner, outer, self.dtype) for inner, outer in pairs)
        return first, second

    @cached_property
    def _neck(self) -> tuple[Linear, Linear]:
        convs = self.model.image_encoder.neck.convs
        lateral, top = (
            Linear(c.conv.weight[:, :, 0, 0], c.conv.bias, self.dtype) for c in (convs[1], convs[0])
        )
        return lateral, top

    @cached_property
    def _cached(self) -> dict[tuple[object, ...], Tensor]:
        """Position encodings, which depend on sizes alone."""
        return {}

    def _position(self, size: int, window: int) -> Tensor:
        key = ("trunk", size)
        if key not in self._cached:
            embed = self.model.image_encoder.trunk._get_pos_embed((size, size))[0].detach()
            side = size // window
            self._cached[key] = (
                embed.view(side, window, side, window, -1).transpose(1, 2).contiguous().float()
            )
        return self._cached[key]

    def _last_position(self, feature: Tensor) -> Tensor:
        key = ("neck", feature.shape[-1])
        if key not in self._cached:
            self._cached[key] = self.model.image_encoder.neck.position_encoding(feature).to(
                feature.dtype
            )
        return self._cached[key]


def _compose(inner: torch.nn.Conv2d, outer: torch.nn.Conv2d, dtype: torch.dtype) -> Linear:
    """Two 1 x 1 convolutions as one, composed in float64."""
    first, second = inner.weight[:, :, 0, 0].double(), outer.weight[:, :, 0, 0].double()
    assert inner.bias is not None and outer.bias is not None, "SAM 2's have"
    bias = second @ inner.bias.double() + outer.bias.double()
    return Linear(second @ first, bias, dtype)


def _to_map(windows: Tensor, window: int) -> Tensor:
    """Tokens ``[side, side, window**2, C]`` of windows as a map ``[1, C, side * window, side * window]``."""
    side, channels = windows.shape[0], windows.shape[-1]
    grid = windows.view(side, side, window, window, channels).permute(4, 0, 2, 1, 3)
    return grid.reshape(1, channels, side * window, side * window)
