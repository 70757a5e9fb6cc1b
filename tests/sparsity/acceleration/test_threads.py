"""Many threads on one predictor, each with videos of its own: as one after the other."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from probes.errors import InputError
from probes.observing import listen
from sparsity import accelerate
from tests.sparsity.acceleration.conftest import PROMPTS, Prompt, make_frames, make_mask, track

FRAMES = 3

Job = tuple[int, int, str, bool]
"""By how much a clip is moved, frames that are tracked before a click, the prompt's kind, and whether an object is added."""


def jobs(seed: int, count: int) -> list[Job]:
    """Videos of one thread."""
    drawn = random.Random(seed)
    kinds = ["mask", "point", "three objects"]
    return [
        (drawn.randrange(40), drawn.randrange(1, FRAMES), drawn.choice(kinds), drawn.random() < 0.3)
        for _ in range(count)
    ]


def done(predictor: Any, job: Job) -> Iterator[Tensor]:
    """Track a video with a click in between; yields after every step of it."""
    moved, before, kind, added = job
    clip = np.roll(make_frames(FRAMES), moved, 2)
    state = predictor.init_state(clip)
    for prompt in PROMPTS[kind]:
        prompt.give(predictor, state)
    for frame, _, logits in predictor.propagate_in_video(state):
        yield logits.clone()
        if frame + 1 == before:
            break
    Prompt(before - 1, 1, points=((50.0 + moved, 40.0),)).give(predictor, state)
    for _, _, logits in predictor.propagate_in_video(state, before - 1):
        yield logits.clone()
    if added:
        Prompt(0, 9, make_mask()).give(predictor, state)
        for _, _, logits in predictor.propagate_in_video(state):
            yield logits.clone()


def worked(predictor: Any, todo: list[Job], profile: str) -> list[Tensor]:
    """What a thread makes of its videos."""
    with predictor.use(profile, force=True):
        return [found for job in todo for found in done(predictor, job)]


def test_threads_get_what_they_would_get_one_after_the_other(small_demo: Any) -> None:
    """Each under a profile of its own, their steps mixed as the system likes."""
    fast = accelerate(small_demo, "exact")
    profiles = ["dense", "exact", "recommended", "paper"]
    todo = {name: jobs(i, 2) for i, name in enumerate(profiles)}
    expected = {name: worked(fast, todo[name], name) for name in profiles}
    with ThreadPoolExecutor(len(profiles)) as pool:
        running = {name: pool.submit(worked, fast, todo[name], name) for name in profiles}
        found = {name: future.result() for name, future in running.items()}
    for name in profiles:
        assert len(found[name]) == len(expected[name]) > FRAMES
        assert all(map(torch.equal, found[name], expected[name])), name
    different = zip(expected["dense"], expected["recommended"], strict=False)
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in different)


def test_weights_are_packed_once_by_whoever_comes_first(small_demo: Any) -> None:
    fast = accelerate(copy.deepcopy(small_demo), "exact")
    together, made = Barrier(4), []

    def begin() -> None:
        together.wait()
        track(fast, make_frames(3), PROMPTS["mask"])
        made.append((fast.parts.encoder, fast.parts.attention))

    threads = [Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4 and len(set(made)) == 1


def test_one_state_in_two_threads_is_an_error(
    small_demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a step is under way in one thread, another one's is refused; later it may."""
    fast = accelerate(small_demo, "exact")
    state = fast.init_state(make_frames(FRAMES))
    PROMPTS["mask"][0].give(fast, state)
    inside, leave = Event(), Event()
    heads = fast._forward_sam_heads

    def slow(*args: Any, **kwargs: Any) -> Any:
        inside.set()
        assert leave.wait(60)
        return heads(*args, **kwargs)

    monkeypatch.setitem(fast.__dict__, "_forward_sam_heads", slow)
    found: list[Tensor] = []
    thread = Thread(
        target=lambda: found.extend(m.clone() for *_, m in fast.propagate_in_video(state))
    )
    thread.start()
    assert inside.wait(60)
    for attempt in (
        lambda: next(fast.propagate_in_video(state)),
        lambda: fast.add_new_mask(state, 1, 2, make_mask()),
        lambda: fast.add_new_points_or_box(state, 1, 2, [[40.0, 40.0]], [1]),
        lambda: fast.remove_object(state, 1),
        lambda: fast.reset_state(state),
    ):
        with pytest.raises(
            InputError, match="tracked in another thread; expected one thread at a time"
        ):
            attempt()
    assert state["obj_ids"] == [1], "nothing was done"
    leave.set()
    thread.join()
    assert len(found) == FRAMES
    fast.add_new_mask(state, 1, 2, make_mask())
    assert state["obj_ids"] == [1, 2]


def test_a_profile_is_used_in_its_thread_alone(small_demo: Any) -> None:
    fast = accelerate(small_demo, "exact")
    with fast.use("dense"), ThreadPoolExecutor(1) as pool:
        assert fast.profile.name == "dense"
        assert pool.submit(lambda: fast.profile.name).result() == "exact"
    assert fast.profile.name == "exact"


@pytest.mark.parametrize("profile", ["dense", "exact"])
def test_what_is_heard_belongs_to_its_thread(small_demo: Any, profile: str) -> None:
    """Two threads track different videos, and one listener hears both."""
    fast, heard = accelerate(small_demo, profile), list[tuple[int | None, tuple[int, ...]]]()
    with listen(fast, decoded=lambda told: heard.append((told.moment.frame, told.moment.objects))):
        todo = [("mask", 1), ("three objects", 2)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda job: track(fast, make_frames(5), PROMPTS[job[0]]), todo))
    alone: list[tuple[int | None, tuple[int, ...]]] = []
    with listen(fast, decoded=lambda told: alone.append((told.moment.frame, told.moment.objects))):
        for kind, _ in todo:
            track(fast, make_frames(5), PROMPTS[kind])
    assert sorted(heard) == sorted(alone) and len(heard) > 8
