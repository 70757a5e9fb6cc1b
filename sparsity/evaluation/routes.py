"""Routes that are given instead of found: fixed windows, or the windows of a mask track.

With random weights a profile has no sensible masks to route by; speed alone can be measured, on windows that
someone names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from probes.errors import InputError
from probes.frames import natural_key
from sparsity.masks import read_mask
from sparsity.select import LOW_RES_STRIDE, WindowGrid, windows_of_mask


@dataclass(frozen=True)
class Route:
    """Windows by frame, and what to say about them on the rows."""

    choose: Callable[[int], tuple[int, ...] | None]
    said: str


def central_windows(grid: WindowGrid, count: int) -> tuple[int, ...]:
    """Choose the `count` windows nearest to the centre of the window grid; among equals the lower index.

    >>> central_windows(WindowGrid(64, 16), 4)
    (5, 6, 9, 10)
    """
    middle = (grid.side - 1) / 2

    def distance(window: int) -> tuple[float, int]:
        row, column = divmod(window, grid.side)
        return (row - middle) ** 2 + (column - middle) ** 2, window

    return tuple(sorted(sorted(range(grid.count), key=distance)[:count]))


def fixed_windows(text: str | None, grid: WindowGrid) -> Route:
    """Read ``"KEPT/TOTAL"``; None keeps a quarter of the windows.

    Raises
    ------
    InputError
        The text is no such pair, or the model has another number of windows.
    """
    if text is None:
        text = f"{max(1, round(grid.count / 4))}/{grid.count}"
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None:
        raise InputError(
            f"windows {text!r} given; expected KEPT/TOTAL such as {max(1, round(grid.count / 4))}/{grid.count}; "
            "write it so"
        )
    kept, total = int(match[1]), int(match[2])
    if total != grid.count or not 1 <= kept <= total:
        raise InputError(
            f"windows {text} given; this model has {grid.count} windows at its image size; expected 1 to "
            f"{grid.count} of {grid.count}; choose such a number"
        )
    windows = central_windows(grid, kept)
    return Route(lambda frame: windows, f"fixed windows {kept}/{total}")


def windows_of_track(folder: Path, grid: WindowGrid, image_size: int, margin_px: float) -> Route:
    """Route each frame by the masks of the frame before it, from a folder of indexed PNG, one a frame.

    Raises
    ------
    InputError
        The folder has no masks.
    """
    files = sorted(folder.glob("[!.]*.png"), key=lambda file: natural_key(file.stem))
    if not files:
        raise InputError(
            f"routes {folder} given; expected a folder of PNG masks, one a frame; name one"
        )
    chosen = [windows_of_ids(read_mask(file), grid, image_size, margin_px) for file in files]

    def choose(frame: int) -> tuple[int, ...] | None:
        return chosen[min(frame, len(chosen)) - 1] if frame else None

    return Route(choose, f"windows of the masks in {folder.name}")


def windows_of_ids(
    ids: NDArray[np.uint8], grid: WindowGrid, image_size: int, margin_px: float
) -> tuple[int, ...] | None:
    """Find the windows that any object of an id map ``[H, W]`` touches; None where there is no object."""
    side = image_size // LOW_RES_STRIDE
    there = torch.from_numpy(ids > 0).float()[None, None]
    low = F.interpolate(there, (side, side), mode="area")[0, 0] > 0
    hit = windows_of_mask(low, grid, margin_px)
    return tuple(torch.nonzero(hit)[:, 0].tolist()) or None
