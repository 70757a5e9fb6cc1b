"""A state that is copied or pickled midway, and tracked on from the copy: here, or in a process of its own."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch

from tests.clients.conftest import PROFILES, Answers, Plays, iou, mask

MIDWAY = 2
"""The frame after which the state is copied: windows were left out of it."""


def begun(predictor: Any, clip: str, otherwise: bool = False) -> dict[str, Any]:
    """A state that was tracked halfway, with two objects."""
    state: dict[str, Any] = predictor.init_state(clip)
    predictor.add_new_mask(state, 0, 1, mask("upper"))
    predictor.add_new_mask(state, 0, 2, mask("upper" if otherwise else "lower"))
    for _ in predictor.propagate_in_video(state, max_frame_num_to_track=MIDWAY):
        pass
    return state


def rest(predictor: Any, state: dict[str, Any]) -> Answers:
    """Track on to the end, and correct an object on the way back."""
    said: Answers = {}
    for frame, ids, logits in predictor.propagate_in_video(state, MIDWAY + 1):
        said[f"frame {frame}, objects {list(ids)}"] = logits.clone()
    frame, ids, logits = predictor.add_new_mask(state, MIDWAY, 2, mask("lower", MIDWAY))
    said[f"corrected {frame}, objects {list(ids)}"] = logits.clone()
    return said


def here(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """Without a copy."""
    return rest(predictor, begun(predictor, clip, otherwise))


def from_copies(predictor: Any, clip: str) -> Answers:
    """From a deep copy of an unpickled one, after the state itself was emptied."""
    state = begun(predictor, clip)
    copied = copy.deepcopy(pickle.loads(pickle.dumps(state)))
    predictor.reset_state(state)
    return rest(predictor, copied)


def elsewhere(given: bytes) -> bytes:
    """The rest of several videos in another process, each with the predictor that came along."""
    torch.set_num_threads(1)
    return pickle.dumps([rest(predictor, state) for predictor, state in pickle.loads(given)])


@pytest.fixture(scope="module")
def from_elsewhere(plays: Plays) -> dict[str | None, Answers]:
    """Answers of one other process, by profile; None is stock's."""
    names = [None, *PROFILES]
    predictors = [plays.predictor(name) for name in names]
    given = pickle.dumps([(predictor, begun(predictor, plays.clip)) for predictor in predictors])
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found: list[Answers] = pickle.loads(pool.submit(elsewhere, given).result())
    return dict(zip(names, found, strict=True))


def same(found: Answers, expected: Answers) -> bool:
    """Whether all answers are the same, bit for bit."""
    equal = (torch.equal(found[name], expected[name]) for name in expected)
    return list(found) == list(expected) and all(equal)


def test_copies_go_on_as_the_state_itself(plays: Plays, profile: str) -> None:
    plays.check(here, profile)
    assert same(plays(from_copies, profile), plays(here, profile))
    assert not same(plays(from_copies, profile), plays(here, otherwise=True))


@pytest.mark.process
def test_another_process_goes_on(
    plays: Plays, profile: str, from_elsewhere: dict[str | None, Answers]
) -> None:
    found, expected = from_elsewhere[profile], plays(here, profile)
    if profile in ("dense", "exact"):
        assert same(found, expected)
    else:  # nothing is left out of the first frame there, as weights may be others
        assert list(found) == list(expected)
        assert all(iou(found[name], expected[name]) > 0.9 for name in expected)
    assert same(from_elsewhere[None], plays(here))
    assert not same(from_elsewhere[profile], plays(here, otherwise=True))
