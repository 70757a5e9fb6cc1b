"""A client that goes through frames and objects itself, by sam2's step for one object on one frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.clients.conftest import FRAMES, Answers, Plays, mask


class Loop:
    """A state with two objects, of which either can be tracked into any frame."""

    def __init__(self, predictor: Any, clip: str, second: str) -> None:
        self.predictor, self.state = predictor, predictor.init_state(clip)
        self.said: Answers = {}
        predictor.add_new_mask(self.state, 0, 1, mask("upper"))
        predictor.add_new_mask(self.state, 0, 2, mask(second))
        predictor.propagate_in_video_preflight(self.state)

    def into(self, frame: int, index: int) -> None:
        outputs = self.state["output_dict_per_obj"][index]
        out, logits = self.predictor._run_single_frame_inference(
            self.state, outputs, frame, 1, False, None, None, False, True
        )
        outputs["non_cond_frame_outputs"][frame] = out
        self.said[f"object {index} on frame {frame}"] = logits.clone()

    def prompt(self, frame: int, object_id: int, place: str) -> None:
        self.predictor.add_new_mask(self.state, frame, object_id, mask(place, frame))
        self.predictor.propagate_in_video_preflight(self.state)


@torch.inference_mode()
def object_by_object(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """One object through the whole clip, and then the other."""
    loop = Loop(predictor, clip, "right" if otherwise else "lower")
    for index in range(2):
        for frame in range(1, FRAMES):
            loop.into(frame, index)
    return loop.said


@torch.inference_mode()
def prompted_between(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """Frame by frame; an object is prompted anew after another one was tracked into the frame, and before its turn."""
    loop = Loop(predictor, clip, "lower")
    for frame in range(1, FRAMES):
        loop.into(frame, 0)
        if frame == 2 and not otherwise:
            loop.prompt(1, 2, "right")
        loop.into(frame, 1)
    return loop.said


@pytest.mark.parametrize("client", [object_by_object, prompted_between])
def test_every_step_is_stocks(plays: Plays, profile: str, client: Any) -> None:
    plays.check(client, profile)
