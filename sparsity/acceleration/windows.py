"""Where the tokens of chosen windows lie: on the grid, and in the slots of their windows.

Slots may be empty in two ways: beyond the edge of the grid, and where a window is trimmed to some of its cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sparsity.acceleration.transfer import to_device
from sparsity.select import WindowGrid


@dataclass(frozen=True, eq=False)
class WindowTokens:
    """Tokens to compute in some windows of a square grid, packed without empty slots, window by window.

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
    keys
        Slots that are read as keys, bool ``[windows, 1, 1, window**2]``: all but those that were trimmed; None
        where nothing was.
    """

    window: int
    tokens: Tensor
    slots: Tensor
    ids: Tensor
    keys: Tensor | None

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.ids)

    @property
    def padded(self) -> bool:
        """Whether some slots are empty."""
        return len(self.slots) < self.windows * self.window**2

    def scatter(self, projected: Tensor, bias: Tensor | None) -> Tensor:
        """Lay packed tokens ``[P, C]``, projected with a bias, into slots ``[windows * window**2, C]``.

        Stock SAM 2 pads with zeros before the projection and does not mask them, so padding takes part as keys: all
        that is left of it is the bias.
        """
        if not self.padded:
            return projected
        count = self.windows * self.window**2
        padding = projected.new_zeros(projected.shape[1]) if bias is None else bias
        return padding.repeat(count, 1).index_copy_(0, self.slots, projected)

    def gather(self, slots: Tensor) -> Tensor:
        """Pick the packed tokens ``[P, C]`` out of slots."""
        return slots.index_select(0, self.slots) if self.padded else slots


@lru_cache(maxsize=256)
def window_tokens(
    grid: int,
    window: int,
    kept: tuple[int, ...] | None,
    device: torch.device,
    cells: tuple[int, ...] | None = None,
    cell: int = 2,
) -> WindowTokens:
    """Find the tokens to compute on a ``grid`` x ``grid`` map.

    Parameters
    ----------
    kept
        Windows, ascending; None for all.
    cells
        Squares of ``cell`` x ``cell`` tokens, counted row by row, that the windows are trimmed to; None computes
        them whole. Every window has some.
    """
    side = -(-grid // window)
    index = torch.full((side * window, side * window), -1, dtype=torch.int64)
    index[:grid, :grid] = torch.arange(grid * grid).view(grid, grid)
    ids = torch.arange(side * side) if kept is None else torch.tensor(kept, dtype=torch.int64)
    places = _by_window(index, side)[ids]
    computed, keys = places >= 0, None
    if cells is not None:
        there = torch.zeros((grid // cell) ** 2, dtype=torch.bool)
        there[list(cells)] = True
        there = there.view(grid // cell, -1).repeat_interleave(cell, 0).repeat_interleave(cell, 1)
        trimmed = computed & ~there.flatten()[places]
        computed &= ~trimmed
        if bool(trimmed.any()):
            keys = to_device(~trimmed[:, None, None], device)
    slots = torch.nonzero(computed.flatten())[:, 0]
    tokens = to_device(places.flatten()[slots], device)
    return WindowTokens(window, tokens, to_device(slots, device), to_device(ids, device), keys)


def cells_within(
    grid: WindowGrid,
    windows: tuple[int, ...] | None,
    cells: tuple[int, ...] | None,
    device: torch.device,
) -> Tensor:
    """Cells of 2 x 2 tokens of some windows, or those that they are trimmed to, int64 in the windows' order."""
    return window_tokens(grid.tokens // 2, grid.window // 2, windows, device, cells, 1).tokens


def _by_window(values: Tensor, side: int) -> Tensor:
    """A map of ``side`` x ``side`` windows, window by window, ``[side**2, window**2]``."""
    window = len(values) // side
    return values.view(side, window, side, window).transpose(1, 2).reshape(side * side, window**2)
