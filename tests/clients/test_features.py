"""Features of frames are made once: for several states of one clip, or for another day."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from tests.clients.conftest import FRAMES, Answers, Plays, mask

OBJECTS = {1: "upper", 2: "lower"}

Bank = dict[int, tuple[torch.Tensor, dict[str, Any]]]
"""As sam2's ``cached_features``: a picture ``[1, 3, S, S]`` and its features, by frame."""

NAMES = ("backbone_fpn", "vision_pos_enc", "vision_features")
"""What sam2's ``forward_image`` gives."""


def each_alone(predictor: Any, clip: str, bank: Bank, objects: dict[int, str] = OBJECTS) -> Answers:
    """Track every object in a state of its own, all on the same features."""
    said: Answers = {}
    for object_id, place in objects.items():
        state = predictor.init_state(clip)
        state["cached_features"] = dict(bank)
        predictor.add_new_mask(state, 0, object_id, mask(place))
        for frame, _, logits in predictor.propagate_in_video(state):
            said[f"object {object_id}, frame {frame}"] = logits.clone()
        for frame, entry in bank.items():
            assert state["cached_features"][frame] is entry, "nothing was made anew"
    return said


@torch.inference_mode()
def shared(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """One state's cache, filled frame by frame, serves others; `otherwise` frames are swapped."""
    state, bank = predictor.init_state(clip), {}
    for frame in range(FRAMES):
        predictor._get_image_feature(state, frame, 1)
        bank[frame] = state["cached_features"][frame]
    return each_alone(predictor, clip, mirrored(predictor, bank) if otherwise else bank)


def mirrored(predictor: Any, bank: Bank) -> Bank:
    """Features of the mirrored pictures, but for the first."""
    flipped = {frame: image.flip(-1) for frame, (image, _) in bank.items() if frame}
    return {0: bank[0], **{f: (image, predictor.forward_image(image)) for f, image in flipped.items()}}  # fmt: skip


@torch.inference_mode()
def stored(predictor: Any, clip: str, otherwise: bool = False) -> Answers:
    """Features on disk, by the names that sam2 gives them."""
    images, bank = predictor.init_state(clip)["images"], {}
    for frame in range(FRAMES):
        image = images[frame][None]
        made = predictor.forward_image(image)
        bank[frame] = image, {name: made[name] for name in NAMES}
    if otherwise:
        bank = mirrored(predictor, bank)
    return each_alone(predictor, clip, from_disk(bank), {1: "upper"})


def from_disk(what: Any) -> Any:
    """What was saved, as torch reads it by default: nothing but tensors in plain containers."""
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, map_location="cpu")


def moved(made: dict[str, Any]) -> dict[str, Any]:
    """Features in main memory, entry by entry."""
    return {
        name: [one.to("cpu") for one in entry] if isinstance(entry, list) else entry.to("cpu")
        for name, entry in made.items()
    }


def test_several_states_share_features(plays: Plays, profile: str) -> None:
    plays.check(shared, profile, routes=None)


def test_features_from_disk(plays: Plays, profile: str) -> None:
    """They are whole, so no window is left out of them."""
    plays.check(stored, profile, routes=False)


@pytest.mark.parametrize("client", [from_disk, moved])
def test_all_that_was_given_is_tensors(plays: Plays, profile: str, client: Any) -> None:
    with torch.inference_mode():
        image = plays.stock.init_state(plays.clip)["images"][:1]
        found = [client(p.forward_image(image)) for p in (plays.stock, plays.predictor(profile))]
    assert close_by(found[0]["vision_features"], found[1]["vision_features"])
    assert not close_by(found[0]["vision_features"], found[1]["vision_features"].flip(-1))


def close_by(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether features are the same but for rounding."""
    return torch.allclose(found, expected, atol=1e-4)
