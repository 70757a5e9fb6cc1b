"""Frames as the model wants them: those of stock sam2, made when they are asked for."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from sam2.utils.misc import load_video_frames

from probes.frames import KEPT_FRAMES
from probes.video import COLUMNS_FIRST, ModelFrames, new_state, open_video, resized


def test_model_frames_of_a_jpeg_folder_equal_stock(clip_folder: Path) -> None:
    stock, height, width = load_video_frames(str(clip_folder), 256, True)
    source = open_video(clip_folder)
    frames = ModelFrames(source, 256, "cpu")
    assert (source.height, source.width, len(frames)) == (height, width, len(stock))
    for i in range(len(stock)):
        assert torch.equal(frames[i], stock[i])
    assert not torch.equal(frames[1], stock[0])


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.example(height=131, width=48, side=128, noise=6, seed=1)
@hypothesis.example(height=300, width=200, side=128, noise=120, seed=0)
@hypothesis.given(
    height=st.integers(48, 1300),
    width=st.integers(48, 1300),
    side=st.sampled_from([128, 256, 512]),
    noise=st.integers(0, 120),
    seed=st.integers(0, 99),
)
def test_the_faster_resize_is_nearly_stocks(
    height: int, width: int, side: int, noise: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height)), np.int16)
    noisy = smooth + generator.integers(-noise, noise + 1, smooth.shape)
    pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    exact, near = (resized(pixels, side, how).astype(int) for how in ("pillow", "torch"))
    assert exact.shape == near.shape == (side, side, 3)
    off = np.abs(exact - near)
    assert off.max() <= 2
    assert (off > 0).mean() < 0.02
    other = resized(pixels[::-1].copy(), side, "torch").astype(int)
    assert np.abs(exact - other).max() > 2


@pytest.mark.skipif(not COLUMNS_FIRST, reason="this Pillow takes rows first")
def test_an_upright_picture_in_the_other_order_is_far_off(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    exact = resized(pixels, 128, "pillow").astype(int)
    monkeypatch.setattr("probes.video.COLUMNS_FIRST", False)
    assert np.abs(exact - resized(pixels, 128, "torch")).max() > 2


def test_frames_are_resized_as_is_wanted_when_they_are_asked_for(clip_folder: Path) -> None:
    """Those that were read, or read ahead, before another way was wanted included."""
    ways = {how: ModelFrames(open_video(clip_folder), 96, "cpu") for how in ("pillow", "torch")}
    ways["torch"].resize = "torch"
    changing = ModelFrames(open_video(clip_folder), 96, "cpu")
    for i, how in enumerate(["pillow", "torch", "torch", "pillow"]):
        changing.resize = how
        assert torch.equal(changing[i], ways[how][i])
    changing.resize = "torch"
    assert torch.equal(changing[3], ways["torch"][3])
    assert not torch.equal(ways["pillow"][3], ways["torch"][3])


def test_model_frames_are_decoded_when_asked_for_and_few_are_kept(clip_folder: Path) -> None:
    source = open_video(clip_folder)
    asked: list[int] = []
    read = source.frame
    source.frame = lambda i: asked.append(i) or read(i)
    source.reads_ahead = False
    frames = ModelFrames(source, 64, "cpu")
    assert asked == []
    for i in (0, 1, 1, 0, 2, 3, 4, 5):
        frames[i]
    assert asked == [0, 1, 2, 3, 4, 5]
    assert len(frames._kept) == KEPT_FRAMES
    frames[0]
    assert asked[-1] == 0


@pytest.mark.parametrize("offload", [False, True])
def test_a_video_begins_as_in_stock(
    dividing_predictor: Any, clip_folder: Path, offload: bool
) -> None:
    with torch.inference_mode():
        stock = dividing_predictor.init_state(str(clip_folder), offload_video_to_cpu=offload)
    source, device = open_video(clip_folder), torch.device("cpu")
    frames, size = ModelFrames(source, 256, device), (source.height, source.width)
    state = new_state(frames, frames.num_frames, size, device, device, offload)
    filled = ("images", "cached_features")  # stock decodes all frames and encodes the first
    assert {k: v for k, v in state.items() if k not in filled} == {
        k: v for k, v in stock.items() if k not in filled
    }
    assert torch.equal(state["images"][3], stock["images"][3]) and state["cached_features"] == {}
    elsewhere = new_state(frames, len(frames), size, device, torch.device("meta"), offload)
    assert {k for k in state if elsewhere[k] != state[k]} == {
        "offload_state_to_cpu", "storage_device",
    }  # fmt: skip
    stream = ModelFrames(open_video(iter([source.frame(0)])), 256, device)
    assert stream.num_frames == sys.maxsize


def test_frames_behave_as_the_tensor_of_stock(
    dividing_predictor: Any, clip_folder: Path, clip_frames: np.ndarray
) -> None:
    """What clients do with ``state["images"]``."""
    with torch.inference_mode():
        stock = dividing_predictor.init_state(str(clip_folder))["images"]
    ours = ModelFrames(open_video(clip_folder), 256, "cpu")
    assert ours.shape == stock.shape and ours.size() == stock.size() and ours.size(0) == len(ours)
    assert (ours.dtype, ours.device, ours.ndim, ours.dim()) == (stock.dtype, stock.device, 4, 4)
    for index in (0, -1, np.int64(2), torch.tensor(3), slice(1, 3), slice(0, 8, 3), [0, 5]):
        assert torch.equal(ours[index], stock[index])
    assert torch.equal(ours[2, 1], stock[2, 1]) and torch.equal(ours[:, 0, 4], stock[:, 0, 4])
    assert ours[3:3].shape == stock[3:3].shape
    assert torch.equal(torch.cat([ours, ours[:1]]), torch.cat([stock, stock[:1]]))
    assert torch.equal(torch.stack([*ours]), stock) and torch.equal(ours.mean(0), stock.mean(0))
    assert torch.equal(ours.to(torch.float64), stock.to(torch.float64))
    with pytest.raises(IndexError):
        ours[len(ours)]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ours.nothing  # noqa: B018
    ours[2] = stock[5]
    assert torch.equal(ours[2], stock[5]) and not torch.equal(ours[2], stock[2])
    assert torch.equal(copy.deepcopy(ours)[2], stock[5])


@pytest.mark.parametrize("kind", ["dtype", "device meta", "device cpu"])
def test_torch_defaults_change_no_frame(clip_folder: Path, kind: str) -> None:
    source = open_video(clip_folder)
    expected = ModelFrames(source, 64, "cpu")[1]
    try:
        if kind == "dtype":
            torch.set_default_dtype(torch.float64)
        else:
            torch.set_default_device(kind.split()[1])
        found = ModelFrames(source, 64, "cpu")[1]
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert found.dtype == torch.float32 and found.device.type == "cpu"
    assert torch.equal(found, expected)
    assert not torch.equal(ModelFrames(source, 64, "cpu")[2], expected)
