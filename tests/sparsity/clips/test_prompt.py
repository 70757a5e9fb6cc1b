"""Prompts: several boxes, shares in place of pixels, and masks on the frames that they are named after."""

from __future__ import annotations

import json
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from probes.errors import InputError, LeftOut
from probes.records import load_recording
from probes.video import open_video
from sparsity.clips.drawn import read_mask
from sparsity.clips.masks import write_mask, write_video
from sparsity.clips.prompt import PromptOptions, mask_files, masks_by_frame
from sparsity.clips.sources import ClipSource
from sparsity.commands.app import run
from tests.conftest import make_frames, make_mask

FRAMES = 6
LATE = np.zeros((96, 128), bool)
LATE[60:, 100:] = True


def write_frames(folder: Path, names: list[str] | None = None) -> Path:
    folder.mkdir(parents=True)
    for t, frame in enumerate(make_frames(FRAMES)):
        Image.fromarray(frame).save(folder / f"{names[t] if names else f'{t:05d}'}.jpg")
    return folder


def ids_of(t: int, late: bool = False) -> np.ndarray:
    ids = make_mask(t).astype(np.uint8)
    ids[LATE & late] = 2
    return ids


def write_masks(folder: Path, masks: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for name, ids in masks.items():
        write_mask(folder / f"{name}.png", ids, "")
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("prompt") / "clip")


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompt") / "clip.mp4"
    write_video(path, iter(make_frames(FRAMES)), 25)
    return path


def test_each_box_is_an_object(frames: Path) -> None:
    video = open_video(frames)
    boxes = "20,20,80,80", "100,60,128,96"
    two = PromptOptions(boxes=boxes).check(video)
    assert [(p.object, p.box.tolist()) for p in two] == [
        (1, [20, 20, 80, 80]),
        (2, [100, 60, 128, 96]),
    ]
    (one,) = PromptOptions(boxes=boxes[:1]).check(video)
    assert one.digest() == two[0].digest() != two[1].digest()
    (both,) = PromptOptions(points=("50,48", "5,5,0"), boxes=boxes[:1]).check(video)
    assert both.box is not None and both.labels.tolist() == [1, 0]


def test_points_and_boxes_say_of_which_object_they_are(frames: Path) -> None:
    video = open_video(frames)
    boxes, points = ("20,20,80,80@7", "100,60,128,96@3"), ("50,48@7", "5,5,0@7", "110,70@5")
    prompts = PromptOptions(points=points, boxes=boxes, frame=2).check(video)
    assert [(p.object, p.frame, p.points is None, p.box is None) for p in prompts] == [
        (3, 2, True, False),
        (5, 2, False, True),
        (7, 2, False, False),
    ]
    for given, words in {
        (("50,48",), boxes): "points and 2 boxes given; .* add @object to each",
        ((), ("20,20,80,80@7", "100,60,128,96")): "expected @object with all of them or with none",
        ((), ("20,20,80,80@7", "1,60,128,96@7")): "two boxes of object 7",
        (("50,48@x",), ()): "expected an object's number after @",
        (("50,48@0",), ()): "expected an object's number after @",
        (("50,48,0@4", "50,49@2"), ()): "first prompt of object 4 has points with label 0 alone",
    }.items():
        with pytest.raises(InputError, match=words):
            PromptOptions(points=given[0], boxes=given[1]).check(video)


@pytest.mark.parametrize(
    ("prompt", "pixels"),
    [
        (PromptOptions(points=("0.25,0.5",)), "32,48"),
        (PromptOptions(points=("0.25,0.5,1", "1,0,0")), "32,48 128,0"),
        (PromptOptions(boxes=("0.1,0.4,0.5,0.75",)), "12.8,38.4,64,72"),
        (PromptOptions(boxes=("0,0,1,1",)), "0,0,128,96"),
    ],
)
def test_shares_are_refused_with_their_pixels(
    frames: Path, prompt: PromptOptions, pixels: str
) -> None:
    with pytest.raises(InputError) as caught:
        prompt.check(open_video(frames))
    assert str(caught.value).endswith(f"as shares of it write {pixels}")


def test_pixels_are_not_taken_for_shares(frames: Path) -> None:
    video = open_video(frames)
    for prompt in (PromptOptions(points=("0.25,0.5", "2,3")), PromptOptions(boxes=("0,0,1,1.5",))):
        assert len(prompt.check(video)) == 1


@pytest.mark.parametrize(
    ("given", "masks", "expected"),
    [
        (None, ["00004"], [4]),
        (None, ["4"], [4]),
        (None, ["mask_04", "mask_02"], [2, 4]),
        (["a", "b", "c", "d", "e", "f"], ["e"], [4]),
        (["cam2_1", "cam2_2", "cam2_3", "cam2_4", "cam2_5", "cam2_6"], ["cam2_5"], [4]),
        (["10", "20", "30", "40", "50", "60"], ["mask50"], [4]),
        ([f"Stra{n}ße\u0301" for n in "abcdef"], ["Straeße\u0301"], [4]),
        ([f"Strae\u0301{n}" for n in "abcdef"], ["Stra\u00e9e"], [4]),
    ],
)
def test_masks_of_a_folder_are_those_of_the_frames_they_are_named_after(
    tmp_path: Path, given: list[str] | None, masks: list[str], expected: list[int]
) -> None:
    video = open_video(write_frames(tmp_path / "clip", given))
    folder = write_masks(tmp_path / "masks", {name: ids_of(0) for name in masks})
    assert list(masks_by_frame(mask_files(folder), video)) == expected


@pytest.mark.parametrize(
    ("given", "masks", "words"),
    [
        (None, ["00006"], "00006.png is named after no frame; expected .* such as 00000.png"),
        (None, ["first"], "first.png is named after no frame"),
        (None, ["00004", "mask_4"], "00004.png and mask_4.png are named after the same frame"),
        (["a", "b", "c", "d", "e", "f"], ["5"], "5.png is named after no frame"),
        (["a1", "b1", "c", "d", "e", "f"], ["m1"], "m1.png is named after no frame"),
    ],
)
def test_masks_that_are_of_no_frame_are_refused(
    tmp_path: Path, given: list[str] | None, masks: list[str], words: str
) -> None:
    video = open_video(write_frames(tmp_path / "clip", given))
    folder = write_masks(tmp_path / "masks", {name: ids_of(0) for name in masks})
    with pytest.raises(InputError, match=words) as caught:
        masks_by_frame(mask_files(folder), video)
    assert "\n" not in str(caught.value)


def test_frames_of_a_video_file_are_called_by_their_index(mp4: Path, tmp_path: Path) -> None:
    video = open_video(mp4)

    def matched(name: str, numbers: range) -> list[int]:
        masks = {f"f{n:03d}": ids_of(0) for n in numbers}
        return list(masks_by_frame(mask_files(write_masks(tmp_path / name, masks)), video))

    assert matched("index", range(4, 5)) == [4]
    assert matched("all", range(FRAMES)) == matched("from one", range(1, FRAMES + 1))
    assert matched("some from one", range(1, 4)) == [1, 2, 3]
    with pytest.raises(InputError, match="f006.png is named after no frame"):
        matched("beyond", range(6, 7))


def test_a_mask_file_that_has_the_name_of_a_frame_is_on_it(frames: Path, tmp_path: Path) -> None:
    folder = write_masks(tmp_path / "masks", {"00004": ids_of(4), "first": ids_of(4)})
    video = open_video(frames)

    def frame(name: str, given: int | None = None) -> int:
        (prompt,) = PromptOptions(folder / f"{name}.png", frame=given).check(video)
        return prompt.frame

    assert [frame("00004"), frame("first"), frame("00004", 0), frame("first", 3)] == [4, 0, 0, 3]


def test_other_pictures_among_masks_are_named(tmp_path: Path) -> None:
    folder = write_masks(tmp_path / "masks", {"00000": ids_of(0)})
    Image.new("L", (9, 9)).save(folder / "00001.tif")
    with pytest.warns(LeftOut, match=r"1 pictures are no PNG masks \(00001.tif\), left out"):
        assert len(mask_files(folder)) == 1
    with pytest.raises(InputError, match="expected that nothing is left out"):
        mask_files(folder, strict=True)


def test_a_mask_goes_before_a_folder_of_its_name_and_says_so(frames: Path, tmp_path: Path) -> None:
    write_mask(tmp_path / "clip.png", ids_of(0), "")
    write_masks(tmp_path / "clip", {"00002": ids_of(2)})
    source = ClipSource(frames.parent, tmp_path)
    with pytest.warns(LeftOut, match="masks beside clip.png, left out"):
        assert source.open("clip").prompts[0].frame == 0
    (tmp_path / "clip.png").unlink()
    assert source.open("clip", labelled=False).prompts[0].frame == 2


def smooth_mask() -> Image.Image:
    return Image.fromarray(make_mask().astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(1))


@pytest.mark.parametrize("greys", ["smooth", "two", "white"])
def test_all_commands_read_a_mask_alike(frames: Path, tmp_path: Path, greys: str) -> None:
    """As segment and probe do of one video and of many, and as calibrate does."""
    two = np.where(LATE, 128, make_mask() * 255).astype(np.uint8)
    made = {
        "smooth": smooth_mask(),
        "two": Image.fromarray(two),
        "white": Image.fromarray(make_mask().astype(np.uint8) * 255).convert("P"),
    }[greys]
    (tmp_path / "m").mkdir()
    made.save(tmp_path / "m" / "clip.png")
    source = ClipSource(frames.parent, tmp_path / "m")
    alone = PromptOptions(tmp_path / "m" / "clip.png").check(open_video(frames))
    found = [alone, source.open("clip").prompts, source.open("clip", labelled=False).prompts]
    assert len({tuple(p.digest() for p in prompts) for prompts in found}) == 1
    assert [p.object for p in alone] == ([1, 128] if greys == "two" else [1])


def test_objects_that_come_later_are_prompted_where_they_are_seen_first(
    frames: Path, tmp_path: Path
) -> None:
    masks = {f"{t:05d}": ids_of(t, late=t >= 3) for t in range(FRAMES)}
    write_masks(tmp_path / "clip", masks)
    source = ClipSource(frames.parent, tmp_path)
    assert source.open("clip", labelled=False).starts == {1: 0, 2: 3}
    clip = source.open("clip")
    assert clip.starts == {1: 0, 2: 3} and clip.from_start.starts == {1: 0}
    assert clip.truth is not None and set(np.unique(clip.truth[4])) == {0, 1, 2}
    (tmp_path / "clip" / "00004.png").unlink()
    assert source.open("clip", labelled=False).starts == {1: 0, 2: 3}
    with pytest.raises(InputError, match="5 masks given for the 6 frames of clip"):
        source.open("clip")
    # where no frame of an object counts
    last = {f"{t:05d}": ids_of(t, late=t >= 4) for t in range(FRAMES)}
    write_masks(tmp_path / "last" / "clip", last)
    with pytest.warns(LeftOut, match="clip: objects 2 come on its last two frames, .* left out"):
        assert ClipSource(frames.parent, tmp_path / "last").open("clip").starts == {1: 0}
    with pytest.raises(InputError, match="objects 2 come on its last .* nothing is left out"):
        ClipSource(frames.parent, tmp_path / "last", strict=True).open("clip")


def test_names_of_videos_and_masks_match_however_accents_are_written(
    frames: Path, tmp_path: Path
) -> None:
    name = "Stra\u00dfe-caf\u00e9"
    apart = unicodedata.normalize("NFD", name)
    assert apart != name
    for video, mask in ((name, apart), (apart, name)):
        root = tmp_path / f"{len(video)}"
        (root / "v").mkdir(parents=True)
        (root / "v" / video).symlink_to(frames)
        write_masks(root / "m", {mask: ids_of(0)})
        source = ClipSource(root / "v", root / "m")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert source.names() == source.names(only=[mask]) == [video]
        assert source.open(video).objects == (1,)


@pytest.fixture(scope="module")
def model(dividing_config: Path) -> list[str]:
    return ["--config", str(dividing_config), "--weights", "random", "--device", "cpu"]


def segment(out: Path, model: list[str], *words: object) -> dict[int, np.ndarray]:
    command = ["segment", *map(str, words), *model, "--profile", "exact", "--out", str(out)]
    assert run(command) == 0
    return {int(p.stem): read_mask(p) for p in sorted(out.rglob("masks/*.png"))}


@pytest.mark.parametrize("kind", ["folder", "file", "many"])
def test_a_single_mask_of_frame_4_prompts_frame_4(
    frames: Path, mp4: Path, model: list[str], tmp_path: Path, kind: str
) -> None:
    """Tracked forward and back from it, as with --prompt-frame."""
    masks = write_masks(tmp_path / "masks" / "clip", {"00004": ids_of(4)})
    given = {"folder": (frames, masks), "file": (mp4, masks), "many": (frames.parent, masks.parent)}
    video, prompt = given[kind]
    found = segment(tmp_path / "out", model, video, "--prompt", prompt)
    single = (video if kind != "many" else frames, "--prompt", masks / "00004.png")
    asked = segment(tmp_path / "asked", model, *single, "--prompt-frame", 4)
    assert list(found) == list(range(FRAMES))
    assert all(np.array_equal(found[t], asked[t]) for t in found)
    first = segment(tmp_path / "first", model, *single, "--prompt-frame", 0)
    assert not all(np.array_equal(found[t], first[t]) for t in found)


def test_two_boxes_are_two_objects_on_the_command_line(
    frames: Path, model: list[str], tmp_path: Path
) -> None:
    boxes = ("--box", "20,20,80,80", "--box", "100,60,128,96", "--max-frames", "2")
    assert set(np.unique(segment(tmp_path / "two", model, frames, *boxes)[0])) == {0, 1, 2}
    assert set(np.unique(segment(tmp_path / "one", model, frames, *boxes[2:])[0])) == {0, 1}
    out = tmp_path / "r.recording"
    assert (
        run(["probe", str(frames), *model, *boxes, "--sites", "memory.*", "--out", str(out)]) == 0
    )
    assert load_recording(out).header.clips[0].objects == (1, 2)


def test_masks_of_one_video_in_a_folder_prompt_each_object_from_its_first(
    frames: Path, model: list[str], tmp_path: Path
) -> None:
    masks = write_masks(tmp_path / "masks", {"00001": ids_of(1), "00003": ids_of(3, late=True)})
    found = segment(tmp_path / "out", model, frames, "--prompt", masks)
    assert [2 in ids for ids in found.values()] == [False] * 3 + [True] * 3
    assert all(1 in ids for ids in found.values())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["objects"] == [1, 2] and report["left_out"] == []
    forward = [line["frame"] for line in report["report"]["frames"] if not line["reverse"]]
    assert forward == [1, 2, 3, 4, 5]
