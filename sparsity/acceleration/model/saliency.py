"""Where the mask decoder's output tokens look: the saliency that routing falls back on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Literal

import torch
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import Attention
from torch import Tensor

from sparsity.acceleration.model.linear import products
from sparsity.acceleration.model.windows import to_device
from sparsity.techniques.select import sample_rows


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


SALIENCY_ROWS = 512
"""Query rows of one block when token saliency is measured."""

SUMMED_ROWS = 64
"""Rows, at most, that are summed in the products' dtype before float32 takes over."""


def token_saliency(queries: Tensor, keys: Tensor, sample: Tensor | None) -> Tensor:
    """Mean attention that each token of one memory frame receives among that frame's own tokens (method 4.2).

    Parameters
    ----------
    queries, keys
        After RoPE, ``[B, N, C]`` and ``[B, tokens, C]``.
    sample
        Query rows to read, from `query_sample`; None for all.

    Returns
    -------
    Tensor
        float32 ``[B, tokens]``, sums to one.
    """
    if sample is not None:
        queries = queries.index_select(1, sample)
    objects, tokens = keys.shape[:2]
    total = torch.zeros(objects, tokens, device=keys.device)
    scaled = queries * queries.shape[-1] ** -0.5
    for block in scaled.split(SALIENCY_ROWS, 1):
        weights = products(block, keys)
        torch.softmax(weights, -1, out=weights)
        summed = math.gcd(block.shape[1], SUMMED_ROWS)
        parts = weights.view(objects, -1, summed, tokens).sum(2)
        total += parts.sum(1, dtype=torch.float32)
    return total / queries.shape[1]


def query_sample(
    rows: int, count: int | Literal["all"], seed: int, device: torch.device
) -> Tensor | None:
    """`sample_rows` on a device; None for all rows."""
    if count == "all" or count >= rows:
        return None
    return to_device(sample_rows(rows, count, seed), device)


class SeenSaliency:
    """The same from attention weights that are computed anyway, over more keys than the frame's own.

    Inside the frame's columns they are the frame's own attention up to each row's sum. A row that gives the
    frame less than can be told from zero says nothing about it and does not count.

    Parameters
    ----------
    first, tokens
        The frame's columns.
    queries
        Number of query rows.
    sample
        Those that are read; None for all.
    """

    def __init__(
        self, first: int, tokens: int, queries: int, sample: Tensor | None, device: torch.device
    ) -> None:
        self.columns = slice(first, first + tokens)
        self.total = torch.zeros(tokens, device=device)
        if sample is None:
            self.counts = torch.ones(queries, device=device)
        else:
            self.counts = torch.zeros(queries, device=device).index_fill_(0, sample, 1.0)

    def see(self, weights: Tensor, row: int) -> None:
        """Take in a block of weights ``[rows, keys]``, the first of which is query `row`."""
        own = weights[:, self.columns]
        mass = own.sum(-1, dtype=torch.float32)
        counts = self.counts[row : row + len(own)]
        told = mass > torch.finfo(own.dtype).tiny  # of less the inverse may overflow
        share = torch.where(told, counts / mass, 0.0).to(own.dtype)
        self.total += torch.mv(own.t(), share)

    def result(self) -> Tensor:
        """float32 ``[tokens]``, sums to one."""
        return self.total / self.total.sum()


@dataclass(frozen=True)
class Watch:
    """Frames whose token saliency is wanted from one call: where each one's keys begin, and how it is sampled."""

    firsts: tuple[int, ...]
    tokens: int
    sample: Tensor | None

    def measure(self, queries: Tensor, keys: Tensor) -> list[Tensor]:
        """Of each frame ``[B, tokens]``, by products of its own."""
        spans = [keys[:, first : first + self.tokens] for first in self.firsts]
        return [token_saliency(queries, span, self.sample) for span in spans]

    def seen(self, queries: Tensor) -> list[SeenSaliency]:
        """Of each frame of one object, to be read off the attention's weights."""
        rest = self.tokens, len(queries), self.sample, queries.device
        return [SeenSaliency(first, *rest) for first in self.firsts]
