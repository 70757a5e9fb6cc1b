"""Stage 4 of the encoder and the neck, exactly: no position encodings that nobody reads, no copies."""

from __future__ import annotations

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from probes.seam import Seam
from sparsity.acceleration.blocks import trunk_block
from sparsity.acceleration.linear import Linear
from sparsity.acceleration.reuse import LastComputed
from sparsity.acceleration.windows import window_tokens

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
    window
        Of stage 3, in tokens.
    """

    def __init__(self, model: SAM2Base, dtype: torch.dtype, window: int, seam: Seam) -> None:
        trunk, self.neck = model.image_encoder.trunk, model.image_encoder.neck
        self.dtype, self.window = dtype, window
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
        high_res: list[Tensor],
        windows: tuple[int, ...] | None = None,
        cells: tuple[int, ...] | None = None,
        last: LastComputed | None = None,
    ) -> Features:
        """Run on stage 3's output ``[grid, grid, C]``; `high_res` are levels 0 and 1.

        Where `last` keeps stage 4, only some `windows` of it are computed, trimmed to `cells` where these are given;
        the rest is as it was.
        """
        grid, channels = x.shape[0], x.shape[-1]
        half, flat = grid // 2, x.view(grid * grid, channels)
        where = window_tokens(grid, self.window, windows, x.device, cells)
        into = window_tokens(half, self.window // 2, windows, x.device, cells, 1)
        deep = self.blocks[0].pooled_padded(flat.index_select(0, where.tokens), where, into)
        for block in self.blocks[1:]:
            deep = block.windowed(deep, into)
        above = self.top(deep.to(self.dtype))
        if windows is None:
            above = above.new_empty(above.shape).index_copy_(0, into.tokens, above)
        if last is not None:
            places = None if windows is None else into.tokens
            (above,) = last.complete("reuse_stage4", places, above)
        above = above.float()
        fused = self.lateral(flat.to(self.dtype)).float().view(half, 2, half, 2, -1) + above.view(
            half, 1, half, 1, -1
        )
        feature = fused.view(1, grid, grid, -1).permute(0, 3, 1, 2)
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
