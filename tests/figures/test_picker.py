"""What pointing needs of Python: masks as runs, prompts held against the video, what a message from the browser gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import figures
from figures.picker import Picking, page_file, runs, script, style
from probes import InputError, build_predictor, open_video, read_prompts
from probes.prompts import read_coco_mask
from sparsity import accelerate
from tests.conftest import FRAMES, HEIGHT, WIDTH

POINT = {"frame": 2, "object": 1, "points": [[50, 48]]}
CORRECTED = {"frame": 2, "object": 1, "points": [[50, 48], [100, 80, 0]]}
BOX = {"frame": 0, "object": 2, "label": "disc", "box": [20, 20, 80, 80]}
BESIDE = {"frame": 3, "object": 1, "points": [[5, 5, 0]]}


@pytest.fixture(scope="module")
def predictor() -> Any:
    return build_predictor("demo", image_size=128, device="cpu")


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_runs_are_those_of_coco(mask: np.ndarray) -> None:
    source = open_video(np.zeros((1, *mask.shape, 3), np.uint8))
    code = {"size": list(mask.shape), "counts": runs(mask)}
    assert (read_coco_mask(code, source, Path()) == mask).all()
    assert runs(~mask) != runs(mask)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from([POINT, CORRECTED, BOX]), min_size=1, max_size=4))
def test_a_mask_is_that_of_its_prompt_whatever_was_asked_before(
    predictor: Any, clip_frames: np.ndarray, asked: list[dict[str, Any]]
) -> None:
    source = open_video(clip_frames)
    picking = Picking(source, "clip", predictor)
    for entry in asked:
        picking.mask(entry)
    assert picking.mask(POINT) == Picking(source, "clip", predictor).mask(POINT)


def test_masks_are_those_of_the_same_call(predictor: Any, clip_frames: np.ndarray) -> None:
    fast = accelerate(predictor, "dense")
    state = fast.init_state(clip_frames)
    _, _, logits = fast.add_new_points_or_box(state, 2, 1, points=[[50, 48]], labels=[1])
    mask = (logits[0, 0] > 0).numpy()
    assert mask.any() and not mask.all()
    for given_one in (predictor, fast):
        picking = Picking(open_video(clip_frames), "clip", given_one)
        assert picking.mask(POINT) == runs(mask)
        assert picking.mask(CORRECTED) != runs(mask)


def test_what_the_browser_tells_is_given_on_and_written(
    tmp_path: Path, clip_frames: np.ndarray
) -> None:
    picker = figures.pick(clip_frames)
    assert not picker.meta["masks"] and picker.meta["width"] == WIDTH
    with pytest.raises(InputError, match="no prompts were given"):
        _ = picker.prompts
    picker.entries = [BOX, POINT, BESIDE]
    assert [(p.frame, p.object, p.label) for p in picker.prompts] == [
        (0, 2, "disc"),
        (2, 1, ""),
        (3, 1, ""),
    ]
    picker.save(tmp_path / "prompts.json")
    read = read_prompts(tmp_path / "prompts.json", open_video(clip_frames))
    assert [p.digest() for p in read] == [p.digest() for p in picker.prompts]
    assert len((tmp_path / "prompts.json").read_text().splitlines()) == 5
    picker.entries = [BESIDE]
    with pytest.raises(InputError, match="label 0 alone"):
        picker.save(tmp_path / "prompts.json")
    assert json.loads((tmp_path / "prompts.json").read_text())[0] == BOX, "what was saved stays"


def test_a_message_is_answered_whatever_goes_wrong(
    predictor: Any, clip_frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    picker = figures.pick(clip_frames, predictor)
    sent: list[tuple[dict[str, Any], Any]] = []
    monkeypatch.setattr(picker, "send", lambda said, buffers=None: sent.append((said, buffers)))
    for kind, asked in {"frame": 3, "mask": POINT}.items():
        picker._handle_custom_msg({"kind": kind, "key": kind, "given": asked}, [])
    for kind, asked in {"frame": FRAMES, "mask": BESIDE}.items():
        picker._handle_custom_msg({"kind": kind, "key": "x", "given": asked}, [])
    (frame, (picture,)), (mask, _), *failed = sent
    assert frame == {"key": "frame"} and picture[:2] == b"\xff\xd8"
    assert mask["key"] == "mask" and sum(mask["runs"]) == HEIGHT * WIDTH
    assert "the video has 8 frames" in failed[0][0]["failed"]
    assert "label 0 alone" in failed[1][0]["failed"]


def test_a_stream_is_refused(clip_frames: np.ndarray) -> None:
    with pytest.raises(InputError, match="a stream given to pick in; expected"):
        figures.pick(iter(clip_frames))


def test_the_script_needs_no_network() -> None:
    for text in (script(), page_file("page.js"), page_file(""), style()):
        assert "http" not in text and "import(" not in text
    assert "export default" in script() and "export function mount" in script()
