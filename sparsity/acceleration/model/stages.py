"""What lies around stage 3 of the encoder, exactly.

Before it, stages 1 and 2 and the block that opens it: all of that is local to 32 x 32 pixels of the input, so a CPU
runs it depth-first in strips of windows that stay in the cache; a GPU, for which every strip is one more round of
kernels to launch, runs it whole. The neck's and the decoder's 1 x 1 convolutions of the two fine levels are composed.
Behind it, stage 4 and the neck: no position encodings that nobody reads, no copies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from probes.seam import Seam
from sparsity.acceleration.model.blocks import trunk_block
from sparsity.acceleration.model.linear import Linear
from sparsity.acceleration.model.windows import WindowTokens
from sparsity.techniques.reuse import LastComputed

STRIP_TOKENS = 8192
"""Stage-1 tokens of one strip on a CPU: its activations stay in the last-level cache."""


class EarlyStages:
    """From an image to the entry of stage 3's blocks and the decoder's two high-resolution levels.

    Parameters
    ----------
    model
        Its weights are cast and packed once.
    dtype
        Of the products.
    linear
        Kind of the blocks' linear layers.
    """

    def __init__(
        self, model: SAM2Base, dtype: torch.dtype, seam: Seam, linear: type[Linear]
    ) -> None:
        self.trunk, self.dtype, self.seam = model.image_encoder.trunk, dtype, seam
        count = self.trunk.stage_ends[1] + 2
        self.blocks = [trunk_block(self.trunk, i, dtype, seam, linear) for i in range(count)]
        self.sites = tuple(block.attention.site for block in self.blocks)
        conv = self.trunk.patch_embed.proj
        self.stride, self.padding = conv.stride, conv.padding
        self.weight = conv.weight.detach().to(dtype, memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        convs, decoder = model.image_encoder.neck.convs, model.sam_mask_decoder
        self.level0 = _compose(convs[-1].conv, decoder.conv_s0, dtype)
        self.level1 = _compose(convs[-2].conv, decoder.conv_s1, dtype)
        self._positions: dict[int, Tensor] = {}

    def __call__(
        self, image: Tensor, places: Tensor | None = None, last: LastComputed | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run on normalised images ``[B, 3, S, S]``.

        Parameters
        ----------
        places
            Squares of 32 x 32 pixels of one image to compute, int64, counted row by row; None for all.
        last
            Takes the results, and gives those of the other squares.

        Returns
        -------
        tuple
            Tokens behind stage 3's pooling block ``[B * grid, grid, C]`` float32, one image below the other, and levels
            0 and 1 as maps.
        """
        window = self.trunk.window_spec[0]
        half, quarter = window // 2, window // 4
        image = image.to(self.dtype, memory_format=torch.channels_last)
        patches = F.conv2d(image, self.weight, self.bias, stride=self.stride, padding=self.padding)
        patches = patches.permute(0, 2, 3, 1).flatten(0, 1)  # rows of tokens, contiguous
        side, below = patches.shape[1] // window, len(patches) // window
        cut = patches.view(below, window, side, window, -1).transpose(1, 2)
        position = self._position(patches.shape[1], window)
        if below > side:
            position = position.repeat(below // side, 1, 1, 1, 1)
        ends, early = self.trunk.stage_ends, self.blocks
        total = below * side if places is None else len(places)
        fine = patches.new_empty(total, window**2, len(self.level0.weight))
        middle = patches.new_empty(total, half**2, len(self.level1.weight))
        entry = position.new_empty(total, quarter**2, 4 * patches.shape[-1])
        # calls that are edited come whole
        strips = image.device.type == "cpu" and not self.seam.editors(self.sites)
        rows = max(1, STRIP_TOKENS // (side * window * window)) if strips else below
        for first in range(0, total, rows * side):
            if places is None:
                row = first // side
                x = position[row : row + rows] + cut[row : row + rows]
            else:
                strip = places[first : first + rows * side]
                at = strip // side, strip % side
                x = position[at] + cut[at]
            x = x.view(-1, x.shape[-1])
            count = len(x) // window**2
            here = slice(first, first + count)
            for block in early[: ends[0] + 1]:
                x = block.windows_of(x, window)
            fine[here] = self.level0(x.to(self.dtype)).view(count, window**2, -1)
            x = early[ends[0] + 1].pooled(x, window)
            for block in early[ends[0] + 2 : ends[1] + 1]:
                x = block.windows_of(x, half)
            middle[here] = self.level1(x.to(self.dtype)).view(count, half**2, -1)
            x = early[ends[1] + 1].pooled(x, half)
            entry[here] = x.view(count, quarter**2, -1)
        if last is not None:
            fine, middle, entry = last.complete("early", places, fine, middle, entry)
        grid = entry.view(below, side, quarter, quarter, -1).transpose(1, 2)
        return grid.reshape(below * quarter, side * quarter, -1), [
            _to_map(fine, side, window),
            _to_map(middle, side, half),
        ]

    def _position(self, size: int, window: int) -> Tensor:
        if size not in self._positions:
            embed = self.trunk._get_pos_embed((size, size))[0].detach()
            side = size // window
            self._positions[size] = (
                embed.view(side, window, side, window, -1).transpose(1, 2).contiguous().float()
            )
        return self._positions[size]


def _compose(inner: torch.nn.Conv2d, outer: torch.nn.Conv2d, dtype: torch.dtype) -> Linear:
    """Two 1 x 1 convolutions as one, composed in float64."""
    first, second = inner.weight[:, :, 0, 0].double(), outer.weight[:, :, 0, 0].double()
    assert inner.bias is not None and outer.bias is not None, "SAM 2's have"
    bias = second @ inner.bias.double() + outer.bias.double()
    return Linear(second @ first, bias, dtype)


def _to_map(squares: Tensor, side: int, window: int) -> Tensor:
    """Tokens ``[B * side**2, window**2, C]`` of squares as maps ``[B, C, side * window, side * window]``."""
    channels = squares.shape[-1]
    grid = squares.view(-1, side, side, window, window, channels).permute(0, 5, 1, 3, 2, 4)
    return grid.reshape(-1, channels, side * window, side * window)


Features = dict[str, object]
"""sam2's ``backbone_out``: ``vision_features``, ``vision_pos_enc``, ``backbone_fpn``."""


class LateStages:
    """From stage 3's output to the features that sam2's predictor takes.

    Parameters
    ----------
    model
        Its weights are cast and packed once.
    dtype
        Of the products.
    linear
        Kind of the blocks' linear layers.
    """

    def __init__(
        self, model: SAM2Base, dtype: torch.dtype, seam: Seam, linear: type[Linear]
    ) -> None:
        trunk, self.neck = model.image_encoder.trunk, model.image_encoder.neck
        self.dtype = dtype
        after = range(trunk.stage_ends[2] + 1, len(trunk.blocks))
        self.blocks = [trunk_block(trunk, i, dtype, seam, linear) for i in after]
        self.lateral, self.top = (
            Linear(c.conv.weight[:, :, 0, 0], c.conv.bias, dtype)
            for c in (self.neck.convs[1], self.neck.convs[0])
        )
        self._positions: dict[int, Tensor] = {}

    def __call__(
        self, x: Tensor, where: WindowTokens, into: WindowTokens, last: LastComputed | None = None
    ) -> Tensor:
        """Run on stage 3's output ``[B * grid, grid, C]``; gives the features ``[B, C, grid, grid]``.

        Parameters
        ----------
        where, into
            Tokens of stage 4 to compute, before and behind its pooling block.
        last
            Takes the results, and gives those of the other tokens.
        """
        below, grid, channels = x.shape
        half, flat = grid // 2, x.view(below * grid, channels)
        deep = self.blocks[0].pooled_padded(flat.index_select(0, where.tokens), where, into)
        for block in self.blocks[1:]:
            deep = block.windowed(deep, into)
        above = self.top(deep.to(self.dtype))
        whole = len(into.tokens) == below // 2 * half
        if whole:
            above = above.new_empty(above.shape).index_copy_(0, into.tokens, above)
        if last is not None:
            places = None if whole else into.tokens
            (above,) = last.complete("stage4", places, above)
        above = above.float()
        beside = self.lateral(flat.to(self.dtype)).float().view(below // 2, 2, half, 2, -1)
        fused = beside + above.view(below // 2, 1, half, 1, -1)
        return fused.view(below // grid, grid, grid, -1).permute(0, 3, 1, 2)

    def output(self, feature: Tensor, high_res: list[Tensor]) -> Features:
        """Features and levels 0 and 1 as sam2's ``forward_image`` gives them."""
        levels = [*high_res, feature]
        return {
            "vision_features": feature,
            "vision_pos_enc": [
                self._position(level).expand(len(level), -1, -1, -1) for level in levels
            ],
            "backbone_fpn": levels,
        }

    def _position(self, level: Tensor) -> Tensor:
        size = level.shape[-1]
        if size not in self._positions:
            self._positions[size] = self.neck.position_encoding(level[:1]).to(level.dtype)
        return self._positions[size]


# ---------------------------------------------------------------------- the modules themselves


def early_modules(model: SAM2Base, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What `EarlyStages` gives, by sam2's own modules: tokens ``[grid, grid, C]`` and levels 0 and 1."""
    trunk, decoder = model.image_encoder.trunk, model.sam_mask_decoder
    x = trunk.patch_embed(image)
    x = x + trunk._get_pos_embed(x.shape[1:3])
    levels = []
    for index, block in enumerate(trunk.blocks[: trunk.stage_ends[1] + 2]):
        x = block(x)
        if index in trunk.stage_ends:
            levels.append(x.permute(0, 3, 1, 2))
    convs = model.image_encoder.neck.convs
    fine = decoder.conv_s0(convs[-1](levels[0])), decoder.conv_s1(convs[-2](levels[1]))
    return x[0].float(), list(fine)


def stage3_modules(model: SAM2Base, x: Tensor) -> Tensor:
    """Stage 3's blocks behind its pooling block, by sam2's own modules, on ``[grid, grid, C]``."""
    trunk, out = model.image_encoder.trunk, x[None]
    for block in trunk.blocks[trunk.stage_ends[1] + 2 : trunk.stage_ends[2] + 1]:
        out = block(out)
    return out[0].float()


def late_modules(model: SAM2Base, x: Tensor) -> Tensor:
    """What `LateStages` gives, by sam2's own modules: features ``[1, C, grid, grid]``."""
    trunk, convs = model.image_encoder.trunk, model.image_encoder.neck.convs
    deep = x[None]
    for block in trunk.blocks[trunk.stage_ends[2] + 1 :]:
        deep = block(deep)
    above, beside = (part.permute(0, 3, 1, 2) for part in (deep, x[None]))
    top = convs[0](above).float()
    return convs[1](beside) + F.interpolate(top, scale_factor=2.0, mode="nearest")
