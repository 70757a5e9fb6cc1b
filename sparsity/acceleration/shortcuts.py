"""Shortcuts: what tokens of windows that are not computed go through instead of stage 3's blocks.

A shortcut maps the tokens as they enter stage 3's routed blocks, ``[P, C]`` float32, to what enters the
last global block. Token-wise, so windows and padding play no role.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_safetensors
from torch import Tensor

from probes.errors import InputError
from sparsity.profile import Shortcut

ShortcutFunction = Callable[[Tensor], Tensor]
"""From all tokens of the grid, ``[tokens, C]``, to as many; the input is not changed."""


def load_shortcut(
    shortcut: Shortcut, channels: int, device: torch.device
) -> ShortcutFunction | None:
    """Build the function of a profile's shortcut; None for ``cached``, whose data belongs to a video.

    Parameters
    ----------
    shortcut
        Kind, and the file of its weights.
    channels
        Channels of encoder stage 3, to be matched by the weights.

    Raises
    ------
    InputError
        The file is missing, is another file than the profile names, or is for another model (the shapes
        found and expected are given).
    """
    if shortcut.kind == "cached":
        return None
    if shortcut.kind == "identity":
        return _unchanged
    weights = {name: value.to(device) for name, value in _read(shortcut).items()}
    expected = _SHAPES[shortcut.kind](channels)
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != expected:
        raise InputError(
            f"shortcut {shortcut.file} holds {_brief(found)}; expected {_brief(expected)} for a {shortcut.kind} "
            f"shortcut of a model with {channels} channels in stage 3; use the file made for this model"
        )
    weights = {name: value.float() for name, value in weights.items()}
    return _Fitted(_FORMULAS[shortcut.kind], weights)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A shortcut with weights, which follow the tokens to their device, as a model may be moved."""

    formula: Callable[[Tensor, dict[str, Tensor]], Tensor]
    weights: dict[str, Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        for name, weight in self.weights.items():
            self.weights[name] = weight.to(x.device)
        return self.formula(x, self.weights)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _mean(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    return x + weights["mean"]


def _ridge(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    return x + F.linear(x, weights["weight"], weights["bias"])


def bottleneck(x: Tensor, weights: dict[str, Tensor], hidden: Tensor | None = None) -> Tensor:
    """The paper's adapter, ``x + U relu(D LN(x))`` (method section, shortcut branch; LN eps 1e-6).

    `hidden` ``[P, C / 2]`` multiplies the hidden units: dropout, in training.
    """
    y = F.layer_norm(x, x.shape[-1:], weights["norm.weight"], weights["norm.bias"], 1e-6)
    y = F.linear(y, weights["down_project.weight"], weights["down_project.bias"]).relu_()
    if hidden is not None:
        y = y * hidden
    return x + F.linear(y, weights["up_project.weight"], weights["up_project.bias"])


_Formula = Callable[[Tensor, dict[str, Tensor]], Tensor]

_FORMULAS: dict[str, _Formula] = {"mean": _mean, "ridge": _ridge, "bottleneck": bottleneck}

_SHAPES: dict[str, Callable[[int], dict[str, tuple[int, ...]]]] = {
    "mean": lambda c: {"mean": (c,)},
    "ridge": lambda c: {"weight": (c, c), "bias": (c,)},
    "bottleneck": lambda c: {
        "norm.weight": (c,),
        "norm.bias": (c,),
        "down_project.weight": (c // 2, c),
        "down_project.bias": (c // 2,),
        "up_project.weight": (c, c // 2),
        "up_project.bias": (c,),
    },
}


def _read(shortcut: Shortcut) -> dict[str, Tensor]:
    path = Path(str(shortcut.file))
    if not path.is_file():
        raise InputError(
            f"shortcut file {path} does not exist; give the path of a .safetensors or .pth file"
        )
    data = path.read_bytes()
    if shortcut.sha256 is not None and hashlib.sha256(data).hexdigest() != shortcut.sha256:
        raise InputError(
            f"shortcut file {path} is not the one the profile was made with (SHA-256 differs); fit it anew"
        )
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(data)
        return dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except Exception as error:
        raise InputError(
            f"shortcut file {path} cannot be read ({type(error).__name__}); expected .safetensors or .pth"
        ) from None


def _brief(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
