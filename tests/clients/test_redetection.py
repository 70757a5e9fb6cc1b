"""A detector that looks every few frames, and tracking in between (after Grounded SAM 2): ids are matched by IoU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.clients.conftest import FRAMES, Answers, Plays, mask

EVERY = 2
"""Frames between two looks."""


def detect(frame: int, otherwise: bool) -> list[np.ndarray]:
    """What a detector finds on a frame: masks that shake a little, a third object from frame 2 on."""
    places = ["lower", "upper"][:: 1 if frame else -1]
    if frame >= EVERY and not otherwise:
        places.append("right")
    return [np.roll(mask(place, frame), (frame // 2) % 2, axis=0) for place in places]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two masks bool ``[H, W]``."""
    return float((a & b).sum() / max(1, (a | b).sum()))


class Names:
    """Ids of objects, carried on from look to look."""

    def __init__(self) -> None:
        self.last: dict[int, np.ndarray] = {}
        self.count = 0

    def match(self, found: list[np.ndarray]) -> dict[int, np.ndarray]:
        """Give each mask the id of the one it overlaps most, or a new one."""
        named: dict[int, np.ndarray] = {}
        for one in found:
            best = max(self.last, key=lambda i: overlap(self.last[i], one), default=None)
            if best is None or best in named or overlap(self.last[best], one) < 0.5:
                self.count += 1
                best = self.count
            named[best] = one
        return named


def new_states(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """At every look there is a new state, of which the frames between two looks are tracked."""
    names, said = Names(), {}
    for start in range(0, FRAMES - 1, EVERY):
        state = predictor.init_state(clip, offload_video_to_cpu=True, async_loading_frames=False)
        for object_id, found in names.match(detect(start, otherwise)).items():
            predictor.add_new_mask(state, start, object_id, found)
        for frame, ids, logits in predictor.propagate_in_video(state, start, EVERY):
            said[f"from {start}, frame {frame}, objects {ids}"] = logits.clone()
            names.last = {i: logits[n, 0].numpy() > 0 for n, i in enumerate(ids)}
    return said


def add_midway(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """One state throughout: what is known is tracked on, what is new is added with its mask at the look."""
    state, names, said = predictor.init_state(clip), Names(), {}
    for start in range(0, FRAMES, EVERY):
        for object_id, found in names.match(detect(start, otherwise)).items():
            if object_id not in state["obj_ids"]:
                _, ids, logits = predictor.add_new_mask(state, start, object_id, found)
                said[f"added at {start}, objects {list(ids)}"] = logits.clone()
        for frame, ids, logits in predictor.propagate_in_video(state, start, EVERY):
            said[f"from {start}, frame {frame}, objects {list(ids)}"] = logits.clone()
            names.last = {i: logits[n, 0].numpy() > 0 for n, i in enumerate(ids)}
    return said


@pytest.mark.parametrize("client", [new_states, add_midway])
def test_masks_and_ids_are_stocks(plays: Plays, profile: str, client: Any) -> None:
    plays.check(client, profile)


def test_ids_are_carried_on(plays: Plays) -> None:
    """The detector names its finds in another order every time."""
    assert list(plays(add_midway))[-1] == f"from 4, frame {FRAMES - 1}, objects [1, 2, 3]"
    assert list(plays(add_midway, otherwise=True))[-1].endswith("objects [1, 2]")
