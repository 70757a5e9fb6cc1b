"""The photographed clip: its masks move exactly as its picture does."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sparsity.clips.made import PHOTOGRAPH, photographed_cat
from sparsity.clips.made_scenes import photograph

FRAMES = 5


def test_frames_and_masks_are_of_the_same_place() -> None:
    clip = photographed_cat(FRAMES, (135, 240))
    assert clip.frames.shape == (FRAMES, 135, 240, 3) and clip.masks.shape == (FRAMES, 135, 240)
    assert set(np.unique(clip.masks)) == {0, 1}
    assert not np.array_equal(clip.masks[0], clip.masks[-1])
    # the eye is greener than the fur around it, on every frame; a mask that stays behind is not
    excess = clip.frames[..., 1].astype(float) - clip.frames[..., 0]
    moved = np.roll(clip.masks, 60, axis=2)
    for green, mask, other in zip(excess, clip.masks, moved, strict=True):
        assert green[mask > 0].mean() > green[mask == 0].mean() + 10
        assert green[other > 0].mean() < green[mask > 0].mean() - 10


def test_no_frame_reaches_beyond_the_photograph() -> None:
    picture = np.asarray(photograph(PHOTOGRAPH))
    assert picture.min(axis=2).max() > 0
    for frame in photographed_cat(FRAMES).frames:
        border = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
        assert border.max(axis=1).min() > 0


def test_the_size_may_be_another_and_the_clip_is_the_same_each_time() -> None:
    one, again, small = (photographed_cat(2, size) for size in ((270, 480), (270, 480), (90, 160)))
    assert np.array_equal(one.frames, again.frames) and np.array_equal(one.masks, again.masks)
    shrunk = np.asarray(Image.fromarray(255 * one.masks[1]).resize((160, 90), Image.Resampling.BOX))
    assert ((shrunk > 127) != small.masks[1]).mean() < 0.01
