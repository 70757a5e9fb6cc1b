"""SAM 2's memory encoder with its fuser in channels-last layout and weights cast once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from sam2.modeling.memory_encoder import CXBlock, MemoryEncoder
from sam2.modeling.sam2_utils import LayerNorm2d
from torch import Tensor

from sparsity.acceleration.derived import Weights
from sparsity.acceleration.linear import Linear


class ChannelsLastMemoryEncoder(MemoryEncoder):
    """Shares all modules of a stock memory encoder; computes the same in another layout while `active` says so.

    In stock the fuser's linear layers see a permuted view and turn into a batched product with copies.
    """

    active: Callable[[], bool]
    casting_once: Callable[[], AbstractContextManager[None]]
    _weights: Weights

    @classmethod
    def sharing(
        cls,
        encoder: MemoryEncoder,
        active: Callable[[], bool],
        casting_once: Callable[[], AbstractContextManager[None]],
    ) -> ChannelsLastMemoryEncoder:
        """Wrap a memory encoder; names of parameters stay as they are."""
        shared = cls.__new__(cls)
        shared.__dict__ = dict(encoder.__dict__)
        shared.__dict__.update(
            active=active, casting_once=casting_once, _packed={}, _weights=Weights(shared.fuser)
        )
        return shared

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: all but packed weights, which can't be copied."""
        return {**self.__dict__, "_packed": {}}

    def forward(
        self, pix_feat: Tensor, masks: Tensor, skip_mask_sigmoid: bool = False
    ) -> dict[str, object]:
        """Encode features ``[B, C, H, W]`` and masks ``[B, 1, S, S]`` into memory, like stock."""
        if not self.active():
            return super().forward(pix_feat, masks, skip_mask_sigmoid)
        with self.casting_once():
            return self._channels_last(pix_feat, masks, skip_mask_sigmoid)

    def _channels_last(
        self, pix_feat: Tensor, masks: Tensor, skip_mask_sigmoid: bool
    ) -> dict[str, object]:
        masks = self._downsampled(masks if skip_mask_sigmoid else torch.sigmoid(masks))
        x = (self.pix_feat_proj(pix_feat) + masks).contiguous(memory_format=torch.channels_last)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x = self.fuser.proj(x)
        with torch.autocast(device, enabled=False):
            for block in self._blocks(dtype):
                x = block(x)
        x = self.out_proj(x)
        return {"vision_features": x, "vision_pos_enc": [self.position_encoding(x).to(x.dtype)]}

    def _downsampled(self, masks: Tensor) -> Tensor:
        """Bring masks ``[B, 1, S, S]`` to features ``[B, C, H, W]``; norms over channels are one operation each."""
        for layer in self.mask_downsampler.encoder:
            if isinstance(layer, LayerNorm2d):
                y = masks.permute(0, 2, 3, 1)
                y = F.layer_norm(y, y.shape[-1:], layer.weight, layer.bias, layer.eps)
                masks = y.permute(0, 3, 1, 2)
            else:
                masks = layer(masks)
        return masks

    def _blocks(self, dtype: torch.dtype) -> list[_FuserBlock]:
        if self._weights.module is not self.fuser:
            self._weights = Weights(self.fuser)
        stamp = self._weights.stamp()
        if self._packed.get(dtype, (None,))[0] != stamp:
            self._packed[dtype] = stamp, [_FuserBlock(block, dtype) for block in self.fuser.layers]
        return self._packed[dtype][1]


class _FuserBlock:
    """One ConvNeXt block on channels-last maps."""

    def __init__(self, block: CXBlock, dtype: torch.dtype) -> None:
        self.block, self.dtype = block, dtype
        self.weight = block.dwconv.weight.detach().to(dtype)
        self.bias = None if block.dwconv.bias is None else block.dwconv.bias.detach().to(dtype)
        self.up, self.down = Linear.of(block.pwconv1, dtype), Linear.of(block.pwconv2, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        conv, norm = self.block.dwconv, self.block.norm
        y = F.conv2d(
            x.to(self.dtype), self.weight, self.bias, padding=conv.padding, groups=conv.groups
        )
        y = y.permute(0, 2, 3, 1)  # [B, H, W, C], contiguous
        normed = F.layer_norm(y.float(), y.shape[-1:], norm.weight, norm.bias, norm.eps).to(
            self.dtype
        )
        out = self.down(self.up(normed.reshape(-1, y.shape[-1]), "gelu")).view(y.shape)
        if self.block.gamma is not None:
            out = self.block.gamma * out
        return x + out.permute(0, 3, 1, 2)
