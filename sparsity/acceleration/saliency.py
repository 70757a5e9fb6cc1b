"""Where the mask decoder's output tokens look: the saliency that routing falls back on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

import torch
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import Attention
from torch import Tensor


class TokenToImage:
    """Inputs of the decoder's three token-to-image attentions during its last run."""

    def __init__(self, output_tokens: int) -> None:
        self.output_tokens = output_tokens
        self.calls: list[tuple[Attention, Tensor, Tensor]] = []

    def saliency(self, grid: int) -> Tensor | None:
        """Mean attention over layers, heads and output tokens (method 2.3), ``[B, grid, grid]`` float32.

        Every map sums to one. None where the decoder did not run.
        """
        if not self.calls:
            return None
        maps = []
        for module, tokens, image in self.calls:
            q = module._separate_heads(
                module.q_proj(tokens[:, : self.output_tokens]), module.num_heads
            )
            k = module._separate_heads(module.k_proj(image), module.num_heads)
            # scaled first, as float16 overflows
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            maps.append(logits.float().softmax(-1).mean((1, 2)))
        return torch.stack(maps).mean(0).view(-1, grid, grid)


@contextmanager
def token_to_image(decoder: MaskDecoder) -> Iterator[TokenToImage]:
    """Note what the decoder's token-to-image attentions are given in this thread, as long as the context lasts."""
    object_token = 1 if decoder.pred_obj_scores else 0
    noted = TokenToImage(output_tokens=object_token + 1 + decoder.num_mask_tokens)
    transformer = decoder.transformer
    modules = [layer.cross_attn_token_to_image for layer in transformer.layers]
    modules.append(transformer.final_attn_token_to_image)
    here = get_ident()  # predictors in other threads may share the decoder

    def note(module: Attention, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if get_ident() != here:
            return
        if len(noted.calls) == len(modules):
            noted.calls.clear()
        noted.calls.append((module, kwargs["q"], kwargs["k"]))

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()
