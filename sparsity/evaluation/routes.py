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
from sparsity.acceleration.session import WindowChooser
from sparsity.masks import read_mask
from sparsity.profile import Windows
from sparsity.routing import Decision
from sparsity.select import LOW_RES_STRIDE, WindowGrid, windows_of_mask


@dataclass(frozen=True)
class Route:
    """What is given to the rows of a benchmark.

    Attributes
    ----------
    chooser
        From a row's rule to the windows of each frame.
    said
        What to say about them on the rows.
    """

    chooser: Callable[[Windows], WindowChooser]
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
    return Route(lambda rule: lambda frame: windows, f"fixed windows {kept}/{total}")


def windows_of_track(folder: Path, grid: WindowGrid, image_size: int) -> Route:
    """Route each frame by the masks of the frame before it, from a folder of indexed PNG, one a frame.

    Margins are those of each row's own rule, and windows are trimmed where it says so.

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
    masks = [read_mask(file) for file in files]

    def chooser(rule: Windows) -> WindowChooser:
        chosen = [windows_of_ids(ids, grid, image_size, rule) for ids in masks]
        return lambda frame: chosen[min(frame, len(chosen)) - 1] if frame else Decision(None, "")

    return Route(chooser, f"windows of the masks in {folder.name}")


def windows_of_ids(
    ids: NDArray[np.uint8], grid: WindowGrid, image_size: int, rule: Windows
) -> Decision:
    """Choose the windows that any object of an id map ``[H, W]`` touches; a dense frame where there is no object."""
    side = image_size // LOW_RES_STRIDE
    there = torch.from_numpy(ids > 0).float()[None, None]
    low = F.interpolate(there, (side, side), mode="area")[0, 0] > 0
    if not rule.trimmed:
        hit = windows_of_mask(low, grid, rule.margin_px)
        return Decision(tuple(torch.nonzero(hit)[:, 0].tolist()) or None, "given")
    cells = torch.nonzero(windows_of_mask(low, grid.cells, rule.margin_px))[:, 0]
    windows = tuple(grid.window_of_cell[cells].unique().tolist())
    return Decision(windows or None, "given", tuple(cells.tolist()) if windows else None)
