"""Prompts in Python and JSON: read, held against the video, and given in their time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as coco

from probes.errors import InputError
from probes.prompts import Prompt, read_prompts
from probes.recording import record
from probes.video import VideoSource, open_video
from tests.conftest import FRAMES, HEIGHT, WIDTH, make_mask

BOX = [20, 20, 80, 80]


@pytest.fixture(scope="module")
def video(clip_frames: np.ndarray) -> VideoSource:
    return open_video(clip_frames)


def code_of(mask: np.ndarray) -> dict[str, Any]:
    code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def runs_of(mask: np.ndarray) -> list[int]:
    """Lengths of runs down the columns, the first of background."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *ends, mask.size]).tolist()


def test_a_file_of_prompts_says_what_python_says(
    video: VideoSource, clip_folder: Path, tmp_path: Path
) -> None:
    Image.fromarray(make_mask(5)).save(tmp_path / "mask.png")
    entries = [
        {"frame": 5, "object": 3, "mask": "mask.png"},
        {"frame": 0, "object": 1, "label": "disc", "box": BOX},
        {"frame": 2, "object": 2, "points": [[50, 48], [5, 5, 0]]},
        {"frame": 3, "object": 1, "points": [[60, 50, 0]], "box": BOX},
        {"frame": 4, "object": 2, "remove": True},
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(entries))
    in_python = [
        Prompt(0, 1, box=BOX, label="disc"),
        Prompt(2, 2, points=[(50, 48), (5, 5)], labels=[1, 0]),
        Prompt(3, 1, points=[(60, 50)], labels=[0], box=BOX),
        Prompt(4, 2, remove=True),
        Prompt(5, 3, mask=make_mask(5)),
    ]
    found = read_prompts(tmp_path / "prompts.json", video)
    digests = [p.digest() for p in read_prompts(in_python, video)]
    assert [p.digest() for p in found] == digests and found[0].label == "disc"
    for number, change in enumerate(
        ({"object": 9}, {"frame": 1}, {"label": "x", "points": [[9, 2]]})
    ):
        other = [{**e, **change} if e is entries[number] else e for e in entries]
        (tmp_path / "prompts.json").write_text(json.dumps(other))
        assert [p.digest() for p in read_prompts(tmp_path / "prompts.json", video)] != digests
    named = open_video(clip_folder)
    assert named.names is not None
    (by_name,) = read_prompts([{"frame": named.names[2], "box": BOX}], named)
    assert by_name.frame == 2
    with pytest.raises(InputError, match="frame 'x' given; expected the name of one, such as"):
        read_prompts([{"frame": "x", "box": BOX}], named)


@given(st.integers(0, 2**32 - 1))
def test_run_length_codes_are_the_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 12, 2)
    mask = rng.random(size) < rng.random()
    mask[0, 0] = True
    video = open_video(np.zeros((1, *size, 3), np.uint8))
    both = [
        {**code_of(mask), "counts": counts} for counts in (code_of(mask)["counts"], runs_of(mask))
    ]
    for code in both:
        (prompt,) = read_prompts([{"frame": 0, "mask": code}], video)
        assert (prompt.mask == mask).all() and prompt.mask.shape == tuple(size)
    flipped = code_of(~mask)
    if not mask.all():
        (other,) = read_prompts([{"frame": 0, "mask": flipped}], video)
        assert (other.mask != mask).all()


def test_polygons_and_smooth_pictures_are_masks(video: VideoSource, tmp_path: Path) -> None:
    corners = [(20, 20), (80, 20), (80, 60), (20, 60)]
    two = [[float(x) for corner in corners for x in corner], [100, 70, 120, 70, 120, 90]]
    (prompt,) = read_prompts([{"frame": 0, "mask": two}], video)
    drawn = Image.new("1", (WIDTH, HEIGHT))
    for part in two:
        ImageDraw.Draw(drawn).polygon(part, fill=1)
    union = prompt.mask | np.asarray(drawn)
    assert (prompt.mask & np.asarray(drawn)).sum() / union.sum() > 0.93
    smooth = Image.fromarray(make_mask().astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(2))
    smooth.save(tmp_path / "smooth.png")
    (tmp_path / "p.json").write_text(json.dumps([{"frame": 0, "mask": "smooth.png"}]))
    (prompt,) = read_prompts(tmp_path / "p.json", video)
    assert (
        (prompt.mask ^ make_mask()).mean()
        < 0.005
        < (np.asarray(smooth) > 0).mean() - make_mask().mean()
    )


WRONG: dict[str, tuple[Any, str]] = {
    "no list": ({"frame": 0}, "given as dict; expected a list of prompts"),
    "empty": ([], "no prompts were given"),
    "nothing": ([{"frame": 0}], "object 1 on frame 0: nothing given; expected points, a box or both"),
    "two kinds": ([{"frame": 0, "box": BOX, "mask": [[1, 1, 9, 1, 9, 9]]}], "box and mask given"),
    "unknown": ([{"frame": 0, "boxes": [BOX]}], "prompt 1 of prompts: boxes given as"),
    "no frame": ([{"box": BOX}], "prompt 1 of prompts: frame given as"),
    "beyond": ([{"frame": 8, "box": BOX}], "prompt on frame 8 given; the video has frames 0 to 7"),
    "before": ([{"frame": -1, "box": BOX}], "prompt on frame -1 given"),
    "object": ([{"frame": 0, "object": 0, "box": BOX}], "object given as '0'"),
    "truth": ([{"frame": True, "box": BOX}], "frame given as 'True'"),
    "two labels": ([{"frame": t, "box": BOX, "label": f"cat {t}"} for t in (1, 0)], "'cat 0' and, on frame 1, 'cat 1'"),
    "true box": ([{"frame": 0, "box": [0, 0, 30, True]}], "box given as"),
    "short box": ([{"frame": 0, "box": [1, 2, 3]}], "box given as"),
    "endless": ([{"frame": 0, "box": [1, 2, 3, float("inf")]}], "box given as"),
    "outside": ([{"frame": 0, "box": [0, 0, 300, 9]}], "box 0,0,300,9 is empty or lies outside"),
    "shares": ([{"frame": 0, "points": [[0.25, 0.5]]}], "as shares of it write 32,48"),
    "label": ([{"frame": 0, "points": [[5, 5, 2]]}], "a point has label 2; expected 1"),
    "background": ([{"frame": 0, "points": [[5, 5, 0]]}], "points with label 0 alone"),
    "twice": ([{"frame": 0, "box": BOX}, {"frame": 0, "points": [[5, 5]]}], "two prompts on frame 0"),
    "gone": ([{"frame": 0, "remove": True}], "object 1 is removed on frame 0 and not tracked there"),
    "size": ([{"frame": 0, "mask": code_of(np.ones((9, 9)))}], r"mask of size \[9, 9\] given"),
    "empty mask": ([{"frame": 0, "mask": code_of(np.zeros((HEIGHT, WIDTH)))}], "the mask is empty"),
    "line": ([{"frame": 0, "mask": [[1, 1, 9, 9]]}], "a polygon of 4 numbers given"),
    "no picture": ([{"frame": 0, "mask": "none.png"}], "none.png can't be read"),
    "runs": ([{"frame": 0, "mask": {"counts": [3, 4]}}], "a run-length code that doesn't fill 96x128"),
    "code": ([{"frame": 0, "mask": {"counts": "~~"}}], "a run-length code that doesn't fill"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"points": [[5, 5], [9, 9]], "labels": [1, 7]}, "a point has label 7; expected 1"),
        ({"points": [[5, 5]], "labels": [0.5]}, "a point has label 0.5; expected 1"),
        ({"points": [[5, 5]], "labels": ["on"]}, "labels given as .*; expected 1 or 0"),
        ({"object": 0, "box": BOX}, "object 0 given; expected a whole number from 1"),
        ({"object": "dog", "box": BOX}, "object 'dog' given"),
    ],
)
def test_prompts_in_python_are_held_against_the_same(
    given: dict[str, Any], words: str, video: VideoSource
) -> None:
    with pytest.raises(InputError, match=words):
        read_prompts([Prompt(0, **given)], video)


def test_a_file_that_is_no_json_is_told_by_its_line(video: VideoSource, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('[{"frame": 0,\n "box": }]')
    with pytest.raises(InputError, match=r"can't be read \(Expecting value: line 2 column 9"):
        read_prompts(tmp_path / "p.json", video)


@pytest.mark.parametrize("case", WRONG)
def test_what_says_too_little_or_too_much_is_refused(case: str, video: VideoSource) -> None:
    given, words = WRONG[case]
    with pytest.raises(InputError, match=words) as caught:
        read_prompts(given, video)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_of_prompts_ends_in_a_line(video: VideoSource, tmp_path: Path) -> None:
    entry = {"frame": 1, "object": 2, "label": "a", "mask": code_of(make_mask())}
    whole = json.dumps([{"frame": 0, "points": [[5, 6, 1]], "box": BOX}, entry])
    letters = '0123456789[]{}",:.-eaP ~\\'
    refused = 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        text = list(whole)
        for _ in range(rng.integers(1, 4)):
            text[rng.integers(len(text))] = rng.choice(list(letters))
        (tmp_path / "p.json").write_text(
            "".join(text[: rng.integers(len(text)) if seed % 5 == 0 else None])
        )
        try:
            read_prompts(tmp_path / "p.json", video)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 500
    (tmp_path / "p.json").write_text(whole)
    assert len(read_prompts(tmp_path / "p.json", video)) == 2


def test_a_recording_follows_prompts_in_their_time(
    small_stock: Any, clip_frames: np.ndarray, tmp_path: Path
) -> None:
    """Also with those of a function, which gives all at once."""
    prompts = [
        Prompt(1, 1, box=BOX),
        Prompt(3, 2, mask=make_mask(3)),
        Prompt(4, 1, points=[(50, 48)]),
        Prompt(6, 2, remove=True),
    ]
    made = record(small_stock, clip_frames, prompts, out=tmp_path / "a", name="clip")
    clip = made.clip("clip")
    rows = list(zip(clip.row_frame.tolist(), clip.row_object.tolist(), strict=True))
    forward = [(1, 1), (2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (5, 1), (5, 2), (6, 1), (7, 1)]
    assert rows == [*forward, (0, 1)]
    conditioning = [row for row, is_one in zip(rows, clip.conditioning, strict=True) if is_one]
    assert conditioning == [(1, 1), (3, 2), (4, 1)]
    assert made.header.clips[0].objects == (1, 2) and made.header.clips[0].frames == FRAMES
    assert record(small_stock, clip_frames, prompts, out=tmp_path / "a", name="clip").names == [
        "clip"
    ]
    with pytest.raises(InputError, match="another prompt or length"):
        record(small_stock, clip_frames, prompts[:3], out=tmp_path / "a", name="clip")


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, 4, 5], "all", [[1, 2]]])
def test_a_box_that_is_none_is_told_what_one_is(box: Any) -> None:
    with pytest.raises(InputError, match=r"a box given as .* left, top, right and bottom, such as"):
        Prompt(0, 1, box=box)
    assert Prompt(0, 1, box=[1, 2, 3, 4]).box.tolist() == [1, 2, 3, 4]
    with pytest.raises(InputError, match=r"points given as .* x and y of each, such as"):
        Prompt(0, 1, points=[1, 2, 3])
