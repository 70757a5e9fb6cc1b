"""A server of sessions, after that of sam2's demo: start, prompt, propagate and cancel, clear, remove, close.

Sessions take turns, or run in threads of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from tests.clients.conftest import Answers, Plays, click, mask

Step = tuple[str, Any]
"""What is asked, and the answer's logits."""


class Backend:
    """Sessions by their id, on one predictor."""

    def __init__(self, predictor: Any) -> None:
        self.predictor = predictor
        self.sessions: dict[str, dict[str, Any]] = {}

    def start(self, session_id: str, path: str) -> None:
        state = self.predictor.init_state(path, offload_video_to_cpu=True)
        self.sessions[session_id] = {"canceled": False, "state": state}

    def close(self, session_id: str) -> bool:
        return self.sessions.pop(session_id, None) is not None

    def state(self, session_id: str) -> dict[str, Any]:
        return self.sessions[session_id]["state"]

    def add_points(
        self, session_id: str, frame: int, object_id: int, points: np.ndarray, clear: bool = True
    ) -> torch.Tensor:
        labels = np.ones(len(points), np.int32)
        _, _, logits = self.predictor.add_new_points_or_box(
            inference_state=self.state(session_id), frame_idx=frame, obj_id=object_id,
            points=points, labels=labels, clear_old_points=clear, normalize_coords=True,
        )  # fmt: skip
        return logits

    def add_mask(
        self, session_id: str, frame: int, object_id: int, given: np.ndarray
    ) -> torch.Tensor:
        given = torch.tensor(given.astype(np.uint8), dtype=torch.bool)
        _, _, logits = self.predictor.add_new_mask(
            inference_state=self.state(session_id), frame_idx=frame, obj_id=object_id, mask=given
        )
        return logits

    def clear_in_frame(self, session_id: str, frame: int, object_id: int) -> torch.Tensor:
        _, _, logits = self.predictor.clear_all_prompts_in_frame(
            self.state(session_id), frame, object_id
        )
        return logits

    def clear_in_video(self, session_id: str) -> None:
        self.predictor.reset_state(self.state(session_id))

    def remove(self, session_id: str, object_id: int) -> list[torch.Tensor]:
        _, updated = self.predictor.remove_object(self.state(session_id), object_id)
        return [logits for _, logits in updated]

    def cancel(self, session_id: str) -> None:
        self.sessions[session_id]["canceled"] = True

    def propagate(
        self, session_id: str, start: int | None = None, direction: str = "both"
    ) -> Iterator[tuple[int, torch.Tensor]]:
        session = self.sessions[session_id]
        session["canceled"] = False
        for reverse in (False, True):
            if direction not in ("both", "backward" if reverse else "forward"):
                continue
            for frame, _, logits in self.predictor.propagate_in_video(
                inference_state=session["state"], start_frame_idx=start,
                max_frame_num_to_track=None, reverse=reverse,
            ):  # fmt: skip
                if session["canceled"]:
                    return
                yield frame, logits


def painter(backend: Backend, clip: str, otherwise: bool) -> Iterator[Step]:
    """A user with two objects: cancels, adds, clears, clicks again, removes."""
    me = "painter"
    backend.start(me, clip)
    yield "click", backend.add_points(me, 0, 1, click("upper"))
    for frame, logits in backend.propagate(me, direction="forward"):
        yield f"begun {frame}", logits
        if frame == 2:
            backend.cancel(me)
    yield "added", backend.add_points(me, 2, 2, click("upper" if otherwise else "lower", 2))
    for frame, logits in backend.propagate(me, 2, "forward"):
        yield f"both {frame}", logits
        if frame == 3:
            backend.cancel(me)
    yield "cleared", backend.clear_in_frame(me, 2, 2)
    yield "again", backend.add_points(me, 2, 2, click("lower", 2, right=-4))
    for logits in backend.remove(me, 1):
        yield "removed", logits
    for frame, logits in backend.propagate(me, 3, "forward"):
        yield f"left {frame}", logits
    backend.close(me)


def masker(backend: Backend, clip: str, otherwise: bool) -> Iterator[Step]:
    """A user with a mask on a later frame, tracked both ways, who then begins anew."""
    me = "masker"
    backend.start(me, clip)
    yield "mask", backend.add_mask(me, 3, 7, mask("right", 3))
    for frame, logits in backend.propagate(me):
        yield f"found {frame}", logits
    backend.clear_in_video(me)
    yield "anew", backend.add_mask(me, 0, 8, mask("upper" if otherwise else "right"))
    for frame, logits in backend.propagate(me, 0, "both"):
        yield f"new {frame}", logits
        if frame == 1:
            backend.cancel(me)
    backend.close(me)


def said(name: str, steps: Iterator[Step]) -> Iterator[tuple[str, torch.Tensor]]:
    """Steps under names that none other has."""
    for i, (what, logits) in enumerate(steps):
        yield f"{name} {i}, {what}", logits.clone()


def in_turns(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """Two sessions, a step of one and a step of the other; each answer is one request."""
    backend, found = Backend(predictor), []
    waiting = [said(user.__name__, user(backend, clip, otherwise)) for user in (painter, masker)]
    while waiting:
        for steps in list(waiting):
            answer = next(steps, None)
            if answer is None:
                waiting.remove(steps)
            else:
                found.append(answer)
    assert not backend.sessions
    return dict(sorted(found))


def in_threads(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """Two sessions at the same time, each in a thread of its own, which begin together."""
    backend, begin = Backend(predictor), threading.Barrier(2)

    def one(user: Any) -> list[tuple[str, torch.Tensor]]:
        torch.set_num_threads(1)
        begin.wait()
        return list(said(user.__name__, user(backend, clip, otherwise)))

    with ThreadPoolExecutor(2) as threads:
        found = [answer for answers in threads.map(one, (painter, masker)) for answer in answers]
    assert not backend.sessions
    return dict(sorted(found))


def test_sessions_in_turns(plays: Plays, profile: str) -> None:
    plays.check(in_turns, profile)


@pytest.mark.parametrize("profile", ["exact", "recommended"])
def test_sessions_in_threads_are_those_in_turns(plays: Plays, profile: str) -> None:
    """Bit for bit: nothing of a video lies on the model. The other profiles do nothing that these don't."""
    turns, threads = plays(in_turns, profile), plays(in_threads, profile)
    assert list(threads) == list(turns)
    assert all(torch.equal(threads[name], turns[name]) for name in turns)
    assert not all(torch.equal(plays(in_turns, otherwise=True)[name], turns[name]) for name in turns)  # fmt: skip


def test_an_object_without_prompt_is_refused_in_the_same_words(plays: Plays, profile: str) -> None:
    """A user who clears the only click of an object, and propagates."""
    messages = []
    for name in (None, profile):
        backend = Backend(plays.predictor(name))
        backend.start("one", plays.clip)
        backend.add_points("one", 0, 1, click("upper"))
        backend.add_points("one", 0, 2, click("lower"))
        assert len(list(backend.propagate("one", direction="backward"))) == 0
        backend.clear_in_frame("one", 0, 2)
        with pytest.raises(RuntimeError) as refused:
            list(backend.propagate("one"))
        messages.append(str(refused.value))
        backend.remove("one", 2)
        assert next(backend.propagate("one"))[1].shape == (1, 1, 96, 128)
    assert messages[0] == messages[1] and "object id 2" in messages[0]
