"""sam2's image predictor and its generator of masks on the very model that tracks a video, between two of its frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.clients.conftest import SIDE, Answers, Plays, box, click, mask, near, pictures
from tests.clients.torchvision_ops import declare

declare()

from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator  # noqa: E402
from sam2.sam2_image_predictor import SAM2ImagePredictor  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
"""torchvision scripts its transforms as torch no longer likes it."""

SIZES = [(SIDE // 4,) * 2, (SIDE // 8,) * 2, (SIDE // 16,) * 2]
"""Of the feature levels; sam2 writes those of 1024 pixels down."""

ANOTHER = np.ascontiguousarray(pictures(1)[0][:, ::-1])
"""A picture that isn't of the clip, uint8 ``[H, W, 3]``."""

Seen = dict[str, Any]
"""What the image tools answer."""


def look(predictor: Any) -> Seen:
    """Set a picture, click, refine with the mask, box, and two pictures in a batch."""
    pictures_of = SAM2ImagePredictor(predictor)
    pictures_of._bb_feat_sizes = SIZES
    pictures_of.set_image(ANOTHER)
    x = np.array([[128 - click("upper")[0, 0], click("upper")[0, 1]]])
    masks, scores, low = pictures_of.predict(x, np.array([1]), return_logits=True)
    seen: Seen = {"click": masks, "scores": scores}
    best = low[None, int(scores.argmax())]
    seen["refined"] = pictures_of.predict(
        x, np.array([1]), mask_input=best, multimask_output=False, return_logits=True
    )[0]
    pictures_of.set_image_batch([ANOTHER, pictures(1)[0]])
    boxes = [box("lower"), box("upper")]
    found, *_ = pictures_of.predict_batch(None, None, box_batch=boxes, multimask_output=False, return_logits=True)  # fmt: skip
    return seen | {f"batch {i}": one for i, one in enumerate(found)}


def generate(predictor: Any, picture: np.ndarray = ANOTHER) -> Seen:
    """Every mask that a few points find."""
    generator = SAM2AutomaticMaskGenerator(
        predictor, points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    generator.predictor._bb_feat_sizes = SIZES
    found = generator.generate(picture)
    return {"areas": np.array(sorted(item["area"] for item in found), np.float32)}


def between(predictor: Any, clip: str, looks: bool = True, otherwise: bool = False) -> Answers:
    """Track, and use the image tools between frames 2 and 3 of one propagation."""
    state, said = predictor.init_state(clip), {}
    predictor.add_new_mask(state, 0, 1, mask("lower" if otherwise else "upper"))
    for frame, _, logits in predictor.propagate_in_video(state):
        said[f"frame {frame}"] = logits.clone()
        if looks and frame == 2:
            look(predictor)
            generate(predictor)
    return said


def test_tracking_goes_on_undisturbed(plays: Plays, profile: str) -> None:
    found = plays(between, profile)
    expected = plays(between, profile, looks=False)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    plays.check(between, profile)


def test_pictures_are_seen_as_by_stock(plays: Plays, profile: str) -> None:
    """Under every profile: nothing is left out of a picture."""
    found, expected = look(plays.predictor(profile)), look(plays.stock)
    assert list(found) == list(expected)
    for name, theirs in expected.items():
        ours, theirs = torch.from_numpy(found[name]), torch.from_numpy(theirs)
        assert torch.equal(ours, theirs) if profile == "dense" else near(ours, theirs), name
    assert not near(torch.from_numpy(found["batch 0"]), torch.from_numpy(expected["batch 1"]))


def test_masks_are_generated_as_by_stock(plays: Plays, profile: str) -> None:
    found, expected = (generate(p)["areas"] for p in (plays.predictor(profile), plays.stock))
    assert len(found) == len(expected) > 0
    assert np.array_equal(found, expected) if profile == "dense" else np.allclose(found, expected, rtol=0.02, atol=2)  # fmt: skip
    assert not np.array_equal(found, generate(plays.stock, np.zeros_like(ANOTHER))["areas"])
