"""Linear layers with weights in the run's dtype, packed for oneDNN where that pays, and rotary phases on sorted channels.

Stock SAM 2 casts every weight anew on every frame, because autocast's weight cache does nothing under
``torch.inference_mode``. Here weights are cast once. On a CPU the product itself goes through oneDNN's
linear operator with fused activation, or through the public one, whichever is faster there. The former is private to
torch, so it is used only where a small trial agrees with the public formulation.

The rotation works on real and imaginary halves instead of neighbouring pairs: a permutation of the
projections' rows, which no product of queries and keys notices, and no copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsity.acceleration.model.choice import chosen

Activation = Literal["none", "gelu", "relu"]

FRESH_PAGES = 2**25
"""Bytes of a result above which glibc's allocator asks the system for new pages each time: a buffer is faster."""

WORTH_TIMING = 2**25
"""Products of numbers in a layer's call that it takes to tell its kernels apart by a clock; smaller calls take the packed one."""

CLEARLY, TRIES = 1.05, 5
"""How many times as fast as the packed kernel the public one must be, and how often both are tried."""


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


def product(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """``x @ weight.T`` by the fastest operator of the device; `x` ``[n, i]``, `weight` ``[o, i]``.

    `out` is a buffer that may be written; the result is what is returned.
    """
    large = out is not None and out.nbytes > FRESH_PAGES
    if not large and _by_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return torch.mm(x, weight.t(), out=out)


def products(x: Tensor, weight: Tensor) -> Tensor:
    """The same of each of a batch; `x` ``[B, n, i]``, `weight` ``[B, o, i]``."""
    if len(x) == 1 or _by_onednn(x):
        each = [product(one, its) for one, its in zip(x, weight, strict=True)]
        return each[0][None] if len(each) == 1 else torch.stack(each)
    return torch.bmm(x, weight.transpose(1, 2))


def _by_onednn(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and onednn_linear(x.dtype)


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
        self.worth_timing = -(-WORTH_TIMING // self.weight.numel())
        """Rows from which a call is large enough for a clock."""
        self.plain: dict[tuple[Activation, int, bool], bool] = {}
        """Whether the plain kernel is taken, by activation, number of threads and whether torch is to be deterministic."""

    @classmethod
    def of(cls, layer: nn.Linear, dtype: torch.dtype) -> Linear:
        """Take over a torch layer."""
        return cls(layer.weight, layer.bias, dtype)

    def __call__(self, x: Tensor, activation: Activation = "none") -> Tensor:
        if self.packed is None:
            return self._plain(x, activation)
        if len(x) < self.worth_timing:
            return self._packed(x, activation)
        how = activation, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        if how not in self.plain:
            self.plain[how] = self._chosen(x[: self.worth_timing], activation) == "plain"
        return self._plain(x, activation) if self.plain[how] else self._packed(x, activation)

    def _chosen(self, x: Tensor, activation: Activation) -> str:
        """The kernel that the clock found for layers of this kind."""
        kernels = {"packed": self._packed, "plain": self._plain}
        tried = {name: partial(run, x, activation) for name, run in kernels.items()}
        kind = "linear", *self.weight.shape, activation, x.dtype
        return chosen(kind, tried, CLEARLY, TRIES)

    def _packed(self, x: Tensor, activation: Activation) -> Tensor:
        """By oneDNN's own layout of the weights, with the activation fused."""
        algorithm = "none" if activation == "gelu" else ""
        return torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, activation, [], algorithm
        )

    def _plain(self, x: Tensor, activation: Activation) -> Tensor:
        """By torch's public operators."""
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


class Mlp:
    """A norm and two linear layers with an activation between them, added to ``[..., C]`` float32, which is overwritten."""

    def __init__(
        self,
        norm: nn.LayerNorm,
        up: nn.Linear,
        down: nn.Linear,
        activation: Activation,
        dtype: torch.dtype,
        linear: type[Linear] = Linear,
    ) -> None:
        self.norm, self.activation = Norm(norm, dtype), activation
        self.up, self.down = linear.of(up, dtype), linear.of(down, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        y = self.norm(x).view(-1, x.shape[-1])
        return x.add_(self.down(self.up(y, self.activation)).view_as(x))


@dataclass(frozen=True)
class Phases:
    """Cosine and sine of the rotary phases of grid places, ``[..., tokens, C / 2]`` each, in the products' dtype."""

    cos: Tensor
    sin: Tensor

    def at(self, places: Tensor) -> Phases:
        """Those of some places, int64 ``[..., K]``."""
        cos, sin = (t.index_select(0, places.flatten()) for t in (self.cos, self.sin))
        shape = (*places.shape, cos.shape[-1])
        return Phases(cos.view(shape), sin.view(shape))


def rotated(x: Tensor, phases: Phases, out: Tensor | None = None) -> Tensor:
    """Turn channels by their rotary phases.

    Parameters
    ----------
    x
        ``[..., N, C]``; the first half of the channels is the real part, the second the imaginary one.
    phases
        Of `N` places.
    out
        Where to write.
    """
    real, imaginary = x.chunk(2, dim=-1)
    out = torch.empty_like(x) if out is None else out
    turned_real, turned_imaginary = out.chunk(2, dim=-1)
    torch.mul(real, phases.cos, out=turned_real).addcmul_(imaginary, phases.sin, value=-1)
    torch.mul(real, phases.sin, out=turned_imaginary).addcmul_(imaginary, phases.cos)
    return out


def halves(layer: torch.nn.Linear) -> tuple[Tensor, Tensor]:
    """Sort a projection's rows so that real parts come first: pairs (2i, 2i + 1) become (i, C/2 + i)."""
    weight = torch.cat([layer.weight[0::2], layer.weight[1::2]])
    return weight, torch.cat([layer.bias[0::2], layer.bias[1::2]])
