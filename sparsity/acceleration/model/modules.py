"""sam2's memory encoder, mask decoder and prompt encoder, sharing all modules: the same results in fewer operations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from sam2.modeling.memory_encoder import CXBlock, MemoryEncoder
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from sam2.modeling.sam2_utils import LayerNorm2d
from torch import Tensor

from sparsity.acceleration.model.linear import Linear


class Owner(Protocol):
    """What the shared modules ask of the predictor they belong to."""

    here: Any
    """Its `frame` is None but while a frame without prompts is tracked, as is `looked`, what `look` found for it; `used` is
    the profile in use."""

    def look(self) -> dict[str, str]:
        """Say which parts of the model aren't sam2's own."""

    def casting_once(self) -> AbstractContextManager[None]:
        """Make the context in which casts of weights are held."""

    def remember(self, what: str, make: Callable[[torch.dtype], Any]) -> Any:
        """Give what was made of these weights in this number format, or make it."""


def share(module: Any, owner: Owner) -> Any:
    """Make the rewritten form of one of sam2's modules; names of parameters stay as they are.

    Parameters
    ----------
    module
        A ``MemoryEncoder``, ``MaskDecoder`` or ``PromptEncoder``, or the rewritten form of one for another owner.
        Anything else is returned as it is.
    """
    kinds = (ChannelsLastMemoryEncoder, CastOnceMaskDecoder, ConstantPromptEncoder)
    kind = next((kind for kind in kinds if type(module) in (kind, kind.__bases__[0])), None)
    if kind is None:
        return module
    shared = kind.__new__(kind)
    shared.__dict__ = {**module.__dict__, "owner": owner}
    return shared


class ChannelsLastMemoryEncoder(MemoryEncoder):
    """A memory encoder whose fuser runs in channels-last layout.

    In stock the fuser's linear layers see a permuted view and turn into a batched product with copies.
    """

    owner: Owner

    def forward(
        self, pix_feat: Tensor, masks: Tensor, skip_mask_sigmoid: bool = False
    ) -> dict[str, object]:
        """Encode features ``[B, C, H, W]`` and masks ``[B, 1, S, S]`` into memory, like stock."""
        if not _rewritten(self.owner, "memory encoder"):
            return super().forward(pix_feat, masks, skip_mask_sigmoid)
        with self.owner.casting_once():
            return self._channels_last(pix_feat, masks, skip_mask_sigmoid)

    def _channels_last(
        self, pix_feat: Tensor, masks: Tensor, skip_mask_sigmoid: bool
    ) -> dict[str, object]:
        masks = self._downsampled(masks if skip_mask_sigmoid else torch.sigmoid(masks))
        x = (self.pix_feat_proj(pix_feat) + masks).contiguous(memory_format=torch.channels_last)
        x = self.fuser.proj(x)
        blocks = self.owner.remember(
            "fuser", lambda dtype: [_FuserBlock(block, dtype) for block in self.fuser.layers]
        )
        with torch.autocast(x.device.type, enabled=False):
            for block in blocks:
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


class CastOnceMaskDecoder(MaskDecoder):
    """A mask decoder with weights cast once for as long as autocast lasts, the same bit for bit.

    sam2 runs under inference mode, where autocast casts every weight anew on every call.
    """

    owner: Owner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Decode masks, like stock."""
        if not _rewritten(self.owner, "mask decoder"):
            return super().forward(*args, **kwargs)
        with self.owner.casting_once():
            return super().forward(*args, **kwargs)


class ConstantPromptEncoder(PromptEncoder):
    """A prompt encoder that encodes the absence of a prompt once, the same bit for bit.

    A frame without a prompt is a padding point to sam2, encoded anew on every frame, as is the position of every token.
    """

    owner: Owner

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Encode prompts, like stock; without one the points are padding."""
        plain = super().forward
        if points is None or masks is not None or not _unprompted(self.owner):
            return plain(points, boxes, masks)

        def encoded(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            sparse, dense = plain(points, boxes, masks)
            # a view of a weight would be taken for trained
            return sparse.detach(), dense.detach()

        found: tuple[Tensor, Tensor] = self.owner.remember(
            f"no prompt for {len(points[0])} objects", encoded
        )
        return found

    def get_dense_pe(self) -> Tensor:
        """Positions of the tokens ``[1, C, grid, grid]``, like stock."""
        plain = super().get_dense_pe
        if not _unprompted(self.owner):
            return plain()
        found: Tensor = self.owner.remember("positions", lambda dtype: plain())
        return found


def _unprompted(owner: Owner) -> bool:
    """Whether the frame at work has no prompt, and what that gives may be remembered."""
    return owner.here.frame is not None and _rewritten(owner, "prompt encoder")


def _rewritten(owner: Owner, part: str) -> bool:
    """Whether rewrites stand for a part's modules: not where gradients are wanted."""
    if not owner.here.used.exact or torch.is_grad_enabled():
        return False
    known = owner.here.looked
    return part not in (owner.look() if known is None else known)
