"""The adapter: what tokens that are not computed go through instead of stage 3's blocks, the paper's shortcut branch.

It maps the tokens as they enter stage 3's routed blocks, ``[P, C]`` float32, to what enters the last global
block. Token-wise, so windows and padding play no role.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from safetensors.torch import load as load_safetensors
from torch import Tensor

from probes.errors import InputError
from sparsity.techniques import Settings


class Adapter(Settings):
    """What a token that is not computed goes through instead of the blocks of stage 3.

    ``identity`` passes it unchanged, ``ridge`` is a linear map, ``bottleneck`` the paper's two-layer adapter,
    ``cached`` adds the change that the blocks made when the token was last computed.

    Attributes
    ----------
    file
        Weights of a fitted kind; `sparsity.profile.load_profile` looks for a relative one beside the profile.
    sha256
        Of that file; another one is refused. None accepts any.
    """

    kind: Literal["identity", "ridge", "bottleneck", "cached"] = "identity"
    file: str | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _file_when_fitted(self) -> Adapter:
        fitted = self.kind in _FORMULAS
        if fitted and self.file is None:
            raise ValueError(
                f"adapter.kind {self.kind!r} needs adapter.file, the safetensors or .pth file of its weights"
            )
        if not fitted and self.file is not None:
            raise ValueError(
                f"adapter.kind {self.kind!r} takes no file; remove adapter.file or choose another kind"
            )
        return self


AdapterFunction = Callable[[Tensor], Tensor]
"""From all tokens of the grid, ``[tokens, C]``, to as many; the input is not changed."""


def load_adapter(adapter: Adapter, channels: int, device: torch.device) -> AdapterFunction | None:
    """Build the function of a profile's adapter; None for ``cached``, whose data belongs to a video.

    Parameters
    ----------
    adapter
        Kind, and the file of its weights.
    channels
        Channels of encoder stage 3, to be matched by the weights.

    Raises
    ------
    InputError
        The file is missing, is another file than the profile names, or is for another model (the shapes
        found and expected are given).
    """
    if adapter.kind == "cached":
        return None
    if adapter.kind == "identity":
        return _unchanged
    weights = {name: value.to(device) for name, value in _read(adapter).items()}
    expected = _SHAPES[adapter.kind](channels)
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != expected:
        raise InputError(
            f"adapter {adapter.file} holds {_brief(found)}; expected {_brief(expected)} for a {adapter.kind} "
            f"adapter of a model with {channels} channels in stage 3; use the file made for this model"
        )
    weights = {name: value.float() for name, value in weights.items()}
    return _Fitted(_FORMULAS[adapter.kind], weights)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """An adapter with weights, which follow the tokens to their device, as a model may be moved."""

    formula: Callable[[Tensor, dict[str, Tensor]], Tensor]
    weights: dict[str, Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        for name, weight in self.weights.items():
            self.weights[name] = weight.to(x.device)
        return self.formula(x, self.weights)


def _unchanged(x: Tensor) -> Tensor:
    return x


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

_FORMULAS: dict[str, _Formula] = {"ridge": _ridge, "bottleneck": bottleneck}

_SHAPES: dict[str, Callable[[int], dict[str, tuple[int, ...]]]] = {
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


def _read(adapter: Adapter) -> dict[str, Tensor]:
    path = Path(str(adapter.file))
    if not path.is_file():
        raise InputError(
            f"adapter file {path} does not exist; give the path of a .safetensors or .pth file"
        )
    data = path.read_bytes()
    if adapter.sha256 is not None and hashlib.sha256(data).hexdigest() != adapter.sha256:
        raise InputError(
            f"adapter file {path} is not the one the profile was made with (SHA-256 differs); fit it anew"
        )
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(data)
        return dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except Exception as error:
        raise InputError(
            f"adapter file {path} cannot be read ({type(error).__name__}); expected .safetensors or .pth"
        ) from None


def _brief(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
