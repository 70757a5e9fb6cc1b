"""Sparse memory retrieval (SMR): which tokens of a memory frame are read, and what is remembered of the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import PositiveInt
from torch import Tensor

from probes.layout import MemoryLayout
from probes.mass import keep_count
from sparsity.techniques import KEY, Settings, Share

Stored = Sequence[dict[str, Any]]
"""Results of the frames of a memory layout, then of those whose pointers it has, as `probes.layout.stored_results`."""

Counts = tuple[int, ...]
"""Kept tokens of a memory frame, of each layer."""


class Retrieval(Settings):
    """Which tokens of a memory frame are read; conditioning frames, the newest frame and pointers are read whole.

    Attributes
    ----------
    keep
        Share of a memory frame's tokens that stay, in (0, 1]; one value or one per memory-attention layer.
    queries
        Number of query rows (stratified sample) from which token saliency is measured, or ``"all"``.
    readers
        Tokens of the current frame that read memory: ``"all"``, or on routed frames the ``"routed"`` ones
        alone; the others keep what memory attention added to them when they read it last. Not part of the
        published method.
    """

    keep: Share | tuple[Share, ...] = 0.05
    queries: PositiveInt | Literal["all"] = 1024
    readers: Literal["all", "routed"] = "all"

    def counts(self, layers: int, tokens: int) -> Counts:
        """Tokens of a memory frame that each layer keeps."""
        shares = self.keep if isinstance(self.keep, tuple) else (self.keep,) * layers
        return tuple(keep_count(share, tokens) for share in shares)


ALL_TOKENS = Retrieval(keep=1.0)
"""Memory as stock reads it."""


@dataclass(frozen=True)
class ChosenTokens:
    """Kept tokens of a memory frame, remembered with the result of that frame.

    Attributes
    ----------
    counts
        How many each memory-attention layer reads.
    places
        Where they lie on the grid, layer after layer, int64 ``[sum of counts]``.
    features, position
        What is remembered there, ``[sum of counts, mem]``.
    retrieval
        The settings that chose them.
    memory
        The memory features that they were chosen from.
    """

    counts: Counts
    places: Tensor
    features: Tensor
    position: Tensor
    retrieval: Retrieval
    memory: Tensor

    def follow(self, retrieval: Retrieval, out: dict[str, Any]) -> bool:
        """Whether other settings choose the same tokens, of the memory that a result has now."""
        mine = self.retrieval
        same = (mine.keep, mine.queries) == (retrieval.keep, retrieval.queries)
        return same and out["maskmem_features"] is self.memory


def prunable_frames(layout: MemoryLayout) -> int:
    """How many memory frames may be read in part (method 4.1): neither conditioning frames nor the newest."""
    return sum(not (entry.conditioning or entry.newest) for entry in layout.frames)


def kept_tokens(
    layout: MemoryLayout, stored: Stored, retrieval: Retrieval, stride: int, reverse: bool
) -> tuple[list[ChosenTokens | None], list[int]]:
    """Say what is read of each memory frame.

    Parameters
    ----------
    layout, stored
        Of the frame that is to be tracked, and the results that it names, with the tokens chosen so far.
    stride
        Memory stride: of other frames only the newest is ever read, so nothing is measured for them.

    Returns
    -------
    tuple
        For each memory frame its kept tokens, or None for all; and the positions of the frames whose token
        saliency is to be measured now, at their first recollection (method 4.2).
    """
    tokens: list[ChosenTokens | None] = [None] * len(layout.frames)
    measure: list[int] = []
    if retrieval.keep == 1.0:
        return tokens, measure
    for f, (entry, out) in enumerate(zip(layout.frames, stored, strict=False)):
        if entry.conditioning:
            continue
        chosen = out.get(KEY, {}).get("retrieval", {}).get(reverse)
        if chosen is not None and chosen.follow(retrieval, out):
            tokens[f] = None if entry.newest else chosen
        elif entry.frame % stride == 0:
            measure.append(f)
    return tokens, measure


def remember_choice(
    out: dict[str, Any],
    chosen: tuple[Tensor, Tensor, Tensor],
    counts: Counts,
    retrieval: Retrieval,
    reverse: bool,
) -> None:
    """Keep newly chosen tokens with the result of the frame they belong to, where its memory is stored.

    `chosen` are places, features and positions as in `ChosenTokens`.
    """
    memory = out["maskmem_features"]
    places, features, position = (part.to(memory.device) for part in chosen)
    tokens = ChosenTokens(counts, places, features, position, retrieval, memory)
    out.setdefault(KEY, {}).setdefault("retrieval", {})[reverse] = tokens
