"""A block of the Hiera trunk on packed tokens, with weights in the run's dtype.

The same arithmetic as ``MultiScaleBlock`` of sam2 (``modeling/backbones/hieradet.py``), on tokens that are
already in window order: no partition and un-partition between blocks, no padding tokens through the MLP,
the residual in float32 and updated in place.
"""

from __future__ import annotations

import torch
from sam2.modeling.backbones.hieradet import Hiera, MultiScaleBlock
from torch import Tensor

from probes.seam import Seam
from sparsity.acceleration.model.attention import Attention, max_pool
from sparsity.acceleration.model.linear import Linear, Mlp, Norm
from sparsity.acceleration.model.windows import WindowTokens


class Block:
    """One trunk block.

    Parameters
    ----------
    block
        sam2's block; its weights are cast and packed once.
    dtype
        Of the products.
    site
        Name of its attention, for observers.
    linear
        Kind of its linear layers.
    """

    def __init__(
        self,
        block: MultiScaleBlock,
        dtype: torch.dtype,
        site: str,
        seam: Seam,
        linear: type[Linear],
    ) -> None:
        self.attention = Attention(block.attn.num_heads, site, seam)
        self.norm, self.out = Norm(block.norm1, dtype), linear.of(block.attn.proj, dtype)
        self.qkv, (up, down) = linear.of(block.attn.qkv, dtype), block.mlp.layers
        self.mlp = Mlp(block.norm2, up, down, "gelu", dtype, linear)
        self.widen = linear.of(block.proj, dtype) if block.dim != block.dim_out else None

    def windowed(self, x: Tensor, where: WindowTokens) -> Tensor:
        """Window attention and MLP on packed tokens ``[P, C]`` (float32, overwritten)."""
        qkv = self.qkv(self.norm(x))
        if where.padded:
            qkv = where.scatter(qkv, self.qkv.bias)
        attended = self.attention(qkv, where.window**2, where)
        if where.padded:
            attended = where.gather(attended)
        return self.mlp(x.add_(self.out(attended)))

    def windows_of(self, x: Tensor, window: int) -> Tensor:
        """The same on whole windows ``[windows * window**2, C]``, without padding."""
        return self.mlp(x.add_(self.out(self.attention(self.qkv(self.norm(x)), window**2))))

    def among(self, x: Tensor, keys: Tensor | None = None, pictures: int = 1) -> Tensor:
        """Attention of all given tokens ``[P, C]`` of each picture among themselves, and MLP; `keys` names them for observers."""
        attended = self.attention(self.qkv(self.norm(x)), len(x) // pictures, keys=keys)
        return self.mlp(x.add_(self.out(attended)))

    def read_by(self, x: Tensor, places: Tensor) -> Tensor:
        """Attention of the tokens at some places to all of ``[P, C]``, and their MLP; returns those, ``[R, C]``."""
        attended = self.attention.of_some(self.qkv(self.norm(x)), places)
        return self.mlp(x.index_select(0, places).add_(self.out(attended)))

    def pooled(self, x: Tensor, window: int) -> Tensor:
        """Window attention with pooled queries on whole windows ``[windows * window**2, C]``.

        Returns the tokens of the next stage, ``[windows * (window / 2)**2, 2C]``, float32.
        """
        y = self.norm(x)
        assert self.widen is not None, "blocks that pool also widen"
        wide, qkv = self.widen(y), self.qkv(y)
        shortcut = max_pool(wide.view(len(y) // window**2, window, window, -1))
        attended = self.out(self.attention(qkv, window**2, pool=window))
        return self.mlp(shortcut.reshape(attended.shape).float().add_(attended))

    def pooled_padded(self, x: Tensor, where: WindowTokens, into: WindowTokens) -> Tensor:
        """The same on packed tokens of windows that may be padded.

        Parameters
        ----------
        x
            ``[P, C]`` in the order of `where`.
        where, into
            Windows of the grid, and the same of the pooled grid.

        Returns
        -------
        Tensor
            ``[P / 4, 2C]``, packed in the order of `into`.
        """
        y, window = self.norm(x), where.window
        assert self.widen is not None, "blocks that pool also widen"
        wide, qkv = self.widen(y), self.qkv(y)
        if where.padded:
            wide, qkv = where.scatter(wide, self.widen.bias), where.scatter(qkv, self.qkv.bias)
        shortcut = max_pool(wide.view(-1, window, window, wide.shape[-1])).flatten(0, 2)
        attended = self.attention(qkv, window**2, where, pool=window)
        if into.padded:
            shortcut, attended = into.gather(shortcut), into.gather(attended)
        return self.mlp(shortcut.float().add_(self.out(attended)))


def trunk_block(
    trunk: Hiera, index: int, dtype: torch.dtype, seam: Seam, linear: type[Linear]
) -> Block:
    """Take over block `index` of a trunk, under the name observers know its attention by."""
    stage = sum(index > end for end in trunk.stage_ends) + 1
    kind = "global" if trunk.blocks[index].window_size == 0 else "window"
    site = f"encoder.stage{stage}.block{index}.{kind}"
    return Block(trunk.blocks[index], dtype, site, seam, linear)
