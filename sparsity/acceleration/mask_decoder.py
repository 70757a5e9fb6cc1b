"""SAM 2's mask decoder with weights cast once for as long as autocast lasts."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from sam2.modeling.sam.mask_decoder import MaskDecoder
from torch import nn


class CastOnceMaskDecoder(MaskDecoder):
    """Shares all weights of a stock mask decoder and computes the same, bit for bit.

    sam2 runs under inference mode, where autocast casts every weight anew on every call. The attention modules that
    routing listens to are this decoder's own, so that nothing hears what another predictor does in another thread.
    """

    casting_once: Callable[[], AbstractContextManager[None]]

    @classmethod
    def sharing(
        cls, decoder: MaskDecoder, casting_once: Callable[[], AbstractContextManager[None]]
    ) -> CastOnceMaskDecoder:
        """Wrap a mask decoder; names of parameters stay as they are."""
        shared = cls.__new__(cls)
        shared.__dict__ = dict(decoder.__dict__)
        layers = _apart(decoder.transformer.layers)
        for index, layer in enumerate(decoder.transformer.layers):
            attention = {"cross_attn_token_to_image": _apart(layer.cross_attn_token_to_image)}
            layers._modules[str(index)] = _apart(layer, **attention)
        final = _apart(decoder.transformer.final_attn_token_to_image)
        transformer = _apart(decoder.transformer, layers=layers, final_attn_token_to_image=final)
        modules = {**decoder._modules, "transformer": transformer}
        shared.__dict__.update(casting_once=casting_once, _modules=modules)
        return shared

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Decode masks, like stock."""
        with self.casting_once():
            return super().forward(*args, **kwargs)


def _apart(module: nn.Module, **own: nn.Module) -> nn.Module:
    """Copy a module without its hooks: its parameters and submodules are shared, but for those given by name."""
    copied = copy.copy(module)
    hooks: dict[str, Any] = {
        name: OrderedDict() for name in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    }
    copied.__dict__.update(hooks, _modules={**module._modules, **own})
    return copied
