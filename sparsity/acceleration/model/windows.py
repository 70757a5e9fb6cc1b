"""Where the tokens of chosen cells lie: on the grid, and in the slots of their windows; and how they get to the device.

Slots may be empty in two ways: beyond the edge of the grid, and where a window is trimmed to some of its cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sparsity.techniques.select import WindowGrid


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
    padded
        Whether some slots are empty.
    """

    window: int
    tokens: Tensor
    slots: Tensor
    ids: Tensor
    keys: Tensor | None
    padded: bool

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.ids)

    def in_each(self, pictures: int, tokens: int) -> WindowTokens:
        """The same windows in each of several pictures of so many tokens, picture by picture; none may be trimmed."""
        if pictures == 1:
            return self
        assert self.keys is None, "pictures that are encoded together are whole"
        nth = torch.arange(pictures, device=self.tokens.device)[:, None]
        there = (self.tokens + nth * tokens).flatten()
        slots = (self.slots + nth * (self.windows * self.window**2)).flatten()
        return WindowTokens(self.window, there, slots, self.ids.repeat(pictures), None, self.padded)

    def scatter(self, projected: Tensor, bias: Tensor | None) -> Tensor:
        """Lay packed tokens ``[P, C]``, projected with a bias, into slots ``[windows * window**2, C]``, where some are empty.

        Stock SAM 2 pads with zeros before the projection and does not mask them, so padding takes part as keys: all
        that is left of it is the bias.
        """
        count = self.windows * self.window**2
        padding = projected.new_zeros(projected.shape[1]) if bias is None else bias
        return padding.repeat(count, 1).index_copy_(0, self.slots, projected)

    def gather(self, slots: Tensor) -> Tensor:
        """Pick the packed tokens ``[P, C]`` out of slots."""
        return slots.index_select(0, self.slots)


@lru_cache(maxsize=256)
def window_tokens(
    grid: WindowGrid, cells: tuple[int, ...] | None, device: torch.device, cell: int = 2
) -> WindowTokens:
    """Find the tokens to compute on a grid.

    Parameters
    ----------
    cells
        Squares of ``cell`` x ``cell`` tokens, counted row by row; None for all. Windows that have none are left out.
    """
    side, tokens, window = grid.side, grid.tokens, grid.window
    index = torch.full((side * window, side * window), -1, dtype=torch.int64)
    index[:tokens, :tokens] = torch.arange(tokens * tokens).view(tokens, tokens)
    places = index.view(side, window, side, window).transpose(1, 2).reshape(-1, window**2)
    there = torch.full(((tokens // cell) ** 2,), cells is None)
    if cells is not None:
        there[list(cells)] = True
    there = there.view(tokens // cell, -1).repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    computed = (places >= 0) & there.flatten()[places]
    ids = torch.nonzero(computed.any(1))[:, 0]
    computed, places = computed[ids], places[ids]
    trimmed = (places >= 0) & ~computed
    keys = to_device(~trimmed[:, None, None], device) if bool(trimmed.any()) else None
    slots = torch.nonzero(computed.flatten())[:, 0]
    return WindowTokens(
        window, to_device(places.flatten()[slots], device), to_device(slots, device),
        to_device(ids, device), keys, padded=len(slots) < places.numel(),
    )  # fmt: skip


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host without waiting for the device, which an ordinary copy to a GPU does."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
