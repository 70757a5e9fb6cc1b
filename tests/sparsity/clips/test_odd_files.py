"""Odd files and folders: read right, with what is left out said, or refused in one line; none shortened or turned."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from probes.errors import InputError, LeftOut
from probes.video import notes_of, open_video
from sparsity.clips.sources import is_video
from tests.sparsity.clips.made_files import COUNT, FILES, FRAMES, KINDS, index_of, write

REPEATED = {"lost.ts": 3, "cut.ts": 1, "cut.h264": 1}
"""Frames that a decoder makes up where it lost what they are made from, at most."""


def test_there_are_many() -> None:
    assert len(FILES) >= 60


@pytest.mark.parametrize("name", FILES)
def test_an_odd_file_is_read_right_or_refused(name: str, tmp_path: Path) -> None:
    odd, path = FILES[name], tmp_path / name
    odd.make(path)
    if odd.frames is None:
        with pytest.raises(InputError, match=odd.said) as caught:
            video = open_video(path)
            [video.frame(i) for i in range(video.num_frames or 0)]
        assert "\n" not in str(caught.value) and "expected" in str(caught.value)
        return
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        video = open_video(path)
    said = [str(w.message) for w in warned if w.category is LeftOut]
    assert tuple(said) == notes_of(video) and len(said) == len(warned)
    assert bool(said) == bool(odd.said) and re.search(odd.said, "; ".join(said))
    assert video.num_frames is not None and video.num_frames > 0
    found = [index_of(video.frame(i)) for i in range(video.num_frames)]
    if odd.frames:
        assert tuple(found) == odd.frames
    else:  # how many can be read depends on the encoder
        strange = [a for a, b in zip(found, found[1:], strict=False) if b <= a]
        assert len(strange) <= REPEATED.get(name, 0) and len(found) > 1
        assert len(found) < COUNT or "two" in name
    back = [video.num_frames - 1, 0, video.num_frames // 2, min(1, video.num_frames - 1)]
    assert [index_of(video.frame(i)) for i in back] == [found[i] for i in back]
    if said:
        with pytest.raises(InputError, match="expected that nothing is left out"):
            open_video(path, strict=True)
    else:
        assert open_video(path, strict=True).num_frames == video.num_frames


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_is_a_video_of_a_folder(name: str, tmp_path: Path) -> None:
    KINDS[name].make(tmp_path / name)
    assert is_video(tmp_path / name)
    for other in ("notes.txt", "page.html", "table.csv", "sound.mp3", "frame.png", "no suffix"):
        (tmp_path / other).write_text("a line\n" * 99)
        assert not is_video(tmp_path / other)


@pytest.mark.parametrize("name", ["slow.mp4", "mpg.mpg", "raw.avi", "gif.gif", "h264.h264"])
def test_frames_a_second_can_be_believed(name: str, tmp_path: Path) -> None:
    KINDS[name].make(tmp_path / name)
    assert open_video(tmp_path / name).fps == pytest.approx(0.5 if name == "slow.mp4" else 25)


def test_a_rate_that_cannot_be_is_not_believed(tmp_path: Path) -> None:
    """DV's header says 60,000 frames a second, and 25 elsewhere."""
    large = [np.kron(frame, np.ones((6, 6, 1), np.uint8))[:, :720] for frame in FRAMES[:4]]
    dv = open_video(write(tmp_path / "a.dv", "dvvideo", large, format="dv", options={"g": "1"}))
    assert (dv.fps, dv.num_frames, dv.width, dv.height) == (25, 4, 720, 576)
    fast = write(tmp_path / "fast.mp4", rate=10000)
    assert open_video(fast).fps is None
    assert open_video(write(tmp_path / "usual.mp4", rate=100)).fps == 100
