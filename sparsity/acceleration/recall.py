"""Memory attention of a tracked frame: each object's memory is collected, read, and what was chosen is remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.layout import MemoryLayout
from sparsity.acceleration.bank import collect
from sparsity.acceleration.encoder import window_grid
from sparsity.acceleration.memory import Readers
from sparsity.acceleration.pruning import kept_tokens, remember_choice
from sparsity.acceleration.session import KEY
from sparsity.acceleration.token_saliency import query_sample
from sparsity.acceleration.tracked import Tracked
from sparsity.acceleration.windows import window_tokens

if TYPE_CHECKING:
    from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor


def recall_memory(
    predictor: EfficientSAM2VideoPredictor,
    tracked: Tracked,
    layouts: tuple[MemoryLayout, ...],
    feature: Tensor,
    position: Tensor,
    frame: int,
) -> Tensor:
    """Condition a frame's features on the memory of each tracked object.

    Parameters
    ----------
    layouts
        Of each object's memory.
    feature, position
        Of the frame, ``[tokens, C]``.

    Returns
    -------
    Tensor
        ``[objects, tokens, C]`` float32; `tracked` gets the banks and recalls.
    """
    exact = predictor.profile.technique("memory_attention")
    attention, memory = predictor._attention, predictor._memory
    stride, reverse = predictor.memory_temporal_stride_for_eval, tracked.reverse
    with torch.autocast(predictor.device.type, enabled=False):
        for outputs, layout in zip(tracked.outputs, layouts, strict=True):
            tokens, measure, cut = kept_tokens(layout, outputs, memory, stride, reverse)
            if tracked.whole:
                tokens, cut = [None] * len(tokens), False
            bank = collect(
                predictor, attention.dtype, layout, outputs, tokens, measure,
                cut=cut, version=attention.version,
            )  # fmt: skip
            tracked.banks.append(bank)
        readers = _readers(predictor, tracked, frame)
        queries = len(feature) if readers is None else len(readers.places)
        x, tracked.recalls = attention(
            feature, position, tracked.banks, memory, exact=exact, readers=readers, run=predictor._run,
            sample=query_sample(queries, memory.queries, frame, feature.device),
        )  # fmt: skip
    for outputs, bank, recall in zip(tracked.outputs, tracked.banks, tracked.recalls, strict=True):
        remember_choice(outputs, bank, recall, memory, reverse)
    return x


def _readers(
    predictor: EfficientSAM2VideoPredictor, tracked: Tracked, frame: int
) -> Readers | None:
    """The tokens that read memory on a routed frame, where the profile asks for that and it can be had."""
    if predictor._memory.readers == "all" or tracked.windows is None:
        return None
    added = []
    for b in range(len(tracked.outputs)):
        extras = (tracked.adjacent(b) or {}).get(KEY)
        if extras is None or extras.added is None:
            return None
        added.append(extras.added)
    grid = window_grid(predictor)
    where = window_tokens(grid.tokens, grid.window, tracked.windows, added[0].device, tracked.cells)
    return Readers(where.tokens, torch.stack(added))
