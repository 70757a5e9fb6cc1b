"""Linear layers with weights in the run's dtype, packed for oneDNN where that pays.

Stock SAM 2 casts every weight anew on every frame, because autocast's weight cache does nothing under
``torch.inference_mode``. Here weights are cast once. On a CPU the product itself goes through oneDNN's
linear operator with fused activation; it is private to torch, so it is used only where a small trial
agrees with the public formulation.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["none", "gelu", "relu"]

FRESH_PAGES = 2**25
"""Bytes of a result above which glibc's allocator asks the system for new pages each time: a buffer is faster."""


@cache
def onednn_linear(dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused linear works here in `dtype` and agrees with the public operators."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(8, 16, generator=generator).to(dtype) for _ in range(2))
    expected = F.gelu(F.linear(x, w).float())
    try:
        found = torch.ops.mkldnn._linear_pointwise(x, w, None, "gelu", [], "none")
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return torch.allclose(found.float(), expected, atol=1e-5 if dtype == torch.float32 else 0.2)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """``activation(x @ weight.T + bias)`` by oneDNN, with a packed weight."""
    algorithm = "none" if activation == "gelu" else ""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], algorithm)


opaque_packed_linear = torch.library.custom_op(
    "efficient_sam2::packed_linear", packed_linear, mutates_args=()
)
"""The same as one operator of compiled code, which can't read packed weights."""


@opaque_packed_linear.register_fake
def _(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[0])


def product(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """``x @ weight.T`` by the fastest operator of the device; `x` ``[n, i]``, `weight` ``[o, i]``.

    `out` is a buffer that may be written; the result is what is returned.
    """
    large = out is not None and out.nbytes > FRESH_PAGES
    if x.dtype == torch.float32 and x.device.type == "cpu" and not large and onednn_linear(x.dtype):
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return torch.mm(x, weight.t(), out=out)


class Linear:
    """A linear layer ``[n, i] -> [n, o]`` with weights held in one dtype, and an optional fused activation.

    Parameters
    ----------
    weight, bias
        ``[o, i]`` and ``[o]``; detached and cast once.
    dtype
        Of the products.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = weight.detach().to(dtype).contiguous()
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.packed: Tensor | None = None
        if weight.device.type == "cpu" and onednn_linear(dtype):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, 4096)

    @classmethod
    def of(cls, layer: nn.Linear, dtype: torch.dtype) -> Linear:
        """Take over a torch layer."""
        return cls(layer.weight, layer.bias, dtype)

    def __call__(self, x: Tensor, activation: Activation = "none") -> Tensor:
        if self.packed is not None:
            run = opaque_packed_linear if torch.compiler.is_compiling() else packed_linear
            return run(x, self.packed, self.bias, activation)
        y = F.linear(x, self.weight, self.bias)
        if activation == "gelu":
            return F.gelu(y)
        return y.relu_() if activation == "relu" else y


class Norm:
    """A layer norm in float32 whose result is cast to the products' dtype."""

    def __init__(self, layer: nn.LayerNorm, dtype: torch.dtype) -> None:
        self.shape, self.eps, self.dtype = list(layer.normalized_shape), layer.eps, dtype
        self.weight, self.bias = layer.weight.detach().float(), layer.bias.detach().float()

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps).to(self.dtype)
