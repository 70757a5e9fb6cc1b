"""The selection rules: smallest sets, windows of masks, window mass, samples of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.mass import keep_count
from probes.video import STD, thumbnail
from sparsity.techniques.routing import parts_of, window_of
from sparsity.techniques.select import (
    LOW_RES_STRIDE,
    TOKEN_STRIDE,
    WindowGrid,
    mask_jump,
    most_changed,
    pictures,
    quantile,
    sample_rows,
    scene_change,
    smallest_set,
    top_tokens,
    window_mass,
    windows_of_mask,
)

GRIDS = st.sampled_from(
    [WindowGrid(16, 14), WindowGrid(16, 4), WindowGrid(64, 14), WindowGrid(10, 3)]
)
masses = st.lists(st.integers(0, 50), min_size=1, max_size=30).map(
    lambda values: torch.tensor(values, dtype=torch.float32)
)


@given(mass=masses, share=st.floats(0.01, 1.0))
def test_smallest_set_is_the_smallest(mass: torch.Tensor, share: float) -> None:
    kept = smallest_set(mass, share)
    wanted = share * float(mass.double().sum())
    assert kept.any()
    assert float(mass[kept].double().sum()) >= wanted - 1e-9
    smallest_kept = mass[kept].min()
    if kept.sum() > 1:
        assert float(mass[kept].double().sum() - smallest_kept) < wanted, "one fewer does not do"
    if (~kept).any():
        assert smallest_kept >= mass[~kept].max()


def test_smallest_set_takes_the_crossing_element_and_the_lower_index() -> None:
    assert smallest_set(torch.tensor([0.25, 0.25, 0.25, 0.25]), 0.5).tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert smallest_set(torch.tensor([0.25, 0.25, 0.25, 0.25]), 0.51).tolist() == [True] * 3 + [
        False
    ]
    assert smallest_set(torch.zeros(3), 0.7).tolist() == [True, False, False]


@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=40), share=st.floats(0.01, 1.0))
def test_top_tokens(values: list[int], share: float) -> None:
    saliency = torch.tensor(values, dtype=torch.float32)
    count = keep_count(share, len(values))
    chosen = top_tokens(saliency, count).tolist()
    assert chosen == sorted(set(chosen)) and len(chosen) == count >= 1
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert chosen == sorted(expected)


def test_keep_count_is_the_authors() -> None:
    assert keep_count(0.05, 4096) == 204
    assert keep_count(1.0, 4096) == 4096
    assert keep_count(0.001, 64) == 1


@given(rows=st.integers(1, 5000), count=st.integers(1, 5000), seed=st.integers(0, 9))
def test_sampled_rows_are_stratified_and_seeded(rows: int, count: int, seed: int) -> None:
    sample = sample_rows(rows, count, seed)
    assert len(sample) == min(rows, count)
    assert len(sample.unique()) == len(sample) and sample.min() >= 0 and sample.max() < rows
    if count < rows:
        borders = torch.arange(count + 1) * rows // count
        assert (sample >= borders[:-1]).all() and (sample < borders[1:]).all()
    assert torch.equal(sample, sample_rows(rows, count, seed))


def test_other_seeds_draw_other_rows() -> None:
    assert not torch.equal(sample_rows(4096, 64, 0), sample_rows(4096, 64, 1))


def naive_windows(mask: np.ndarray, grid: WindowGrid, margin: int) -> list[bool]:
    """Grow pixel by pixel, then ask each window."""
    h, w = mask.shape
    span = grid.window * TOKEN_STRIDE // LOW_RES_STRIDE
    hit = [False] * grid.count
    for y, x in zip(*np.nonzero(mask), strict=True):
        for row in range(max(0, y - margin), min(grid.side * span - 1, y + margin) + 1):
            for column in (max(0, x - margin), min(grid.side * span - 1, x + margin)):
                hit[row // span * grid.side + column // span] = True
        for row in (max(0, y - margin), min(grid.side * span - 1, y + margin)):
            for column in range(max(0, x - margin), min(grid.side * span - 1, x + margin) + 1):
                hit[row // span * grid.side + column // span] = True
    return hit


@settings(deadline=None, max_examples=40)
@given(grid=GRIDS, seed=st.integers(0, 999), margin=st.sampled_from([0, 1, 8, 30]))
def test_windows_of_a_mask(grid: WindowGrid, seed: int, margin: int) -> None:
    rng = np.random.default_rng(seed)
    size = grid.tokens * TOKEN_STRIDE // LOW_RES_STRIDE
    mask = np.zeros((size, size), bool)
    mask[rng.integers(0, size, 3), rng.integers(0, size, 3)] = True
    found = windows_of_mask(torch.from_numpy(mask), grid, margin)
    expected = naive_windows(mask, grid, -(-margin // LOW_RES_STRIDE))
    filled = np.array(expected)
    assert (found.numpy() >= filled).all()
    if margin // LOW_RES_STRIDE * 2 < grid.window * TOKEN_STRIDE // LOW_RES_STRIDE:
        assert found.tolist() == expected


def test_an_empty_mask_touches_nothing_and_a_full_one_everything() -> None:
    grid = WindowGrid(64, 14)
    assert not windows_of_mask(torch.zeros(256, 256, dtype=torch.bool), grid, 100).any()
    assert windows_of_mask(torch.ones(2, 256, 256, dtype=torch.bool), grid, 0).all()


def test_the_margin_reaches_into_the_next_window() -> None:
    grid = WindowGrid(64, 16)
    mask = torch.zeros(256, 256, dtype=torch.bool)
    mask[10, 62] = True  # two elements from the border of the first window
    assert windows_of_mask(mask, grid, 0).nonzero().flatten().tolist() == [0]
    assert windows_of_mask(mask, grid, 8).nonzero().flatten().tolist() == [0, 1]


@given(grid=GRIDS, seed=st.integers(0, 99))
def test_window_mass_sums_each_window(grid: WindowGrid, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    saliency = torch.rand(grid.tokens, grid.tokens, generator=generator)
    saliency /= saliency.sum()
    mass = window_mass(saliency, grid)
    assert mass.shape == (grid.count,)
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-5)
    last = saliency[(grid.side - 1) * grid.window :, (grid.side - 1) * grid.window :].sum()
    assert float(mass[-1]) == pytest.approx(float(last), abs=1e-6)


def test_mask_jump() -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    moved = mask.clone()
    mask[:4], moved[2:6] = True, True
    assert float(mask_jump(mask, mask)) == 0
    assert float(mask_jump(mask, moved)) == pytest.approx(1 - 16 / 48)
    assert float(mask_jump(mask & False, moved & False)) == 0
    assert float(mask_jump(mask, mask & False)) == 1


def test_scene_change_is_a_share_of_full_scale() -> None:
    spread = torch.tensor(STD).view(3, 1, 1)  # frames are divided by it
    black, white = torch.zeros(3, 64, 64), torch.ones(3, 64, 64) / spread
    assert scene_change(thumbnail(black), thumbnail(white)) == pytest.approx(1.0)
    assert scene_change(thumbnail(black), thumbnail(black)) == 0.0


@pytest.mark.parametrize("grid", [WindowGrid(64, 16), WindowGrid(64, 14)])
def test_a_picture_of_each_window(grid: WindowGrid) -> None:
    """Windows in reading order, those over the edge with zeros there."""
    image = torch.ones(3, 256, 256)
    pixels = 4 * grid.window
    row, column = divmod(grid.side + 1, grid.side)
    image[:, row * pixels : (row + 1) * pixels, column * pixels : (column + 1) * pixels] = 5
    found = pictures(image, grid)
    assert found.shape == (grid.count, 48)
    assert (found[grid.side + 1] == 5).all()
    assert (found[[0, 1, grid.side, grid.side + 2]] == 1).all()
    share = (256 / (pixels * grid.side)) ** 2
    assert float(found.mean()) == pytest.approx(share * float(image.mean()), rel=1e-5)


@given(st.data())
def test_the_windows_that_changed_most(data: st.DataObject) -> None:
    change = data.draw(st.lists(st.integers(-9, 9), min_size=2, max_size=12))
    among = tuple(sorted(data.draw(st.sets(st.integers(0, len(change) - 1), min_size=1))))
    count = data.draw(st.integers(0, len(among)))
    found = most_changed(torch.tensor(change, dtype=torch.float32).abs(), among, count)
    assert found == tuple(sorted(among, key=lambda w: (-abs(change[w]), w))[:count])


@given(st.data(), st.sampled_from([WindowGrid(16, 4), WindowGrid(16, 14), WindowGrid(10, 4)]))
def test_a_window_is_its_cells(data: st.DataObject, grid: WindowGrid) -> None:
    windows = tuple(sorted(data.draw(st.sets(st.integers(0, grid.count - 1), min_size=1))))
    some = torch.zeros(grid.count, dtype=torch.bool)
    some[list(windows)] = True
    cells, span = grid.cells_of(some), grid.window // 2
    assert list(cells) == sorted(set(cells))
    for cell in range(grid.cells.count):
        row, column = divmod(cell, grid.cells.side)
        window = row // span * grid.side + column // span
        assert int(grid.window_of_cell[cell]) == window
        assert (cell in cells) == (window in windows)
    assert grid.windows_of(cells) == windows and grid.cells_within(windows) == len(cells)
    assert grid.windows_of(cells[:1]) == windows[:1]
    assert parts_of("cell", grid) == grid.cells and parts_of("window", grid) == grid
    assert window_of("window", grid).tolist() == list(range(grid.count))


@given(
    st.lists(st.floats(0, 4, width=32), min_size=1, max_size=70),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
)
def test_a_quantile_is_torchs_bit_for_bit(numbers: list[float], share: float) -> None:
    values = torch.tensor(numbers)
    assert quantile(values, share) == float(values.quantile(share))
    if values.min() < values.max():
        assert quantile(values, 0.0) != quantile(values, 1.0)
