"""Damaged files end in one line or are read; what is read is whole, or what was lost is said.

`DAMAGED_FILES` in the environment says how many are tried of each kind.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from probes.errors import InputError
from probes.video import notes_of, open_video
from sparsity.clips.drawn import read_mask
from sparsity.clips.masks import write_mask
from sparsity.clips.prompt import PromptOptions
from sparsity.profile import load_profile
from tests.sparsity.clips.made_files import COUNT, FRAMES, HEIGHT, WIDTH, write

TRIED = int(os.environ.get("DAMAGED_FILES", "8"))

CANNOT_TELL = {
    "clip.h264": {"flip", "cut", "zero", "take out", "double", "start"},
    "clip.gif": {"double", "take out"},
    "clip.ts": {"cut"},
}
"""Damage after which a file may be a whole one of other frames: these formats count none and have no check sums."""

IDS = np.where(np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)) < 90, 1, 2).astype(np.uint8)
IDS[:20] = 0


def _mp4(path: Path) -> Path:
    return write(path, container={"movflags": "faststart"})


def _soft(path: Path) -> None:
    Image.fromarray((IDS == 1).astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(1)).save(
        path
    )


MAKERS: dict[str, Callable[[Path], object]] = {
    "frame.png": lambda path: Image.fromarray(FRAMES[3]).save(path),
    "frame.jpg": lambda path: Image.fromarray(FRAMES[3]).save(path, exif=_exif()),
    "indexed mask.png": lambda path: write_mask(path, IDS, "hash"),
    "grey mask.png": lambda path: Image.fromarray(IDS).save(path),
    "soft mask.png": _soft,
    "late.mp4": write,
    "early.mp4": _mp4,
    "fragments.mp4": lambda p: write(p, container={"movflags": "frag_keyframe+empty_moov"}),
    "clip.mkv": write,
    "clip.webm": lambda path: write(path, "libvpx"),
    "clip.ts": write,
    "b-frames.avi": write,
    "clip.avi": lambda path: write(path, "mjpeg", pix="yuvj420p"),
    "clip.mpg": lambda path: write(path, "mpeg2video"),
    "clip.gif": lambda path: write(path, "gif", pix="rgb8"),
    "clip.flv": write,
    "clip.h264": lambda path: write(path, format="h264"),
    "profile.json": lambda path: path.write_text(load_profile("recommended").to_json()),
}


def _exif() -> Image.Exif:
    said = Image.Exif()
    said[0x0112] = 1
    return said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    for name, make in MAKERS.items():
        make(folder / name)
    return {name: (folder / name).read_bytes() for name in MAKERS}


def damage(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Flip bytes, cut the end off, zero, take out or double a block, or change one of the first bytes; and say which."""
    found = bytearray(data)
    place, length = (int(rng.integers(len(data))) for _ in range(2))
    end = min(len(data), place + 1 + length // 8)
    how = str(rng.choice(["flip", "cut", "zero", "take out", "double", "start"]))
    if how == "flip":
        for where in rng.integers(len(data), size=int(rng.integers(1, 20))):
            found[where] ^= int(rng.integers(1, 256))
    elif how == "cut":
        del found[place:]
    elif how == "zero":
        found[place:end] = bytes(end - place)
    elif how == "take out":
        del found[place:end]
    elif how == "double":
        found[end:end] = found[place:end]
    else:
        found[int(rng.integers(min(200, len(data))))] = int(rng.integers(256))
    return bytes(found), how


def wrong_success(path: Path, kind: str) -> str:
    """Read a damaged file; say what is wrong with a success, "" where nothing is."""
    if kind == "profile.json":
        load_profile(path)
        return ""
    if "mask" in kind:
        ids = read_mask(path)
        expected = (IDS == 1).astype(np.uint8) if "soft" in kind else IDS
        same = ids.shape == IDS.shape and (ids == expected).mean() > 0.999
        return "" if same else f"ids {np.unique(ids).tolist()} in {ids.shape}"
    folder = path.parent if "frame." in kind else path
    video = open_video(folder)
    assert video.num_frames is not None
    for index in range(video.num_frames):
        video.frame(index)
    notes = notes_of(video)
    if kind == "frame.png" and not np.array_equal(video.frame(0), FRAMES[3]):
        return "other pixels"
    expected = 1 if "frame." in kind else COUNT
    return "" if video.num_frames == expected or notes else f"{video.num_frames} frames"


@pytest.mark.parametrize("kind", MAKERS)
def test_damage_is_noticed(kind: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    wrong, refused, read = {}, 0, 0
    path = tmp_path / kind
    for number in range(TRIED):
        rng = np.random.default_rng([number, *kind.encode()])
        data, how = damage(whole[kind], rng)
        path.write_bytes(data)
        try:
            with warnings.catch_warnings(record=True):
                warnings.simplefilter("always")
                said = wrong_success(path, kind)
            if said.endswith(" frames") and how in CANNOT_TELL.get(kind, ()):
                said = ""
            read += 1
        except InputError as error:
            said = "two lines" if "\n" in str(error) else ""
            refused += 1
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        if said:
            wrong[number] = f"{said} ({how})"
    assert wrong == {}, f"{read} read, {refused} refused"
    assert refused + read == TRIED


@pytest.mark.parametrize("kind", MAKERS)
def test_a_whole_file_is_read(kind: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / kind).write_bytes(whole[kind])
    assert wrong_success(tmp_path / kind, kind) == ""


def test_any_text_for_points_and_boxes_ends_in_a_line() -> None:
    video = open_video(np.zeros((2, HEIGHT, WIDTH, 3), np.uint8))
    letters = list("0123456789.,,,,,-+e infa\n\u0663\u00bd")
    refused = 0
    for number in range(10 * TRIED):
        rng = np.random.default_rng(number)
        texts = ["".join(rng.choice(letters, int(rng.integers(1, 16)))) for _ in range(2)]
        for prompt in (
            PromptOptions(points=tuple(texts)),
            PromptOptions(boxes=tuple(texts)),
            PromptOptions(boxes=texts[:1]),
        ):
            try:
                prompt.check(video)
            except InputError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > 10 * TRIED
    assert PromptOptions(points=("5,5", "9,9,0")).check(video)[0].object == 1
