"""Clips by name, own and made; and what a look at them finds before any work."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from probes.errors import InputError
from sparsity.calibration.capture import capture
from sparsity.calibration.report import Look, look, unit_of
from sparsity.clips.sources import ClipSource, video_file
from sparsity.evaluation.evaluate import evaluate_clip
from sparsity.profile import BUILTIN
from tests.sparsity.calibration.conftest import NAMES, made


def test_clips_without_a_prompt_or_with_an_empty_one_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="has neither smooth.json, smooth.png nor a folder smooth"):
        ClipSource(folders / "videos", tmp_path).names(only=["smooth"])
    with pytest.raises(InputError, match="clip 'nothing' listed"):
        ClipSource(folders / "videos", folders / "masks").names(only=["nothing"])
    Image.fromarray(np.zeros((96, 160), np.uint8)).save(tmp_path / "smooth.png")
    with pytest.raises(InputError, match=r"smooth.png is empty; expected the objects"):
        ClipSource(folders / "videos", tmp_path).open("smooth")


def test_a_prompt_alone_gives_no_truth(folders, tmp_path):
    first = folders / "masks" / "smooth" / "00000.png"
    (tmp_path / "smooth.png").write_bytes(first.read_bytes())
    assert ClipSource(folders / "videos", tmp_path).open("smooth").truth is None
    labelled = ClipSource(folders / "videos", folders / "masks").open("smooth")
    assert labelled.truth is not None and list(labelled.truth) == [*range(5)]


def test_names_are_those_of_videos_each_once(folders, tmp_path):
    prompt = (folders / "masks" / "smooth" / "00000.png").read_bytes()
    for name in ("GX01.MP4", "b.mov", "._b.mov", ".DS_Store", "notes.txt"):
        (tmp_path / name).write_bytes(b"\0")
    for name in ("c", ".cache"):
        (tmp_path / name).mkdir()
    for name in ("GX01", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(prompt)
    source = ClipSource(tmp_path, tmp_path)
    assert source.names() == ["GX01", "b", "c"]
    assert video_file(tmp_path, "GX01") == tmp_path / "GX01.MP4"
    assert video_file(tmp_path, "b") == tmp_path / "b.mov"
    assert source.names(1, only=["c", "b", "c"]) == ["c", "b", "made-smooth-100"]
    (tmp_path / "b.mp4").write_bytes(b"\0")
    with pytest.raises(InputError, match=r"holds b.mov and b.mp4; expected videos of different"):
        source.names()


def test_masks_go_with_frames_in_playing_order(folders, tmp_path):
    for kind in ("videos", "masks"):
        (tmp_path / kind / "clip").mkdir(parents=True)
        for t, file in enumerate(sorted((folders / kind / "smooth").iterdir())):
            shutil.copy(file, tmp_path / kind / "clip" / f"frame{t + 5}{file.suffix}")
    (tmp_path / "masks" / "clip" / "._frame5.png").write_bytes(b"\0")
    renamed = ClipSource(tmp_path / "videos", tmp_path / "masks").open("clip").truth
    plain = ClipSource(folders / "videos", folders / "masks").open("smooth").truth
    renamed, plain = ([*truth.values()] for truth in (renamed, plain))
    assert np.array_equal(renamed, plain)
    assert not np.array_equal(renamed, plain[::-1])


@pytest.fixture
def named(folders, tmp_path):
    """A folder of two videos whose names begin as those of made clips do."""
    for name in ("made-trip-2023", "made-smooth-7"):
        for kind in ("videos", "masks"):
            shutil.copytree(folders / kind / "smooth", tmp_path / kind / name)
    return ClipSource(tmp_path / "videos", tmp_path / "masks")


def test_a_video_that_is_called_like_a_made_clip_is_the_video(named, folders):
    own = ClipSource(folders / "videos", folders / "masks").open("smooth")
    for name in named.names():
        found = named.open(name)
        assert np.array_equal(found.video.frame(0), own.video.frame(0))
        assert not named.is_made(name) and named.listing(name) != name
    made = named.names(made=1)[-1]
    assert made == "made-smooth-100" and named.is_made(made) and named.listing(made) == made
    assert not np.array_equal(named.open(made).video.frame(0), own.video.frame(0))
    assert ClipSource().is_made("made-smooth-7")


def test_a_made_clip_of_the_name_of_a_video_is_refused(named):
    assert named.names(made=1, only=["made-smooth-7"]) == ["made-smooth-7", "made-smooth-100"]
    for folder in (named.videos, named.prompts):
        (folder / "made-smooth-7").rename(folder / "made-smooth-100")
    assert named.names() == ["made-smooth-100", "made-trip-2023"]
    with pytest.raises(InputError, match="holds made-smooth-100, .* rename it") as caught:
        named.names(made=1, only=["made-trip-2023"])
    assert "\n" not in str(caught.value)


def test_a_look_says_how_long_clips_are_and_what_they_are_held_against(folders, tmp_path):
    (tmp_path / "fast.png").write_bytes((folders / "masks/fast/00000.png").read_bytes())
    (tmp_path / "smooth").symlink_to(folders / "masks/smooth")
    found = look(ClipSource(folders / "videos", tmp_path), ["fast", "smooth", "made-tiny-100"])
    assert found == {
        "fast": Look(5, made=False, labelled=False),
        "smooth": Look(5, made=False, labelled=True),
        "made-tiny-100": Look(16, made=True, labelled=True),
    }


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda masks: _save(masks / "00003.png", (90, 160)),
            "00003.png is 160x90; its video is 160x96",
        ),
        (lambda masks: (masks / "00003.png").unlink(), "5 masks given for the 6 frames of tiny"),
        (
            lambda masks: _save(masks / "00000.png", (96, 160)),
            "tiny has its first prompt on frame 1; expected the objects to track on the first frame",
        ),
    ],
)
def test_a_look_refuses_the_first_clip_that_cannot_be_used(folders, tmp_path, spoil, said):
    shutil.copytree(folders / "masks", tmp_path / "masks")
    source = ClipSource(folders / "videos", tmp_path / "masks")
    assert len(look(source, NAMES)) == len(NAMES)
    spoil(tmp_path / "masks" / "tiny")
    with pytest.raises(InputError, match=said):
        look(source, NAMES)


def _save(path, size):
    Image.fromarray(np.zeros(size, np.uint8)).save(path)


OWN, BARE, MADE = Look(9, False, True), Look(9, False, False), Look(9, True, True)


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        ([OWN] * 4, "videos"),
        ([MADE] * 4, "made clips"),
        ([OWN] * 5 + [MADE] * 14, "5 videos and 14 made clips"),
        ([MADE, OWN, MADE], "1 video and 2 made clips"),
    ],
)
def test_the_unit_tells_videos_from_made_clips_and_what_is_lost(looks, said):
    assert unit_of(looks) == f"J&F points, mean over {said}"
    drift = f"points of agreement with the dense run, mean over {said}"
    assert unit_of(looks, "drift") == drift


def test_a_picture_that_is_cut_off_is_found_in_the_look(folders, tmp_path):
    shutil.copytree(folders / "videos" / "smooth", tmp_path / "smooth")
    shutil.copytree(folders / "videos" / "fast", tmp_path / "fast")
    source = ClipSource(tmp_path, folders / "masks")
    assert len(look(source, ["smooth", "fast"])) == 2
    picture = tmp_path / "fast" / "00003.jpg"
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    with pytest.raises(InputError, match=r"00003\.jpg"):
        look(source, ["smooth", "fast"])


def test_an_object_that_comes_later_is_run_from_there_and_thresholds_are_of_the_first_ones(
    demo_predictor,
):
    whole = made("distractors")
    first, second = whole.objects[:2]
    late = tuple(
        replace(p, frame=4, mask=np.asarray(whole.truth[4]) == second) if p.object == second else p
        for p in whole.prompts
        if p.object in (first, second)
    )
    clip = replace(whole, prompts=late)
    alone = replace(whole, prompts=late[:1])
    assert clip.starts == {first: 0, second: 4}
    assert capture(demo_predictor, clip).digest == capture(demo_predictor, alone).digest
    found = evaluate_clip(demo_predictor, clip, [BUILTIN["paper"]], dense=BUILTIN["exact"])
    objects = found["paper"].quality.objects
    assert set(objects) == {str(first), str(second)} and objects[str(second)].j > 0
    both = capture(demo_predictor, replace(whole, prompts=whole.prompts[:2]))
    assert both.digest != capture(demo_predictor, alone).digest
