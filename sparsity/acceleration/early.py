"""Stages 1 and 2 of the encoder and the block that opens stage 3, exactly, strip by strip.

All of it is local to 32 x 32 pixels of the input, so a CPU runs it depth-first in strips of windows that stay in
the cache; a GPU, for which every strip is one more round of kernels to launch, runs it whole. The neck's and the
decoder's 1 x 1 convolutions of the two fine levels are composed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from probes.seam import Seam
from sparsity.acceleration.blocks import trunk_block
from sparsity.acceleration.linear import Linear
from sparsity.acceleration.reuse import LastComputed

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
    """

    def __init__(self, model: SAM2Base, dtype: torch.dtype, seam: Seam) -> None:
        self.trunk, self.dtype = model.image_encoder.trunk, dtype
        count = self.trunk.stage_ends[1] + 2
        self.blocks = [trunk_block(self.trunk, i, dtype, seam) for i in range(count)]
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
        """Run on a normalised image ``[1, 3, S, S]``.

        Parameters
        ----------
        places
            Squares of 32 x 32 pixels to compute, int64, counted row by row; None for all.
        last
            Takes the results, and gives those of the other squares.

        Returns
        -------
        tuple
            Tokens behind stage 3's pooling block ``[grid, grid, C]`` float32, and levels 0 and 1 as maps.
        """
        window = self.trunk.window_spec[0]
        half, quarter = window // 2, window // 4
        image = image.to(self.dtype, memory_format=torch.channels_last)
        patches = F.conv2d(image, self.weight, self.bias, stride=self.stride, padding=self.padding)
        patches = patches[0].permute(1, 2, 0)  # rows of tokens, contiguous
        side = len(patches) // window
        cut = patches.view(side, window, side, window, -1).transpose(1, 2)
        position = self._position(len(patches), window)
        ends, early = self.trunk.stage_ends, self.blocks
        total = side * side if places is None else len(places)
        fine = patches.new_empty(total, window**2, len(self.level0.weight))
        middle = patches.new_empty(total, half**2, len(self.level1.weight))
        entry = position.new_empty(total, quarter**2, 4 * patches.shape[-1])
        on_cpu = image.device.type == "cpu"
        rows = max(1, STRIP_TOKENS // (side * window * window)) if on_cpu else side
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
            fine, middle, entry = last.complete("reuse_early_stages", places, fine, middle, entry)
        grid = entry.view(side, side, quarter, quarter, -1).transpose(1, 2)
        return grid.reshape(side * quarter, side * quarter, -1), [
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
    """Tokens ``[side**2, window**2, C]`` of squares as a map ``[1, C, side * window, side * window]``."""
    grid = squares.view(side, side, window, window, -1).permute(4, 0, 2, 1, 3)
    return grid.reshape(1, -1, side * window, side * window)
