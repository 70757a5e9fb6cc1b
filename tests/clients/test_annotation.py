"""An annotation tool: its user jumps about, tracks a few frames forwards or back, and edits where something looks wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from tests.clients.conftest import FRAMES, Answers, Plays, click, mask

END = FRAMES - 1

OBJECTS = {1: "upper", 2: "lower"}


class Tool:
    """What the tool's buttons do; every answer is kept under a name of its own."""

    def __init__(self, predictor: Any, clip: str) -> None:
        self.predictor, self.state = predictor, predictor.init_state(clip)
        self.said: Answers = {}

    def keep(self, name: str, answer: tuple[int, list[int], torch.Tensor]) -> None:
        frame, ids, logits = answer
        self.said[f"{len(self.said)}, {name}, frame {frame}, objects {list(ids)}"] = logits.clone()

    def draw(self, frame: int, object_id: int, place: str) -> None:
        given = self.predictor.add_new_mask(self.state, frame, object_id, mask(place, frame))
        self.keep("drawn", given)

    def click(self, frame: int, object_id: int, place: str) -> None:
        given = self.predictor.add_new_points_or_box(
            self.state, frame, object_id, points=click(place, frame), labels=np.ones(1, np.int32)
        )
        self.keep("clicked", given)

    def clear(self, frame: int, object_id: int) -> None:
        given = self.predictor.clear_all_prompts_in_frame(self.state, frame, object_id)
        self.keep("cleared", given)

    def track(self, start: int, count: int, reverse: bool = False) -> None:
        for answer in self.predictor.propagate_in_video(
            self.state, start_frame_idx=start, max_frame_num_to_track=count, reverse=reverse
        ):
            self.keep("back" if reverse else "on", answer)


def planned(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """Three frames on, back from a later prompt, an edit between, and a range again; `otherwise` the edit is wrong."""
    tool = Tool(predictor, clip)
    tool.draw(0, 1, "upper")
    tool.track(0, 3)
    tool.draw(END, 1, "upper")
    tool.track(END, 3, reverse=True)
    tool.draw(2, 1, "lower" if otherwise else "upper")
    tool.track(2, 2)
    tool.track(2, 2, reverse=True)
    return tool.said


def at_random(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """A schedule by chance over two objects, prompted at both ends of the clip; `otherwise` by another chance.

    Without one on either side stock's memory attention stops in float32: bfloat16 memory without a float32 pointer.
    """
    chance, tool = random.Random(1 if otherwise else 0), Tool(predictor, clip)
    for object_id, place in OBJECTS.items():
        tool.draw(0, object_id, place)
        tool.draw(END, object_id, place)
    edited: set[tuple[int, int]] = set()
    for _ in range(5):
        frame, object_id = chance.randrange(1, END), chance.choice(list(OBJECTS))
        what = chance.choice(["on", "on", "back", "draw", "draw", "clear"])
        if what == "clear" and edited:
            frame, object_id = chance.choice(sorted(edited))
            edited.remove((frame, object_id))
            tool.clear(frame, object_id)
        elif what == "draw":
            tool.draw(frame, object_id, OBJECTS[object_id])
            edited.add((frame, object_id))
        else:
            tool.track(frame, chance.randrange(1, 3), reverse=what == "back")
    return tool.said


@contextmanager
def all_corrections_condition(predictor: Any) -> Iterator[None]:
    """Set what many tools set: a corrected frame conditions all others, also where it was tracked before."""
    before = predictor.add_all_frames_to_correct_as_cond
    predictor.add_all_frames_to_correct_as_cond = True
    try:
        yield
    finally:
        predictor.add_all_frames_to_correct_as_cond = before


def conditioning(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """A correction that stays; `otherwise` it is taken for a result like others, as sam2 does by default."""
    tool = Tool(predictor, clip)
    tool.click(0, 1, "upper")
    tool.track(0, 3)
    if otherwise:
        tool.draw(2, 1, "lower")
    else:
        with all_corrections_condition(predictor):
            tool.draw(2, 1, "lower")
    tool.track(0, END)
    return tool.said


@pytest.mark.parametrize("client", [planned, at_random, conditioning])
def test_edits_and_jumps_are_answered_as_by_stock(plays: Plays, profile: str, client: Any) -> None:
    plays.check(client, profile)
