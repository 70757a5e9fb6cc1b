"""Linear layers in int8: weights are quantised once, a row a scale; activations on every call, a tensor a scale.

By torch's dynamic quantised linear layer, in the engine that is the fastest where this was measured and works here. **The
saturation trap:** a CPU without instructions for products of bytes (VNNI) adds pairs of them in 16 bits, where 255 x 127
twice is too much, and the result is cut off without a word. So a trial with the largest numbers there are says how large
weights may be: 127, or 63, with which no pair overflows.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsity.acceleration.model.linear import Activation, Linear

ENGINES = "onednn", "fbgemm", "qnnpack"
"""Of torch, the fastest first; what torch calls x86 takes fbgemm for linear layers."""

LARGEST = 127, 63
"""Whole numbers that stand for a row's largest weight: of 8 bits, and of 7."""

TOLERANCE = 0.02
"""Error of the trial's results, as a share; one that saturates is wrong by half."""


@cache
def engine() -> tuple[str, int] | None:
    """Find the engine to use here, and the largest whole number of a weight that is safe; None where there is none."""
    for name in ENGINES:
        for largest in LARGEST:
            if name in torch.backends.quantized.supported_engines and right_sums(name, largest):
                return name, largest
    return None


def why_not_int8(device: torch.device) -> str | None:
    """Say why linear layers can't run in int8 on a device, or None if they can."""
    if device.type != "cpu":
        return f"the model is on {device}, and int8 is for CPUs"
    return None if engine() else f"none of torch's engines {', '.join(ENGINES)} works on this CPU"


def packed(weight: Tensor, bias: Tensor | None, name: str, largest: int) -> Any:
    """Quantise weights ``[o, i]`` for an engine."""
    weight = weight.detach().float()
    scale = weight.abs().amax(1).double().clamp(min=1e-12) / largest
    zero = torch.zeros(len(weight), dtype=torch.int64)
    own = None if bias is None else bias.detach().float()
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch means to move quantised tensors elsewhere
            whole = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
            return torch.ops.quantized.linear_prepack(whole, own)
    finally:
        torch.backends.quantized.engine = before


def right_sums(name: str, largest: int) -> bool:
    """Whether the largest activations and weights that there are give what they should in an engine."""
    x, weight = torch.ones(16, 64), torch.ones(32, 64)
    try:
        found = torch.ops.quantized.linear_dynamic(x, packed(weight, None, name, largest))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return torch.allclose(found, x @ weight.t(), rtol=TOLERANCE)


class Int8Linear(Linear):
    """A linear layer ``[n, i] -> [n, o]`` of int8 products; activations come and go in the run's number format.

    Parameters
    ----------
    weight, bias
        ``[o, i]`` and ``[o]``; detached and quantised once.
    dtype
        Of the activations.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        found = engine()
        assert found is not None, "a profile that asks for it was refused otherwise"
        self.dtype, self.held = dtype, packed(weight, bias, *found)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def __call__(self, x: Tensor, activation: Activation = "none") -> Tensor:
        y = torch.ops.quantized.linear_dynamic(x.float(), self.held)
        if activation == "gelu":
            y = F.gelu(y)
        elif activation == "relu":
            y = y.relu_()
        return y.to(self.dtype)
