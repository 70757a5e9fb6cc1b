"""A camera whose frames are pushed: as the same frames from an iterator."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from probes.errors import InputError
from probes.observing import listen
from sparsity import accelerate
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.profile import load_profile
from tests.sparsity.acceleration.conftest import (
    encoded,
    make_frames,
    make_mask,
    off_by,
    part_of_mask,
    run,
)

SIZE, FRAMES = (96, 128), 8


@pytest.fixture(params=["dense", "exact", "recommended"])
def fast(request: pytest.FixtureRequest, small_demo: Any) -> EfficientSAM2VideoPredictor:
    return accelerate(small_demo, request.param)


def pushed(camera: Any, frames: np.ndarray) -> list[dict[Any, Tensor]]:
    """Masks of frames, through one buffer as cameras have it."""
    buffer, found = np.empty_like(frames[0]), []
    for frame in frames:
        buffer[:] = frame
        found.append(camera.track(buffer))
    return found


def test_masks_are_those_of_the_iterator(fast: Any) -> None:
    """Prompted before the first frame, on a frame just seen, and corrected after it was tracked."""
    frames = make_frames(FRAMES)
    camera = fast.camera(SIZE)
    assert camera.prompt(1, mask=part_of_mask(0)) == {} and camera.report() is None
    found = pushed(camera, frames[:3])
    on_it = camera.prompt("late", box=(30, 20, 80, 75))
    assert set(on_it) == {1, "late"}
    found += pushed(camera, frames[3:5])
    corrected = camera.prompt(1, mask=part_of_mask(1))
    wanted = torch.from_numpy(part_of_mask(1))
    assert (corrected[1] & wanted).sum() / (corrected[1] | wanted).sum() > 0.9
    found += pushed(camera, frames[5:])
    assert camera.frame == FRAMES - 1 and camera.objects == [1, "late"]

    state = fast.init_state(iter(frames), history="bounded", corrections="keep")
    fast.add_new_mask(state, 0, 1, part_of_mask(0))
    expected = run(fast, state, max_frame_num_to_track=2)
    fast.add_new_points_or_box(state, 2, "late", box=np.float32([30, 20, 80, 75]))
    expected |= run(fast, state, start_frame_idx=3, max_frame_num_to_track=1)
    fast.add_new_mask(state, 4, 1, part_of_mask(1))
    expected |= run(fast, state, start_frame_idx=5)
    for t, masks in enumerate(found):
        assert list(masks) == ([1] if t < 3 else [1, "late"])
        for k, mask in enumerate(masks.values()):
            assert torch.equal(mask, expected[t][k, 0] > 0), t
    assert not torch.equal(found[5][1], found[1][1])
    reported = [(f.frame, f.reason) for f in camera.report().frames]
    assert [t for t, _ in reported] == list(range(1, FRAMES))


def test_objects_come_and_go(fast: Any) -> None:
    camera = fast.camera(SIZE)
    assert pushed(camera, make_frames(2)) == [{}, {}]
    camera.prompt("a", points=[(50, 48)])
    camera.prompt("b", points=[(50, 48), (5, 5)], labels=[1, 0])
    assert set(camera.track(make_frames(3)[2])) == {"a", "b"}
    camera.forget("a")
    assert set(camera.track(make_frames(4)[3])) == {"b"} and camera.objects == ["b"]
    camera.forget("b")
    assert camera.track(make_frames(5)[4]) == {}
    camera.prompt("a", mask=make_mask(4))
    assert camera.track(make_frames(6)[5])["a"].any()


def raising(*_: Any) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("where", ["image_encoder", "sam_prompt_encoder"])
def test_a_camera_goes_on_where_its_first_frame_failed(tiny_demo: Any, where: str) -> None:
    """With the next one in its place, and all prompts; alone and beside another camera."""
    fast, frames = accelerate(tiny_demo, "dense"), make_frames(3)

    def begun() -> Any:
        camera = fast.camera(SIZE)
        camera.prompt(1, mask=make_mask())
        camera.prompt(2, points=[(50, 48)])
        return camera

    one, two, three = (begun() for _ in range(3))
    with fast.get_submodule(where).register_forward_hook(raising):
        with pytest.raises(ZeroDivisionError):
            one.track(frames[0])
        with pytest.raises(ZeroDivisionError):
            fast.track_cameras({two: frames[0], three: frames[0]})
    expected = pushed(begun(), frames[1:])
    for camera in (one, two, three):
        assert (camera.frame, camera.objects) == (-1, [1, 2])
        found = pushed(camera, frames[1:])
        for masks, wanted in zip(found, expected, strict=True):
            assert masks.keys() == wanted.keys() == {1, 2}
            assert all(torch.equal(masks[i], wanted[i]) for i in masks)
    assert not torch.equal(expected[0][1], expected[1][1])


def test_a_prompt_that_failed_leaves_no_object(tiny_demo: Any) -> None:
    fast = accelerate(tiny_demo, "exact")
    camera = fast.camera(SIZE)
    camera.prompt(1, mask=make_mask())
    pushed(camera, make_frames(2))
    for name in (1, 2):
        with (
            fast.sam_prompt_encoder.register_forward_hook(raising),
            pytest.raises(ZeroDivisionError),
        ):
            camera.prompt(name, points=[(50, 48)])
    assert camera.objects == [1] == list(camera.track(make_frames(3)[2]))
    camera.prompt(2, points=[(50, 48)])
    assert camera.objects == [1, 2]


def test_two_cameras_on_one_predictor(fast: Any) -> None:
    """In turn, and in threads: as alone."""
    clips = make_frames(5), np.ascontiguousarray(make_frames(5)[:, ::-1])
    masks = make_mask(), np.ascontiguousarray(make_mask()[::-1])

    def begun(k: int) -> Any:
        camera = fast.camera(SIZE)
        camera.prompt(1, mask=masks[k])
        return camera

    alone = [[m[1] for m in pushed(begun(k), clips[k])] for k in (0, 1)]
    cameras = [begun(k) for k in (0, 1)]
    turns = [[cameras[k].track(clips[k][t])[1] for k in (0, 1)] for t in range(5)]
    with ThreadPoolExecutor(2) as pool:
        threads = [
            [m[1] for m in found]
            for found in pool.map(lambda k: pushed(begun(k), clips[k]), (0, 1))
        ]
    for k in (0, 1):
        assert all(torch.equal(turns[t][k], alone[k][t]) for t in range(5))
        if fast.profile.name == "exact":
            assert all(map(torch.equal, threads[k], alone[k]))
    assert not torch.equal(alone[0][4], alone[1][4])


def test_nothing_is_kept_beyond_what_memory_needs(small_demo: Any) -> None:
    small_demo = accelerate(small_demo, "exact")
    camera = small_demo.camera(SIZE)
    camera.prompt(1, mask=make_mask())
    kept = []
    for t in range(40):
        camera.track(make_frames(8)[t % 8])
        state = camera._state
        outputs = state["output_dict_per_obj"][0]
        kept.append((
            len(outputs["non_cond_frame_outputs"]), len(state["frames_tracked_per_obj"][0]),
            len(state["images"].source._held), len(camera._pushed), len(state["cached_features"]),
        ))  # fmt: skip
    assert kept[39] == kept[30] and max(kept[39]) <= 17


def test_what_cannot_be_used_is_refused(small_demo: Any) -> None:
    camera = accelerate(small_demo).camera(SIZE)
    for size in ((0, 512), (480.0, 640), 480, (480, 640, 3)):
        with pytest.raises(InputError, match=r"size .* given; expected height and width in pixels"):
            accelerate(small_demo).camera(size)
    for call, words in (
        (lambda: camera.track(make_frames(1)[0, :50]), r"uint8 \[50, 128, 3\] was pushed; expected uint8 \[96, 128, 3\]"),
        (lambda: camera.track(np.zeros((96, 128, 3))), "a frame float64"),
        (lambda: camera.prompt(1), "given with nothing; expected a mask, or points"),
        (lambda: camera.prompt(1, mask=make_mask(), box=(1, 2, 3, 4)), "a mask and more"),
        (lambda: camera.prompt(1, mask=make_mask()[1:]), r"expected \[96, 128\], as the video"),
        (lambda: camera.prompt(1, mask=np.zeros(SIZE)), "the mask is empty"),
        (lambda: camera.prompt(1, box=(300, 2, 400, 50)), "box 300,2,400,50 is empty or lies outside; the video is 128x96"),
        (lambda: camera.prompt(1, box=(40, 20, 10, 50)), "box 40,20,10,50 is empty"),
        (lambda: camera.prompt(1, box=(0.1, 0.2, 0.5, 0.6)), "expected pixels of the video"),
        (lambda: camera.prompt(1, points=[(5, 96)]), "point 5,96 lies outside"),
        (lambda: camera.prompt(1, points=[(5, 6)], labels=[1, 0]), "1 points and 2 labels"),
        (lambda: camera.prompt(1, box=(1, 2, 3)), "a box given as .* expected left, top, right and bottom"),
        (lambda: camera.prompt(1, points=[[1, 2, 3]]), "points given as .* expected x and y of each"),
        (lambda: camera.forget(3), "object 3 was to be forgotten; tracked are none"),
        (lambda: accelerate(small_demo).camera(SIZE, history="all"), "history 'all' given"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            call()
    assert camera.frame == -1 and camera.objects == []


def test_an_object_that_is_prompted_twice_before_the_first_frame_is_one(small_demo: Any) -> None:
    camera = accelerate(small_demo, "exact").camera(SIZE)
    for name, mask in (("a", make_mask()), ("b", part_of_mask(0)), ("a", part_of_mask(0))):
        camera.prompt(name, mask=mask)
    assert camera.objects == ["a", "b"] == list(camera.track(make_frames(1)[0]))


class Encodings(TorchFunctionMode):
    """Listens to the first convolution of the image encoder: how many pictures each of its calls was given."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and args[0].shape[1] == 3:
            self.pictures.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def logits_of(camera: Any) -> dict[int, Tensor]:
    """Low-resolution mask logits of the first object by frame."""
    results = camera._state["output_dict_per_obj"][0]
    both = results["cond_frame_outputs"] | results["non_cond_frame_outputs"]
    return {t: found["pred_masks"] for t, found in both.items()}


def same_masks(found: Tensor, expected: Tensor) -> bool:
    """Whether masks are equal but for pixels whose logit a batch's rounding takes across zero."""
    return int((found != expected).sum()) <= 2


def test_frames_that_come_together_are_encoded_in_one_batch(fast: Any) -> None:
    """As cameras alone, from the first frame on; a camera without objects has nothing encoded, and sizes may differ."""
    small = np.ascontiguousarray(make_frames(5)[:, ::-1, :100])
    clips = [make_frames(5), small, make_frames(5)]
    masks = [make_mask(), np.ascontiguousarray(make_mask()[::-1, :100]), None]

    def begun() -> list[Any]:
        cameras = [fast.camera(clip.shape[1:3]) for clip in clips]
        for camera, mask in zip(cameras, masks, strict=True):
            if mask is not None:
                camera.prompt(1, mask=mask)
        return cameras

    single, cameras = begun(), begun()
    alone = [pushed(camera, clip) for camera, clip in zip(single, clips, strict=True)]
    with Encodings() as listened:
        together = []
        for t in range(5):
            given = {camera: clip[t] for camera, clip in zip(cameras, clips, strict=True)}
            together.append(fast.track_cameras(given))
    assert listened.pictures == [2] * 5
    for k, camera in enumerate(cameras):
        for t in range(5):
            found, expected = together[t][camera], alone[k][t]
            assert found.keys() == expected.keys() == ({1} if k < 2 else set())
            assert all(same_masks(found[i], expected[i]) for i in found), (k, t)
        said = [f.encoded_together for f in camera.report().frames]
        assert said == ([2] * 4 if k < 2 else [])
    for one, other in zip(single[:2], cameras[:2], strict=True):
        found, expected = logits_of(other), logits_of(one)
        assert found.keys() == expected.keys() == set(range(5))
        assert all(off_by(found[t], expected[t]) < 1e-4 for t in found)
    assert off_by(logits_of(single[0])[4], logits_of(single[1])[4]) > 1e-3
    with Encodings() as listened:
        for camera, clip in zip(begun(), clips, strict=True):
            camera.track(clip[0])
    assert listened.pictures == [1, 1, 1]


@pytest.mark.parametrize("half", [False, True])
def test_pictures_of_one_batch_are_encoded_as_each_alone(stock: Any, half: bool) -> None:
    """By the rewritten encoder, with and without padded windows; and what later frames take over is each one's own."""
    fast = accelerate(stock, "recommended")
    cameras = [fast.camera(SIZE) for _ in range(6)]
    masks = [make_mask(), part_of_mask(0), part_of_mask(1)]
    for camera, mask in zip(cameras, masks * 2, strict=True):
        camera.prompt(1, mask=mask)
    pictures = list(make_frames(3)[:, ::-1])
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        fast.track_cameras(dict(zip(cameras[:3], pictures, strict=True)))
        for camera, picture in zip(cameras[3:], pictures, strict=True):
            camera.track(picture)
    near = 0.02 if half else 1e-5
    kept = [(encoded(c._state), fast.session(c._state).last.parts) for c in cameras]
    for (found, parts), (expected, others) in zip(kept[:3], kept[3:], strict=True):
        assert all(off_by(a, b) < near for a, b in zip(found, expected, strict=True))
        assert parts.keys() == others.keys() != set()
        for name in parts:
            pairs = list(zip(parts[name], others[name], strict=True))
            assert all(a.shape == b.shape and off_by(a, b) < near for a, b in pairs), name
    assert off_by(kept[0][0][0], kept[4][0][0]) > near


def test_routed_frames_are_encoded_one_by_one(demo_predictor: Any) -> None:
    """Each leaves out other windows; where both are dense again they go together, and later frames take over their own."""
    recommended = load_profile("recommended")
    guard = recommended.guard.model_copy(update={"refresh_every": 3})
    fast = accelerate(demo_predictor, recommended.model_copy(update={"guard": guard}))
    clips = [make_frames(7), np.ascontiguousarray(make_frames(7)[:, ::-1])]

    def begun() -> list[Any]:
        cameras = [fast.camera(SIZE) for _ in clips]
        cameras[0].prompt(1, mask=part_of_mask(1))
        cameras[1].prompt(1, mask=np.ascontiguousarray(part_of_mask(2)[::-1]))
        return cameras

    single, cameras = begun(), begun()
    alone = [pushed(camera, clip) for camera, clip in zip(single, clips, strict=True)]
    with Encodings() as listened:
        for t in range(7):
            masks = fast.track_cameras({c: clip[t] for c, clip in zip(cameras, clips, strict=True)})
            for k, camera in enumerate(cameras):
                assert same_masks(masks[camera][1], alone[k][t][1]), (k, t)
    assert not same_masks(alone[0][6][1], alone[1][6][1])
    reports = [camera.report().frames for camera in cameras]
    assert [[f.windows for f in found] for found in reports] == [
        [f.windows for f in camera.report().frames] for camera in single
    ]
    dense = [[f.windows is None for f in found] for found in reports]
    both = [all(pair) for pair in zip(*dense, strict=True)]
    assert [[f.encoded_together == 2 for f in found] for found in reports] == [both, both]
    assert both == [True, False, False, True, False, False]
    assert listened.pictures == [2] + [n for b in both for n in ([2] if b else [1, 1])]
    for one, other in zip(single, cameras, strict=True):
        found, expected = logits_of(other), logits_of(one)
        assert all(off_by(found[t], expected[t]) < 1e-4 for t in expected)
        assert off_by(found[5], expected[3]) > 1e-3


def test_cameras_that_cannot_go_together_are_refused_before_one_is_advanced(
    small_demo: Any,
) -> None:
    fast, other = accelerate(small_demo, "exact"), accelerate(small_demo, "exact")
    frame = make_frames(1)[0]
    first, second, elsewhere = fast.camera(SIZE), fast.camera(SIZE), other.camera(SIZE)
    first.prompt(1, mask=make_mask())
    for given, words in (
        ([(first, frame), (first, frame)], "a list of frames given; expected a dict of one frame by camera"),
        ({first: frame, elsewhere: frame}, "camera 2 of 2 is of another one; expected cameras that this"),
        ({first: frame, "second": frame}, "camera 2 of 2 is str; expected cameras"),
        ({first: frame, second: frame[:50]}, r"frame uint8 \[50, 128, 3\] was pushed; expected uint8 \[96, 128, 3\]"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            fast.track_cameras(given)
    entered, leave = threading.Event(), threading.Event()

    def held() -> None:
        with second._alone():
            entered.set()
            leave.wait(60)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(held)
        entered.wait(60)
        with pytest.raises(InputError, match="this camera is in use in another thread"):
            fast.track_cameras({first: frame, second: frame})
        leave.set()
        running.result()
    assert first.frame == second.frame == -1 and first.report() is None
    assert fast.track_cameras({}) == {}
    found = fast.track_cameras({first: frame, second: frame})
    assert found[first][1].any() and found[second] == {} and first.frame == second.frame == 0


def test_attention_that_is_watched_is_that_of_one_picture(small_demo: Any) -> None:
    """Who listens to attention gets windows and tokens of one video at a time."""
    fast = accelerate(small_demo, "exact")
    cameras = [fast.camera(SIZE) for _ in range(2)]
    for camera in cameras:
        camera.prompt(1, mask=make_mask())
    with Encodings() as listened, listen(fast, attention=lambda call: None):
        fast.track_cameras(dict.fromkeys(cameras, make_frames(1)[0]))
    assert listened.pictures == [1, 1]
