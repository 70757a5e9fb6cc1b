"""Routes that are given: fixed windows and mask tracks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probes.errors import InputError
from sparsity.clips.masks import write_mask
from sparsity.evaluation.interleaved import central_windows, fixed_windows, windows_of_track
from sparsity.techniques.routing import Routing
from sparsity.techniques.select import WindowGrid

PAPER = Routing()
LARGE, BASE = WindowGrid(64, 16), WindowGrid(64, 14)


def test_central_windows_grow_one_by_one_from_the_middle() -> None:
    nested = [set(central_windows(BASE, count)) for count in range(1, BASE.count + 1)]
    assert nested[0] == {12}
    assert all(small < large for small, large in zip(nested, nested[1:], strict=False))
    assert nested[-1] == set(range(25))


def test_a_quarter_is_the_default() -> None:
    assert fixed_windows(None, LARGE).said == "fixed windows 4/16"
    assert fixed_windows(None, LARGE).chooser(PAPER)(7) == (5, 6, 9, 10)
    assert len(fixed_windows(None, BASE).chooser(PAPER)(7)) == 6
    assert len(fixed_windows("7/25", BASE).chooser(PAPER)(7)) == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4", "expected KEPT/TOTAL such as 4/16"),
        ("6/25", "this model has 16 windows"),
        ("0/16", "expected 1 to 16"),
        ("17/16", "expected 1 to 16"),
    ],
)
def test_other_windows_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fixed_windows(text, LARGE)


def test_a_mask_track_routes_the_frame_after(tmp_path: Path) -> None:
    for t in range(3):
        ids = np.zeros((96, 128), np.uint8)
        if t < 2:
            ids[2:10, 90 * t + 2 : 90 * t + 8] = 1
        write_mask(tmp_path / f"mask{t + 9}.png", ids, "")  # 10 follows 9
    (tmp_path / "._mask9.png").write_bytes(b"")
    route = windows_of_track(tmp_path, LARGE, 1024)
    choose = route.chooser(Routing(margin_px=0))
    first, *routed, last = (choose(frame).cells for frame in range(4))
    assert first is None is last, "an empty mask routes nothing"
    assert [LARGE.windows_of(cells) for cells in routed] == [(0,), (2, 3)]
    assert [len(cells) for cells in routed] == [64, 128], "all cells of these windows"
    assert tmp_path.name in route.said


def test_the_margin_widens_the_route(tmp_path: Path) -> None:
    ids = np.zeros((256, 256), np.uint8)
    ids[:62, :62] = 1
    write_mask(tmp_path / "00000.png", ids, "")
    route = windows_of_track(tmp_path, LARGE, 1024)
    for margin, expected in ((0, (0,)), (12, (0, 1, 4, 5))):
        assert LARGE.windows_of(route.chooser(Routing(margin_px=margin))(1).cells) == expected


def test_a_rule_that_trims_gets_cells(tmp_path: Path) -> None:
    ids = np.zeros((256, 256), np.uint8)
    ids[:8, :17] = 1  # one row of cells, which are 8 x 8 pixels here: three of them
    ids[70, 70] = 1
    write_mask(tmp_path / "00000.png", ids, "")
    found = windows_of_track(tmp_path, LARGE, 1024).chooser(Routing(margin_px=0, unit="cell"))(1)
    assert LARGE.windows_of(found.cells) == (0, 5) and found.cells == (0, 1, 2, 8 * 32 + 8)


def test_a_folder_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder of PNG masks"):
        windows_of_track(tmp_path, LARGE, 1024)
