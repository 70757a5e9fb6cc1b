"""Predictors that share modules in threads of their own: an observer does not take one for the other."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
import torch

from probes.models import build_predictor
from probes.observing import AttentionCall, observe
from sparsity import accelerate
from sparsity.demo.clips import make_clip


@pytest.fixture(scope="module")
def demo_predictor() -> Any:
    return build_predictor("demo", image_size=256, device="cpu")


def track(predictor: Any, object_id: int, frames: int) -> None:
    clip = make_clip("smooth", object_id, frames, (144, 256))
    with torch.inference_mode():
        state = predictor.init_state(clip.frames)
        predictor.add_new_mask(state, 0, object_id, clip.masks[0] == 1)
        for _ in predictor.propagate_in_video(state):
            pass


@pytest.mark.parametrize("inside", [True, False])
def test_another_thread_is_not_taken_for_the_own_predictor(
    demo_predictor: Any, inside: bool
) -> None:
    """The other one tracks in a thread while this one is inside a call of memory attention."""
    observed, other = (accelerate(demo_predictor, "dense") for _ in range(2))
    heard: list[tuple[int | None, tuple[int, ...]]] = []

    def note(call: AttentionCall) -> None:
        heard.append((call.moment.frame, call.moment.objects))
        if inside and len(heard) == 1:
            thread = Thread(target=track, args=(other, 7, 3))
            thread.start()
            thread.join()

    with observe(observed, note, "memory.layer0.cross"):
        track(observed, 1, frames=4)
        assert heard == [(1, (1,)), (2, (1,)), (3, (1,))]
        track(other, 7, frames=2)
    assert heard[3:] == [(None, ())], "between the own steps others are heard, without a frame"
