"""Tracking that is corrected meanwhile gives the masks of a run that had all prompts from the start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from probes import Prompt, build_predictor, open_video
from probes.correcting import Correcting
from probes.tracking import begin_kept, track_back, track_forward
from sparsity import accelerate

BOX = Prompt(2, 1, box=(20, 20, 80, 80))
LATER = Prompt(3, 2, points=[(100, 20)])
CORRECTION = Prompt(5, 1, points=[(60, 50), (110, 80)], labels=[1, 0])
EARLIER = Prompt(4, 1, points=[(50, 48)])
REMOVED = Prompt(6, 1, remove=True)
FIRST = Prompt(1, 2, points=[(100, 20)])


@pytest.fixture(scope="module")
def stock() -> Any:
    return build_predictor("demo", image_size=128, device="cpu")


def at_once(predictor: Any, frames: np.ndarray, *prompts: Prompt) -> dict[int, dict[int, Any]]:
    """Masks by frame and object of a run with all prompts from the start, in the order of `run_segment`."""
    listed = sorted(prompts, key=lambda p: p.frame)
    found: dict[int, dict[int, Any]] = {}
    with torch.inference_mode():
        state = begin_kept(predictor, open_video(frames))
        first = listed[0].frame
        steps = [track_forward(predictor, state, listed, first)]
        if first:
            steps.append(track_back(predictor, state, listed, first, range(first - 1, -1, -1)))
        for step in steps:
            for frame, ids, logits in step:
                found[frame] = {i: logits[k, 0].numpy() > 0 for k, i in enumerate(ids)}
    return found


def same(found: Any, expected: dict[int, dict[int, Any]]) -> bool:
    return (
        sorted(found) == sorted(expected)
        and all(sorted(found[t]) == sorted(expected[t]) for t in expected)
        and all((found[t][i] == expected[t][i]).all() for t in expected for i in expected[t])
    )


@pytest.mark.parametrize(
    ("profile", "changes"),
    [
        (None, [[BOX], [BOX, LATER, CORRECTION], [BOX, LATER, EARLIER, CORRECTION]]),
        ("dense", [[BOX, CORRECTION], [FIRST, BOX, CORRECTION], [FIRST, BOX]]),
        ("paper", [[BOX], [BOX, LATER, CORRECTION], [BOX, LATER, EARLIER, CORRECTION]]),
        ("paper", [[BOX, LATER, CORRECTION, REMOVED], [BOX, LATER, EARLIER]]),
    ],
    ids=["between", "a new first one", "paper, between", "paper, no longer removed"],
)
def test_masks_are_those_of_all_prompts_at_once(
    stock: Any, clip_frames: np.ndarray, profile: str | None, changes: list[list[Prompt]]
) -> None:
    predictor = stock if profile is None else accelerate(stock, profile)
    run = Correcting(predictor, open_video(clip_frames))
    for prompts in changes:
        run.give(prompts)
        run.wait()
        assert run.phase == "done" and run.prompts == tuple(prompts)
    masks = {t: frame.masks() for t, frame in run.frames.items()}
    assert same(masks, at_once(predictor, clip_frames, *changes[-1]))
    assert not same(masks, at_once(predictor, clip_frames, *changes[0]))


def test_what_changes_midway_is_tracked_anew_from_there(
    stock: Any, clip_frames: np.ndarray
) -> None:
    run = Correcting(stock, open_video(clip_frames))
    told: list[tuple[str, int]] = []
    given = iter([[BOX, CORRECTION], [BOX, LATER, CORRECTION]])

    def tell(what: str, frame: int) -> None:
        told.append((what, frame))
        if what == "frame" and frame in (4, 6) and (prompts := next(given, None)):
            run.give(prompts)

    run.tell = tell
    run.give([BOX])
    run.wait()
    steps = [frame for what, frame in told if what == "frame"]
    assert steps == [2, 3, 4, 5, 6, 3, 4, 5, 6, 7, 1, 0], (
        "a later one waits, an earlier one goes back"
    )
    masks = {t: frame.masks() for t, frame in run.frames.items()}
    assert same(masks, at_once(stock, clip_frames, BOX, LATER, CORRECTION))
    assert run.frames_per_second > 0 and run.error is None


def test_the_number_format_in_force_is_that_of_the_thread(
    stock: Any, clip_frames: np.ndarray
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        run = Correcting(stock, open_video(clip_frames), [BOX])
        expected = at_once(stock, clip_frames, BOX)
    run.wait()
    masks = {t: frame.masks() for t, frame in run.frames.items()}
    assert same(masks, expected)
    assert not same(masks, at_once(stock, clip_frames, BOX))
