"""A block of the Hiera trunk on packed tokens, with weights in the run's dtype.

The same arithmetic as ``MultiScaleBlock`` of sam2 (``modeling/backbones/hieradet.py``), on tokens that are
already in window order: no partition and un-partition between blocks, no padding tokens through the MLP,
the residual in float32 and updated in place.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from sam2.modeling.backbones.hieradet import Hiera, MultiScaleBlock
from torch import Tensor

from probes.errors import InputError
from probes.seam import Seam
from sparsity.acceleration.attention import attend
from sparsity.acceleration.compiled import compilable
from sparsity.acceleration.linear import Linear, Norm
from sparsity.acceleration.windows import WindowTokens

POOLED = 4
"""Tokens that one pooled key stands for: 2 x 2 neighbours."""


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
    """

    def __init__(self, block: MultiScaleBlock, dtype: torch.dtype, site: str, seam: Seam) -> None:
        self.site, self.seam, self.heads = site, seam, block.attn.num_heads
        self.norm1, self.norm2 = Norm(block.norm1, dtype), Norm(block.norm2, dtype)
        self.qkv, self.out = Linear.of(block.attn.qkv, dtype), Linear.of(block.attn.proj, dtype)
        self.up, self.down = (Linear.of(layer, dtype) for layer in block.mlp.layers)
        self.widen = Linear.of(block.proj, dtype) if block.dim != block.dim_out else None

    @compilable
    def windowed(self, x: Tensor, where: WindowTokens) -> Tensor:
        """Window attention and MLP on packed tokens ``[P, C]`` (float32, overwritten)."""
        qkv = where.scatter(self.qkv(self.norm1(x)), self.qkv.bias)
        attended = self._attention(qkv, where.window**2, where)
        x.add_(self.out(where.gather(attended)))
        return self._mlp(x)

    @compilable
    def windows_of(self, x: Tensor, window: int) -> Tensor:
        """The same on whole windows ``[windows * window**2, C]``, without padding."""
        x.add_(self.out(self._attention(self.qkv(self.norm1(x)), window**2)))
        return self._mlp(x)

    @compilable
    def among(self, x: Tensor, keys: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
        """Attention of all given tokens ``[P, C]`` among themselves, and MLP; `keys` names them for observers.

        `beside` ``[B, C]`` are means of `POOLED` tokens each that are read too, and weigh as much.
        """
        y = self.norm1(x)
        if beside is None:
            qkv = self.qkv(y)
            return self._mlp(x.add_(self.out(self._attention(qkv, len(x), keys=keys))))
        self._refuse_observers(
            "the technique 'pooled_background' is on", "its pooled keys are no tokens"
        )
        q, k, v = self._split(self.qkv(torch.cat([y, self.norm1(beside)])))
        weight = k.new_zeros(1, 1, 1, k.shape[2])
        weight[..., len(x) :].fill_(math.log(POOLED))
        attended = F.scaled_dot_product_attention(q[:, :, : len(x)], k, v, attn_mask=weight)
        return self._mlp(x.add_(self.out(attended.transpose(1, 2).reshape(len(x), -1))))

    @compilable
    def read_by(self, x: Tensor, places: Tensor) -> Tensor:
        """Attention of the tokens at some places to all of ``[P, C]``, and their MLP; returns those, ``[R, C]``."""
        q, k, v = self._split(self.qkv(self.norm1(x)))
        q = q.index_select(2, places)
        if self.seam.observers:
            self.seam.tell(self.site, q, k, v, queries=places)
        attended = attend(q, k, v).transpose(1, 2).reshape(len(places), -1)
        return self._mlp(x.index_select(0, places).add_(self.out(attended)))

    @compilable
    def pooled(self, x: Tensor, window: int) -> Tensor:
        """Window attention with pooled queries on whole windows ``[windows * window**2, C]``.

        Returns the tokens of the next stage, ``[windows * (window / 2)**2, 2C]``, float32.
        """
        y = self.norm1(x)
        assert self.widen is not None, "blocks that pool also widen"
        shortcut = max_pool(self.widen(y).view(len(y) // window**2, window, window, -1))
        attended = self.out(self._attention(self.qkv(y), window**2, pool=window))
        return self._mlp(shortcut.reshape(attended.shape).float().add_(attended))

    @compilable
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
        y, window = self.norm1(x), where.window
        assert self.widen is not None, "blocks that pool also widen"
        wide = where.scatter(self.widen(y), self.widen.bias)
        shortcut = into.gather(max_pool(wide.view(where.windows, window, window, -1)).flatten(0, 2))
        qkv = where.scatter(self.qkv(y), self.qkv.bias)
        attended = self._attention(qkv, window**2, where, pool=window)
        return self._mlp(shortcut.float().add_(self.out(into.gather(attended))))

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[1, h, P, c]`` of one sequence of tokens."""
        q, k, v = qkv.view(1, len(qkv), 3, self.heads, -1).transpose(1, 3).unbind(2)
        return q, k, v

    def _refuse_observers(self, what: str, why: str) -> None:
        if self.seam.observers:
            raise InputError(
                f"{what} while attention is observed; expected keys that can be named, and {why}; switch it off "
                "to observe"
            )

    def _attention(
        self,
        qkv: Tensor,
        size: int,
        where: WindowTokens | None = None,
        keys: Tensor | None = None,
        pool: int = 0,
    ) -> Tensor:
        """Attention inside each window of ``[windows * size, 3C]``, to the slots that `where` has, if given.

        Returns ``[windows * size, C]``, a quarter of it with pooled queries.
        """
        # from the shape: compiled code would take a number that is given for a constant
        windows = len(qkv) // size
        q, k, v = qkv.view(windows, size, 3, self.heads, -1).unbind(2)  # [windows, size, h, c]
        if pool:
            q = max_pool(q.reshape(windows, pool, pool, -1)).view(
                windows, size // 4, self.heads, -1
            )
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if where is not None and where.keys is not None:
            self._refuse_observers("windows are trimmed", "a trimmed window lacks some")
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=where.keys)
        else:
            if self.seam.observers:
                self.seam.tell(self.site, q, k, v, keys=keys if where is None else where.ids)
            attended = attend(q, k, v)
        return attended.transpose(1, 2).reshape(windows * q.shape[2], -1)

    def _mlp(self, x: Tensor) -> Tensor:
        return x.add_(self.down(self.up(self.norm2(x), "gelu")))


def trunk_block(trunk: Hiera, index: int, dtype: torch.dtype, seam: Seam) -> Block:
    """Take over block `index` of a trunk, under the name observers know its attention by."""
    stage = sum(index > end for end in trunk.stage_ends) + 1
    kind = "global" if trunk.blocks[index].window_size == 0 else "window"
    return Block(trunk.blocks[index], dtype, f"encoder.stage{stage}.block{index}.{kind}", seam)


def max_pool(x: Tensor) -> Tensor:
    """Maximum over 2 x 2 neighbours of ``[B, H, W, C]``, without changing the layout."""
    b, h, w, c = x.shape
    x = x.view(b, h // 2, 2, w // 2, 2, c)
    return torch.maximum(
        torch.maximum(x[:, :, 0, :, 0], x[:, :, 0, :, 1]),
        torch.maximum(x[:, :, 1, :, 0], x[:, :, 1, :, 1]),
    )
