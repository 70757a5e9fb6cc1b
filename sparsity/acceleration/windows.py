"""Where the tokens of chosen windows lie: on the grid, and in the padded slots of their windows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sparsity.acceleration.transfer import to_device


@dataclass(frozen=True, eq=False)
class WindowTokens:
    """Tokens of some windows of a square grid, packed without padding, window by window.

    Attributes
    ----------
    window
        Tokens per side of a window.
    tokens
        Index on the grid of each packed token, int64 ``[P]``.
    slots
        Index of each packed token among the ``windows * window**2`` slots, int64 ``[P]``.
    ids
        Index of each window on the window grid, int64 ``[windows]``.
    """

    window: int
    tokens: Tensor
    slots: Tensor
    ids: Tensor

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.ids)

    @property
    def padded(self) -> bool:
        """Whether some slots are padding."""
        return len(self.slots) < self.windows * self.window**2

    def scatter(self, packed: Tensor) -> Tensor:
        """Lay packed tokens ``[P, C]`` into slots ``[windows * window**2, C]``, zero where padded.

        Stock SAM 2 pads with zeros *after* norm1 and does not mask them, so padding takes part as keys.
        """
        if not self.padded:
            return packed
        slots = packed.new_zeros(self.windows * self.window**2, packed.shape[1])
        return slots.index_copy_(0, self.slots, packed)

    def gather(self, slots: Tensor) -> Tensor:
        """Pick the packed tokens ``[P, C]`` out of slots."""
        return slots.index_select(0, self.slots) if self.padded else slots


@lru_cache(maxsize=256)
def window_tokens(
    grid: int, window: int, kept: tuple[int, ...] | None, device: torch.device
) -> WindowTokens:
    """Find the tokens of the kept windows (all when None) of a ``grid`` x ``grid`` map."""
    side = -(-grid // window)
    index = torch.full((side * window, side * window), -1, dtype=torch.int64)
    index[:grid, :grid] = torch.arange(grid * grid).view(grid, grid)
    by_window = (
        index.view(side, window, side, window).transpose(1, 2).reshape(side * side, window * window)
    )
    ids = torch.arange(side * side) if kept is None else torch.tensor(kept, dtype=torch.int64)
    chosen = by_window[ids].reshape(-1)
    slots = torch.nonzero(chosen >= 0)[:, 0]
    on_device = (to_device(tensor, device) for tensor in (chosen[slots], slots, ids))
    return WindowTokens(window, *on_device)
