"""Made clips: the same every time, exact masks, and each name shows its difficulty."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from sparsity.clips.made import CLIP_NAMES, make_clip
from sparsity.clips.made_scenes import SCENES, SURFACES

SIZE = (96, 160)


@cache
def long_clip(name, seed):
    """A clip of 32 frames, made once."""
    return make_clip(name, seed, 32, SIZE)


@pytest.mark.parametrize("name", CLIP_NAMES)
def test_a_clip_is_the_same_for_the_same_seed(name):
    first, again = make_clip(name, 3, 6, SIZE), make_clip(name, 3, 6, SIZE)
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.masks, again.masks)


@pytest.mark.parametrize("name", CLIP_NAMES)
def test_a_clip_differs_for_another_seed(name):
    assert not np.array_equal(
        make_clip(name, 3, 4, SIZE).frames, make_clip(name, 4, 4, SIZE).frames
    )


@pytest.mark.parametrize("name", CLIP_NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_every_object_is_seen_in_frame_0_and_absence_is_told(name, seed):
    clip = long_clip(name, seed)
    count = clip.absent.shape[1]
    assert clip.frames.shape == (32, *SIZE, 3) and clip.frames.dtype == np.uint8
    assert clip.masks.shape == (32, *SIZE) and clip.masks.max() <= count
    for i in range(count):
        seen = (clip.masks == i + 1).any((1, 2))
        assert seen[0], f"object {i + 1} is not in frame 0"
        assert np.array_equal(seen, ~clip.absent[:, i])


@pytest.mark.parametrize("count", [1, 3, 8])
def test_leavers_and_many_are_all_there_at_the_start(count):
    for name in ("leave_and_return", "many_objects", "occlusion", "distractors"):
        clip = make_clip(name, 5, 2, (144, 256), objects=count)
        assert clip.absent.shape == (2, count) and not clip.absent[0].any()


def test_the_mask_is_exactly_what_the_object_covers():
    """Without camera motion, pixels change between two frames only where an object was or is."""
    clip = make_clip("static_camera", 2, 12, SIZE)
    for t in range(1, 12):
        near = _grown(clip.masks[t] > 0) | _grown(clip.masks[t - 1] > 0)
        changed = (clip.frames[t] != clip.frames[t - 1]).any(-1)
        assert not (changed & ~near).any()
        assert changed[near].any()


def test_a_moving_camera_changes_the_background():
    clip = make_clip("smooth", 2, 12, SIZE)
    outside = ~(_grown(clip.masks[0] > 0) | _grown(clip.masks[11] > 0))
    assert (clip.frames[0] != clip.frames[11]).any(-1)[outside].mean() > 0.2


@pytest.mark.parametrize("name", ["occlusion", "leave_and_return", "changing_look"])
def test_hidden_objects_go_and_come_back(name):
    for seed in range(4):
        absent = long_clip(name, seed).absent[:, 0]
        assert (1 if name == "changing_look" else 3) <= absent.sum() <= 24
        gone = int(np.argmax(absent))
        assert not absent[gone:].all(), "it never comes back"


@pytest.mark.parametrize("name", ["smooth", "fast", "distractors", "tiny", "static_camera"])
def test_the_others_stay(name):
    for seed in range(4):
        assert not long_clip(name, seed).absent.any()


def test_fast_is_faster_than_smooth_and_tiny_is_small():
    def step(name):
        clip = make_clip(name, 1, 16, SIZE)
        centres = np.array([np.argwhere(m > 0).mean(0) for m in clip.masks])
        return np.linalg.norm(np.diff(centres, axis=0), axis=1).mean()

    assert step("fast") > 3 * step("smooth")
    assert (make_clip("tiny", 1, 2, SIZE).masks > 0).mean() < 0.005
    assert (make_clip("smooth", 1, 2, SIZE).masks > 0).mean() > 0.02


def test_look_alikes_differ_in_colour_and_not_in_shape():
    clip = make_clip("distractors", 0, 2, (144, 256))
    areas = [(clip.masks[0] == i).sum() for i in (1, 2)]
    assert abs(areas[0] - areas[1]) < 0.1 * areas[0]
    colours = [clip.frames[0][clip.masks[0] == i].mean(0) for i in (1, 2)]
    assert np.abs(colours[0] - colours[1]).max() > 20


def test_a_scene_cut_changes_nearly_every_pixel():
    clip = make_clip("scene_cut", 0, 12, SIZE)
    change = [(clip.frames[t] != clip.frames[t - 1]).any(-1).mean() for t in range(1, 12)]
    assert change[3] > 0.9 and change[7] > 0.9


def test_a_changing_look_changes_and_a_plain_one_does_not():
    def drift(name):
        clip = make_clip(name, 6, 24, SIZE)
        shown = np.flatnonzero(~clip.absent[:, 0])
        ends = [clip.frames[t][clip.masks[t] == 1].mean(0) for t in (shown[0], shown[-1])]
        return np.abs(ends[0] - ends[1]).max()

    assert drift("changing_look") > 2 * drift("static_camera")


def test_scenes_and_surfaces_are_different_photographs():
    assert not set(SCENES) & set(SURFACES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "slow"}, "expected one of smooth"),
        ({"name": "smooth", "objects": 9}, "objects is 9"),
        ({"name": "smooth", "frames": 0}, "frames is 0"),
        ({"name": "smooth", "size": (16, 64)}, "32 x 32"),
    ],
)
def test_bad_requests_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_clip(**arguments)


def _grown(mask):
    grown = mask.copy()
    for _ in range(4):
        padded = np.pad(grown, 1)
        grown = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1]
        grown |= padded[1:-1, :-2] | padded[1:-1, 2:]
    return grown
