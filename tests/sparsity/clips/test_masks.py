"""Masks: objects merged into one picture of ids, drawn over a frame, and read from files of any kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from probes.errors import InputError
from sparsity.clips.masks import (
    PALETTE,
    davis_palette,
    draw_over,
    merge_objects,
    read_mask,
    write_mask,
)


def test_merged_objects_go_to_the_highest_logit() -> None:
    logits = torch.tensor([[[1.0, -1, 2, 5]], [[3.0, -2, 1, 5]]])
    assert merge_objects(logits, [4, 9], (1, 4)).tolist() == [[9, 0, 4, 4]]
    assert merge_objects(logits, [4, 300], (1, 4)).tolist() == [[300, 0, 4, 4]]
    assert merge_objects(logits[:0], [], (1, 4)).tolist() == [[0, 0, 0, 0]]


@given(st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_merging_is_that_of_the_plain_way(objects: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(-3, 4, (objects, 5, 7)).astype(np.float32)
    ids = rng.permutation(np.arange(1, 255))[:objects].tolist()
    plain = np.zeros((5, 7), np.uint8)
    if objects:
        plain = np.where(logits.max(0) > 0, np.array(ids)[logits.argmax(0)], 0)
    merged = merge_objects(torch.from_numpy(logits), ids, (5, 7))
    assert merged.dtype == np.uint8 and (merged == plain).all()
    if objects and (plain != 0).any():
        assert (merge_objects(-torch.from_numpy(logits), ids, (5, 7)) != plain).any()


def plainly_drawn(frame: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """What `draw_over` gives, without looking where the objects are."""
    edge = np.zeros(ids.shape, bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    drawn = np.where((ids > 0)[..., None], (frame.astype(int) + PALETTE[ids]) // 2, frame)
    drawn[edge & (ids > 0)] = PALETTE[ids][edge & (ids > 0)]
    return drawn.astype(np.uint8)


@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(0, 9))
def test_drawing_where_the_objects_are_is_drawing_everywhere(seed: int, y: int, x: int) -> None:
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 256, (10, 10, 3), np.uint8)
    ids = np.zeros((10, 10), np.uint8)
    ids[y : y + 4, x : x + 5] = rng.integers(0, 3, ids[y : y + 4, x : x + 5].shape)
    assert (draw_over(frame, ids) == plainly_drawn(frame, ids)).all()
    if ids.any():
        assert (draw_over(frame, ids) != plainly_drawn(frame, np.zeros_like(ids))).any()


def test_masks_are_read_by_kind(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "grey.png")
    assert read_mask(tmp_path / "grey.png").tolist() == [[0, 1]]
    Image.fromarray(np.array([[0, 3, 5]], np.uint8)).save(tmp_path / "ids.png")
    assert read_mask(tmp_path / "ids.png").tolist() == [[0, 3, 5]]
    Image.fromarray(np.array([[0, 5]], np.uint8)).save(tmp_path / "left.png")
    assert read_mask(tmp_path / "left.png").tolist() == [[0, 5]], "where object 3 is gone"
    Image.new("1", (2, 1), 1).save(tmp_path / "bits.png")
    assert read_mask(tmp_path / "bits.png").tolist() == [[1, 1]]
    write_mask(tmp_path / "void.png", np.array([[0, 2, 255]], np.uint8), "")
    assert read_mask(tmp_path / "void.png").tolist() == [[0, 2, 0]]
    Image.new("L", (2, 2)).save(tmp_path / "grey.jpg")
    with pytest.raises(InputError, match="is a JPEG, which blurs values; .* threshold it"):
        read_mask(tmp_path / "grey.jpg")
    Image.new("RGB", (2, 2), (200, 0, 0)).save(tmp_path / "rgb.png")
    with pytest.raises(InputError, match="in mode RGB; expected indexed or grey"):
        read_mask(tmp_path / "rgb.png")


def test_the_palette_is_that_of_davis() -> None:
    chosen = davis_palette()[[0, 1, 2, 3, 9, 21, 22, 255]]
    assert chosen.tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [191, 0, 0],
        [128, 64, 128],
        [22, 22, 22],
        [255, 255, 255],
    ]


def test_drawing_leaves_the_background_alone() -> None:
    frame = np.full((6, 6, 3), 100, np.uint8)
    ids = np.zeros((6, 6), np.uint8)
    assert np.array_equal(draw_over(frame, ids), frame)
    ids[2:5, 2:5] = 1
    drawn = draw_over(frame, ids)
    assert np.array_equal(drawn[ids == 0], frame[ids == 0])
    assert drawn[3, 3].tolist() == [114, 50, 50]
