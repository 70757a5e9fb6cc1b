"""Memory attention written out, so that it can be seen, taught and partly hidden."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

NEVER = -1e4  # added to the logits of hidden keys


class _Explicit(TorchFunctionMode):
    """Replace the one attention call inside a module by an explicit softmax."""

    def __init__(self, teacher: AttentionTeacher) -> None:
        super().__init__()
        self.teacher = teacher

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        logits = (query @ key.transpose(-1, -2)).float() / math.sqrt(query.shape[-1])
        bias = self.teacher.bias
        if callable(bias):
            bias = bias(len(self.teacher.weights), logits)
        if bias is not None:
            spare = logits.shape[-1] - bias.shape[-1]
            logits = logits + F.pad(bias, (0, spare))[:, None, None]
        weights = logits.softmax(-1)
        self.teacher.weights.append(weights[:, 0])
        return weights.to(value.dtype) @ value


@dataclass
class AttentionTeacher:
    """Collects the weights of every memory cross-attention layer and can hide keys.

    Attributes
    ----------
    weights : list of Tensor, float32 [N, queries, keys]
        One per layer since the list was last emptied; rows sum to 1.
    bias : Tensor, float32 [N, spatial keys], or a function that returns one, or None
        Added to the logits; keys it does not reach (pointers come last) are not hidden. The
        function is given the layer's number and its logits [N, 1, queries, keys].
    """

    weights: list[torch.Tensor] = field(default_factory=list)
    bias: torch.Tensor | Callable[[int, torch.Tensor], torch.Tensor | None] | None = None

    def attach(self, model: Any) -> None:
        """Write out the softmax of the model's memory cross-attention."""
        for layer in model.memory_attention.layers:
            module = layer.cross_attn_image
            module.forward = self._explicit(module, type(module).forward)

    def detach(self, model: Any) -> None:
        """Give the model its own attention back."""
        for layer in model.memory_attention.layers:
            del layer.cross_attn_image.forward

    def _explicit(self, module: nn.Module, original: Callable) -> Callable:
        def forward(*args, **kwargs):
            with _Explicit(self):
                return original(module, *args, **kwargs)

        return forward


def hidden_keys(
    memory: list[int], present: torch.Tensor, cells: int, chance: float
) -> torch.Tensor | None:
    """Choose, clip by clip, to hide the prompt's and the newest frame's keys.

    A frame is hidden only where another memory frame shows the target.

    Parameters
    ----------
    memory : list of int
        Places of the memory frames.
    present : Tensor, bool [N, T]
    cells : int
        Keys of a memory frame.

    Returns
    -------
    Tensor or None, float32 [N, len(memory) * cells]
    """
    if chance == 0 or len(memory) < 2:
        return None
    shown = present[:, memory]
    bias = torch.zeros(len(present), len(memory), device=present.device)
    for place in (0, len(memory) - 1):
        usable = (bias == 0) & shown
        others = usable.sum(1) - usable[:, place].long()
        hide = (torch.rand(len(present), device=present.device) < chance) & (others > 0)
        bias[:, place] = torch.where(hide, NEVER, bias[:, place])
    return bias.repeat_interleave(cells, 1)


def salient_only(logits: torch.Tensor, frames: int, keep: float) -> torch.Tensor:
    """Return a bias that leaves every memory frame only its salient tokens.

    Saliency is a token's mean softmax within its frame over all queries, as when memory is
    pruned; a model that never saw pruned memory confuses background with target there.

    Parameters
    ----------
    logits : Tensor, float [N, 1, queries, keys]
    frames : int
        Memory frames; pointers come after them and are kept.
    keep : float
        Share of a frame's tokens.

    Returns
    -------
    Tensor, float32 [N, frames * cells]
    """
    cells = logits.shape[2]
    with torch.no_grad():
        spatial = logits[:, 0, :, : frames * cells].unflatten(-1, (frames, cells))
        mass = spatial.softmax(-1).mean(1)
        chosen = mass.topk(max(1, round(keep * cells)), -1).indices
        return torch.full_like(mass, NEVER).scatter_(-1, chosen, 0.0).flatten(1)


def cut_some(
    bias: torch.Tensor | None, memory: int, cut: torch.Tensor, keep: float
) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """Return the bias of every layer where the targets in ``cut`` (bool [N]) keep few tokens."""

    def of_layer(_: int, logits: torch.Tensor) -> torch.Tensor:
        few = torch.where(cut[:, None], salient_only(logits, memory, keep), 0.0)
        return few if bias is None else few + bias

    return of_layer
