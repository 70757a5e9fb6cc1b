"""The program that evaluates sam2 on data sets (sam2's ``tools/vos_inference.py``): masks in, masks out, object by object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.clients.conftest import FRAMES, HEIGHT, WIDTH, Answers, Plays, mask

Masks = dict[int, np.ndarray]
"""By object, bool ``[H, W]``."""


def per_object(logits: torch.Tensor, ids: list[int], threshold: float = 0.0) -> Masks:
    """As the program thresholds them."""
    return {object_id: (logits[i] > threshold).cpu().numpy()[0] for i, object_id in enumerate(ids)}


def together(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """All objects in one state, with the masks of the first frame; `otherwise` one has another's mask."""
    state = predictor.init_state(video_path=clip, async_loading_frames=False)
    places = {3: "upper", 7: "upper" if otherwise else "lower"}
    for object_id, place in places.items():
        predictor.add_new_mask(
            inference_state=state, frame_idx=0, obj_id=object_id, mask=mask(place)
        )
    segments: dict[int, Masks] = {}
    said: Answers = {}
    for frame, ids, logits in predictor.propagate_in_video(state):
        segments[frame] = per_object(logits, ids)
        said[f"frame {frame}, objects {ids}"] = logits.clone()
    assert all(found.shape == (HEIGHT, WIDTH) for masks in segments.values() for found in masks.values())  # fmt: skip
    return said


def one_by_one(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """Each object alone in the state, from the frame it appears on; `otherwise` the late one appears a frame later."""
    appearances = {3: [0], 7: [2, 4]}
    if otherwise:
        appearances[7] = [3, 4]
    places = {3: "upper", 7: "lower"}
    state = predictor.init_state(video_path=clip, async_loading_frames=False)
    scores: dict[int, dict[int, torch.Tensor]] = {}
    for object_id, frames in appearances.items():
        predictor.reset_state(state)
        for frame in frames:
            predictor.add_new_mask(state, frame, object_id, torch.from_numpy(mask(places[object_id], frame)))  # fmt: skip
        found = predictor.propagate_in_video(state, start_frame_idx=min(frames), reverse=False)
        scores[object_id] = {frame: logits.clone() for frame, _, logits in found}
    said: Answers = {}
    empty = torch.full((1, 1, HEIGHT, WIDTH), -1024.0)
    for frame in range(FRAMES):
        all_scores = [scores[object_id].get(frame, empty) for object_id in appearances]
        said[f"frame {frame}"] = predictor._apply_non_overlapping_constraints(torch.cat(all_scores))
    return said


@pytest.mark.parametrize("client", [together, one_by_one])
def test_masks_are_stocks(plays: Plays, profile: str, client: Any) -> None:
    plays.check(client, profile)


def test_the_masks_are_of_the_objects(plays: Plays) -> None:
    """The model tracks: what agrees is not two kinds of noise."""
    last = plays(together)[f"frame {FRAMES - 1}, objects [3, 7]"]
    for found, place in zip(last, ("upper", "lower"), strict=True):
        expected = torch.from_numpy(mask(place, FRAMES - 1))
        agreed = (found[0] > 0) & expected
        assert float(agreed.sum() / ((found[0] > 0) | expected).sum()) > 0.7
