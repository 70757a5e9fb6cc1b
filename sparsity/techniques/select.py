"""Selection rules: which windows and which tokens to keep. Pure functions of tensors, no model.

Calibration replays recordings with the very functions that the predictor calls, so that a threshold means
the same in both. One boundary rule holds everywhere: *the smallest set whose mass reaches the threshold,
the crossing element included, never empty, ties by index*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LOW_RES_STRIDE = 4
"""Pixels of the model's input per pixel of a low-resolution mask."""

TOKEN_STRIDE = 16
"""Pixels of the model's input per token of encoder stage 3."""


@dataclass(frozen=True)
class WindowGrid:
    """Windows of encoder stage 3: a square grid of tokens cut into square windows, the last ones padded.

    Attributes
    ----------
    tokens
        Tokens per side of the grid (input size / 16).
    window
        Tokens per side of a window.
    """

    tokens: int
    window: int

    @cached_property
    def side(self) -> int:
        """Windows per side."""
        return -(-self.tokens // self.window)

    @cached_property
    def count(self) -> int:
        """Number of windows."""
        return self.side**2

    @cached_property
    def cells(self) -> WindowGrid:
        """The grid cut into cells of 2 x 2 tokens, the smallest part that stage 4 can do without."""
        return WindowGrid(self.tokens, 2)

    @cached_property
    def half(self) -> WindowGrid:
        """The same windows on the grid of pooled tokens."""
        return WindowGrid(self.tokens // 2, self.window // 2)

    @cached_property
    def window_of_cell(self) -> Tensor:
        """Window of each cell, int64 ``[cells]``; cells do not straddle windows."""
        row = torch.arange(self.cells.side) * 2 // self.window
        return (row[:, None] * self.side + row).flatten()

    @cached_property
    def _windows(self) -> list[int]:
        """The same for the host, which asks for few at a time."""
        found: list[int] = self.window_of_cell.tolist()
        return found

    def windows_of(self, cells: tuple[int, ...]) -> tuple[int, ...]:
        """Windows that some cells lie in, ascending."""
        return tuple(sorted({self._windows[cell] for cell in cells}))

    def cells_within(self, windows: tuple[int, ...]) -> int:
        """How many cells some windows have."""
        wanted = set(windows)
        return sum([window in wanted for window in self._windows])

    def cells_of(self, windows: Tensor) -> tuple[int, ...]:
        """All cells of some windows, bool ``[windows]``, ascending."""
        return tuple(torch.nonzero(windows[self.window_of_cell])[:, 0].tolist())


def smallest_set(mass: Tensor, share: float) -> Tensor:
    """Choose the smallest set of elements that holds a share of the mass.

    Parameters
    ----------
    mass
        Non-negative, ``[..., n]``.
    share
        Wanted share of each row's total, in (0, 1].

    Returns
    -------
    Tensor
        Bool, ``[..., n]``. The element that crosses the threshold is in; never empty; among equals the
        lower index is taken.

    Examples
    --------
    >>> smallest_set(torch.tensor([0.1, 0.5, 0.4]), 0.6)
    tensor([False,  True,  True])
    """
    values, order = mass.double().sort(dim=-1, descending=True, stable=True)
    before = values.cumsum(-1) - values
    kept = before < share * values.sum(-1, keepdim=True)
    kept[..., 0] = True
    return torch.zeros_like(kept).scatter(-1, order, kept)


def top_tokens(saliency: Tensor, count: int) -> Tensor:
    """Choose the `count` most salient tokens of each row; among equals the lower index.

    Parameters
    ----------
    saliency
        ``[..., n]``.

    Returns
    -------
    Tensor
        int64, ``[..., count]``, ascending.
    """
    order = saliency.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values


def sample_rows(rows: int, count: int, seed: int) -> Tensor:
    """Draw one row from each of `count` equal strata of ``range(rows)``.

    Parameters
    ----------
    rows, count
        Number of rows, and how many to draw; all of them when `count` >= `rows`.
    seed
        Same seed, same rows.

    Returns
    -------
    Tensor
        int64, ``[min(count, rows)]``, ascending.
    """
    if count >= rows:
        return torch.arange(rows)
    jitter = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    borders = torch.arange(count + 1) * rows // count
    return borders[:-1] + (jitter * borders.diff()).floor().long()


def windows_of_mask(mask: Tensor, grid: WindowGrid, margin_px: float) -> Tensor:
    """Find the windows that a mask touches once it is grown by a margin.

    Parameters
    ----------
    mask
        Bool, ``[..., h, w]`` at low resolution (4 pixels of the model's input per element).
    margin_px
        Growth in pixels of the model's input; rounded up to whole elements (8 px = 2 elements, the
        authors' dilation).

    Returns
    -------
    Tensor
        Bool, ``[..., windows]``, row by row.
    """
    span = grid.window * TOKEN_STRIDE // LOW_RES_STRIDE
    lead, (h, w) = mask.shape[:-2], mask.shape[-2:]
    margin = min(math.ceil(margin_px / LOW_RES_STRIDE), max(h, w))
    pad = (margin, margin + grid.side * span - w, margin, margin + grid.side * span - h)
    grown = F.pad(mask.reshape(-1, 1, h, w).to(torch.float32), pad)
    reach = span + 2 * margin
    rows = F.max_pool2d(grown, (reach, 1), stride=(span, 1))
    hit = F.max_pool2d(rows, (1, reach), stride=(1, span)) > 0
    return hit.reshape(*lead, grid.count)


def window_mass(saliency: Tensor, grid: WindowGrid) -> Tensor:
    """Sum a token map inside each window.

    Parameters
    ----------
    saliency
        ``[..., tokens, tokens]``.

    Returns
    -------
    Tensor
        float32, ``[..., windows]``; sums to the map's total.
    """
    lead, n = saliency.shape[:-2], grid.tokens
    extra = grid.side * grid.window - n
    padded = F.pad(saliency.reshape(-1, 1, n, n).to(torch.float32), (0, extra, 0, extra))
    mean = F.avg_pool2d(padded, grid.window, stride=grid.window)
    return mean.reshape(*lead, grid.count) * grid.window**2


def mask_jump(before: Tensor, after: Tensor) -> Tensor:
    """How much a mask changed: 1 - IoU, in [0, 1]; 0 where both are empty.

    Parameters
    ----------
    before, after
        Bool, ``[..., h, w]``.
    """
    both = (before & after).flatten(-2).sum(-1)
    either = (before | after).flatten(-2).sum(-1)
    return torch.where(
        either > 0, 1 - both / either.clamp(min=1), torch.zeros_like(both, dtype=torch.float32)
    )


def pictures(image: Tensor, grid: WindowGrid) -> Tensor:
    """Shrink every window of an image to 4 x 4 colours, to tell how much it changed.

    Parameters
    ----------
    image
        ``[3, S, S]``; windows that reach over its edge see zeros there.

    Returns
    -------
    Tensor
        float32, ``[windows, 48]``.
    """
    size, cells = image.shape[-1], 4
    beyond = size // grid.tokens * grid.window * grid.side - size
    image = image[None].float()
    if beyond:
        image = F.pad(image, (0, beyond, 0, beyond))
    across = cells * grid.side
    small = image.reshape(3, across, -1, across, image.shape[-1] // across).mean((2, 4))
    cut = small.view(3, grid.side, cells, grid.side, cells)
    return cut.permute(1, 3, 0, 2, 4).reshape(grid.count, -1)


def most_changed(change: Tensor, among: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Choose the windows whose pictures changed most, `count` of those `among`; `change` is ``[windows]``."""
    order = change[list(among)].sort(descending=True, stable=True).indices[:count]
    return tuple(among[i] for i in order.tolist())


def quantile(values: Tensor, share: float) -> float:
    """`Tensor.quantile` of numbers ``[n]`` float32 that are none of them NaN, in fewer operations on the host."""
    rank = np.float32(share) * np.float32(len(values) - 1)
    below = int(rank)
    ordered = values.sort().values
    over = torch.tensor(rank - np.float32(below))
    return float(ordered[below].lerp(ordered[math.ceil(rank)], over))


def refreshed_count(left_out: float, every: int) -> int:
    """Windows that a rolling refresh adds to a frame: one in `every` of those left out, rounded up.

    >>> refreshed_count(12, 6), refreshed_count(12.25, 6)
    (2, 3)
    """
    return math.ceil(left_out / every)


def scene_change(before: Tensor, after: Tensor) -> float:
    """Mean absolute difference of two thumbnails, as a share of full scale."""
    return float((before - after).abs().mean())
