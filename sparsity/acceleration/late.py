"""Stage 4 of the encoder and the neck, exactly: no position encodings that nobody reads, no copies."""

from __future__ import annotations

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from probes.seam import Seam
from sparsity.acceleration.blocks import trunk_block
from sparsity.acceleration.linear import Linear
from sparsity.acceleration.reuse import LastComputed
from sparsity.acceleration.windows import WindowTokens

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
    """

    def __init__(self, model: SAM2Base, dtype: torch.dtype, seam: Seam) -> None:
        trunk, self.neck = model.image_encoder.trunk, model.image_encoder.neck
        self.dtype = dtype
        after = range(trunk.stage_ends[2] + 1, len(trunk.blocks))
        self.blocks = [trunk_block(trunk, i, dtype, seam) for i in after]
        self.lateral, self.top = (
            Linear(c.conv.weight[:, :, 0, 0], c.conv.bias, dtype)
            for c in (self.neck.convs[1], self.neck.convs[0])
        )
        self._positions: dict[int, Tensor] = {}

    def __call__(
        self,
        x: Tensor,
        where: WindowTokens,
        into: WindowTokens,
        last: LastComputed | None = None,
    ) -> Tensor:
        """Run on stage 3's output ``[grid, grid, C]``; gives the features ``[1, C, grid, grid]``.

        Parameters
        ----------
        where, into
            Tokens of stage 4 to compute, before and behind its pooling block.
        last
            Takes the results, and gives those of the other tokens.
        """
        grid, channels = x.shape[0], x.shape[-1]
        half, flat = grid // 2, x.view(grid * grid, channels)
        deep = self.blocks[0].pooled_padded(flat.index_select(0, where.tokens), where, into)
        for block in self.blocks[1:]:
            deep = block.windowed(deep, into)
        above = self.top(deep.to(self.dtype))
        whole = len(into.tokens) == half * half
        if whole:
            above = above.new_empty(above.shape).index_copy_(0, into.tokens, above)
        if last is not None:
            places = None if whole else into.tokens
            (above,) = last.complete("reuse_stage4", places, above)
        above = above.float()
        fused = self.lateral(flat.to(self.dtype)).float().view(half, 2, half, 2, -1) + above.view(
            half, 1, half, 1, -1
        )
        return fused.view(1, grid, grid, -1).permute(0, 3, 1, 2)

    def output(self, feature: Tensor, high_res: list[Tensor]) -> Features:
        """Features and levels 0 and 1 as sam2's predictor takes them."""
        unread = [
            feature.new_zeros(()).expand(1, feature.shape[1], *level.shape[-2:])
            for level in high_res
        ]
        return {
            "vision_features": feature,
            "vision_pos_enc": [*unread, self._position(feature)],
            "backbone_fpn": [*high_res, feature],
        }

    def _position(self, feature: Tensor) -> Tensor:
        size = feature.shape[-1]
        if size not in self._positions:
            self._positions[size] = self.neck.position_encoding(feature).to(feature.dtype)
        return self._positions[size]
