"""Rotary phases on channels sorted by halves.

The rotation works on real and imaginary halves instead of neighbouring pairs: a permutation of the
projections' rows, which no product of queries and keys notices, and no copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Phases:
    """Cosine and sine of the rotary phases of grid places, ``[tokens, C / 2]`` each, in the products' dtype."""

    cos: Tensor
    sin: Tensor

    def at(self, places: Tensor) -> Phases:
        """Those of some places, int64 ``[K]``."""
        return Phases(self.cos.index_select(0, places), self.sin.index_select(0, places))


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
    if torch.compiler.is_compiling():  # which fuses this, but can't write into views
        turned = (
            real * phases.cos - imaginary * phases.sin,
            real * phases.sin + imaginary * phases.cos,
        )
        return torch.cat(turned, -1)
    out = torch.empty_like(x) if out is None else out
    turned_real, turned_imaginary = out.chunk(2, dim=-1)
    torch.mul(real, phases.cos, out=turned_real).addcmul_(imaginary, phases.sin, value=-1)
    torch.mul(real, phases.sin, out=turned_imaginary).addcmul_(imaginary, phases.cos)
    return out


def halves(layer: torch.nn.Linear) -> tuple[Tensor, Tensor]:
    """Sort a projection's rows so that real parts come first: pairs (2i, 2i + 1) become (i, C/2 + i)."""
    weight = torch.cat([layer.weight[0::2], layer.weight[1::2]])
    return weight, torch.cat([layer.bias[0::2], layer.bias[1::2]])
