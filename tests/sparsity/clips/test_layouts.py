"""Data sets as they are laid out: sparse annotations, objects that come later or overlap, and broken ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from probes.errors import InputError
from probes.files import listing
from sparsity.acceleration.build import accelerate
from sparsity.clips.layouts import clip_folders, clip_names, find_layout, listed_names
from sparsity.clips.masks import write_mask
from sparsity.clips.sources import Clip, ClipSource
from sparsity.evaluation.evaluate import evaluate, evaluate_clip, track
from sparsity.evaluation.quality import clip_quality
from sparsity.profile import BUILTIN
from sparsity.work.model import ModelChoice
from tests.conftest import make_frames

FRAMES, LATE = 9, 4
"""Length of the clip, and the frame on which its second object appears."""

SMALL = ModelChoice(image_size=128, device="cpu")
"""The demo model at a size at which it takes a seventh of the time."""


def open_clip(root: Path, name: str) -> Clip:
    return ClipSource(dataset=root).open(name)


def disc(x: int, y: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:96, :128]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def truth(t: int) -> dict[int, np.ndarray]:
    """Objects of a frame: one throughout, one from frame `LATE`; they overlap a little."""
    there = {1: disc(45 + t, 50, 22)}
    return there | ({2: disc(70 + t, 40, 18)} if t >= LATE else {})


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    clip = make_frames(FRAMES)
    for t in range(FRAMES):
        for i, mask in truth(t).items():
            clip[t][mask] = ((220, 40, 40), (40, 220, 220))[i - 1]
    return clip


@pytest.fixture(scope="module")
def youtube(tmp_path_factory: pytest.TempPathFactory, frames: np.ndarray) -> Path:
    """YouTube-VOS layout, every second frame annotated."""
    root = tmp_path_factory.mktemp("youtube")
    for folder in ("JPEGImages", "Annotations"):
        (root / folder / "clip").mkdir(parents=True)
    for t in range(FRAMES):
        Image.fromarray(frames[t]).save(root / f"JPEGImages/clip/{t:05d}.jpg")
        if t % 2 == 0:
            ids = np.zeros((96, 128), np.uint8)
            for i, mask in truth(t).items():
                ids[mask] = i
            write_mask(root / f"Annotations/clip/{t:05d}.png", ids, "")
    return root


@pytest.fixture(scope="module")
def sav(tmp_path_factory: pytest.TempPathFactory, frames: np.ndarray) -> Path:
    """SA-V layout: a folder of binary pictures an object, every second frame."""
    root = tmp_path_factory.mktemp("sav")
    (root / "JPEGImages_24fps/clip").mkdir(parents=True)
    for t in range(FRAMES):
        Image.fromarray(frames[t]).save(root / f"JPEGImages_24fps/clip/{t:05d}.jpg")
    for i in (1, 2):
        folder = root / f"Annotations_6fps/clip/{i - 1:03d}"
        folder.mkdir(parents=True)
        for t in range(0, FRAMES, 2):
            mask = truth(t).get(i, np.zeros((96, 128), bool))
            Image.fromarray(mask.astype(np.uint8)).save(folder / f"{t:05d}.png")
    return root


@pytest.fixture(scope="module")
def demo() -> Any:
    return accelerate(SMALL.build(), "dense")


def test_layouts_are_told_apart_by_their_folders(youtube: Path, sav: Path, tmp_path: Path) -> None:
    assert find_layout(youtube).name == "YouTube-VOS, MOSE or LVOS"
    assert find_layout(sav).name == "SA-V"
    assert clip_names(youtube) == clip_names(sav) == ["clip"]
    for folder in ("JPEGImages/480p", "Annotations/480p"):
        (tmp_path / folder).mkdir(parents=True)
    assert find_layout(tmp_path).name == "DAVIS"


def test_an_object_is_prompted_where_it_is_seen_first(youtube: Path) -> None:
    clip = open_clip(youtube, "clip")
    assert clip.truth is not None and list(clip.truth) == [0, 2, 4, 6, 8]
    assert clip.starts == {1: 0, 2: LATE}
    first, late = clip.prompts
    assert (first.frame, first.object) == (0, 1) and (late.frame, late.object) == (LATE, 2)
    assert late.mask is not None and (late.mask == truth(LATE)[2]).all()


def test_objects_of_sav_may_overlap(sav: Path) -> None:
    clip = open_clip(sav, "clip")
    assert clip.layered and clip.objects == (1, 2) and clip.truth is not None
    layers = clip.truth[8]
    assert (layers == np.stack(list(truth(8).values()))).all()
    assert (layers[0] & layers[1]).any()
    assert not clip.truth[0][1].any()


def test_nothing_is_tracked_before_its_prompt(youtube: Path, demo: Any) -> None:
    clip = open_clip(youtube, "clip")
    run = track(demo, clip)
    assert list(run.masks) == [0, 2, 4, 6, 8] and len(run.seconds) == FRAMES
    assert [2 in mask for mask in run.masks.values()] == [False, False, True, True, True]
    assert [f.frame for f in run.report.frames] == [*range(FRAMES)]
    alone = track(demo, open_clip(youtube, "clip")).masks
    assert all((run.masks[t] == alone[t]).all() for t in alone)


def test_a_late_object_counts_from_the_frame_after_its_prompt(youtube: Path, demo: Any) -> None:
    clip = open_clip(youtube, "clip")
    true = list((clip.truth or {}).values())
    without = [np.where(mask == 2, 0, mask).astype(np.uint8) for mask in true]
    assert clip_quality(without, true, [1, 2], starts={1: 0, 2: 2}).objects["2"].j == 0
    late = [*without[:3], *true[3:]]
    assert clip_quality(late, true, [1, 2], starts={1: 0, 2: 2}).objects["2"].j == 100
    assert clip_quality(late, true, [1, 2]).objects["2"].j == pytest.approx(200 / 3)
    outcomes = evaluate_clip(demo, clip, [BUILTIN["exact"]])
    found = {name: outcome.quality for name, outcome in outcomes.items()}
    assert set(found["dense"].objects) == {"1", "2"} and found["dense"].frames == 3
    assert found["dense"].objects["1"].j > 60 and found["exact"].agreement > 95


def test_overlapping_objects_are_scored_each_for_itself(sav: Path, demo: Any) -> None:
    clip = open_clip(sav, "clip")
    true = list((clip.truth or {}).values())
    assert clip_quality(true, true, clip.objects).j_and_f == 100
    flat = [np.stack([m[0], m[1] & ~m[0]]) for m in true]
    late = {1: 0, 2: 2}
    assert clip_quality(flat, true, clip.objects, starts=late).objects["2"].j < 100
    assert [m.shape for m in track(demo, clip).masks.values()] == [(2, 96, 128)] * 5


def test_evaluate_takes_every_layout(youtube: Path, tmp_path: Path) -> None:
    result = evaluate(youtube, SMALL, tmp_path / "result.json")
    assert result.data.frames == FRAMES and result.runs[0].objects == 2
    assert result.runs[0].quality is not None and result.runs[0].quality.j > 50


def spoil(root: Path, what: str) -> None:
    """Break one thing in a data set."""
    annotations = root / "Annotations/clip"
    if what == "stray":
        shutil.copy(annotations / "00000.png", annotations / "00077.png")
    elif what == "size":
        write_mask(annotations / "00002.png", np.zeros((9, 9), np.uint8), "")
    elif what == "none":
        shutil.rmtree(annotations)
        annotations.mkdir()
    elif what == "empty":
        for path in annotations.glob("*.png"):
            write_mask(path, np.zeros((96, 128), np.uint8), "")
    elif what == "few":
        for name in ("00004", "00006", "00008"):
            (annotations / f"{name}.png").unlink()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("stray", "00077.png is of no frame of clip clip"),
        ("size", "00002.png is 9x9; its video is 128x96"),
        ("none", "00000.png is missing, one of 9 annotations"),
        ("empty", "is empty, and so are the others"),
        ("few", "clip clip has 2 annotated frames; expected 3 or more"),
    ],
)
def test_broken_data_is_refused(youtube: Path, tmp_path: Path, what: str, words: str) -> None:
    root = tmp_path / "copy"
    shutil.copytree(youtube, root)
    open_clip(root, "clip")
    spoil(root, what)
    with pytest.raises(InputError, match=words):
        open_clip(root, "clip")


def test_files_that_a_system_hides_are_no_clips_frames_or_masks(
    youtube: Path, sav: Path, tmp_path: Path
) -> None:
    for root, masks in ((youtube, "Annotations/clip"), (sav, "Annotations_6fps/clip/000")):
        copy = tmp_path / root.name
        shutil.copytree(root, copy)
        frames = find_layout(copy).frames
        (copy / frames / ".ipynb_checkpoints").mkdir()
        for place in (copy, copy / frames, copy / frames / "clip", copy / masks):
            (place / ".DS_Store").write_bytes(b"\0")
        (copy / frames / "clip" / "._00000.jpg").write_bytes(b"\0")
        (copy / masks / "._00000.png").write_bytes(b"\0")
        assert clip_names(copy) == ["clip"]
        clip = open_clip(copy, "clip")
        assert clip.num_frames == FRAMES and len(clip.truth or ()) == 5


def test_a_changed_frame_or_mask_changes_the_listing_of_its_clip(
    youtube: Path, sav: Path, tmp_path: Path
) -> None:
    for root, masks in ((youtube, "Annotations/clip"), (sav, "Annotations_6fps/clip/001")):
        copy = tmp_path / root.name
        shutil.copytree(root, copy)
        before = listing(*clip_folders(copy, "clip"))
        assert before == listing(*clip_folders(root, "clip"))
        frames = clip_folders(copy, "clip")[0]
        (frames / "out").mkdir()
        for stray in (frames / "out" / "00000.png", frames / ".DS_Store"):
            stray.write_bytes(b"of another program")
            assert listing(*clip_folders(copy, "clip")) == before
        for file in (frames / "00003.jpg", copy / masks / "00004.png"):
            mended = file.stat().st_mtime_ns + 10**9
            os.utime(file, ns=(0, mended))
            assert listing(*clip_folders(copy, "clip")) != before
            os.utime(file, ns=(0, mended - 10**9))
            assert listing(*clip_folders(copy, "clip")) == before


def test_a_list_has_a_name_a_line(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_bytes("\ufeffmy clip\r\n\r\nb\r\nmy clip\r\n".encode())
    assert listed_names(listed) == ["my clip", "b"]
    listed.write_text(" \n\n")
    with pytest.raises(InputError, match=r"list.txt names no clip"):
        listed_names(listed)
    with pytest.raises(InputError, match="can't be read"):
        listed_names(tmp_path / "nothing.txt")
