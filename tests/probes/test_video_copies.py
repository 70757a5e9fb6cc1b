"""A video that is copied, sent to another process, or whose files change meanwhile."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from probes.errors import InputError
from probes.video import ModelFrames, open_video
from tests.conftest import make_frames


@pytest.fixture
def video_file(tmp_path: Path, clip_frames: np.ndarray) -> Path:
    """The clip as an mp4 with B-frames and two key frames."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "5", "bf": "2"})
        stream.height, stream.width = clip_frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in clip_frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def sources(folder: Path, file: Path, frames: np.ndarray) -> dict[str, Any]:
    return {"folder": folder, "file": file, "bytes": file.read_bytes(), "array": frames}


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("kind", ["folder", "file", "bytes", "array"])
def test_a_copy_reads_the_same_frames(
    clip_folder: Path,
    video_file: Path,
    clip_frames: np.ndarray,
    kind: str,
    copied: Callable[[Any], Any],
) -> None:
    """In its own order, while the original goes on."""
    video = open_video(sources(clip_folder, video_file, clip_frames)[kind])
    frames = ModelFrames(video, 64, "cpu")
    expected = [frames[i].clone() for i in range(len(frames))]
    other = copied(frames)
    for i in (5, 1, 7, 0):
        assert torch.equal(other[i], expected[i]) and torch.equal(frames[7 - i], expected[7 - i])
    assert not torch.equal(expected[0], expected[7])


def test_a_copy_of_a_stream_has_what_was_held(clip_frames: np.ndarray) -> None:
    video = open_video(iter(clip_frames))
    video.frame(3)
    other = copy.deepcopy(video)
    assert np.array_equal(other.frame(3), clip_frames[3])
    with pytest.raises(InputError, match="frame 4 of a copied stream .* frames 0 to 3 were copied"):
        other.frame(4)
    assert np.array_equal(video.frame(4), clip_frames[4])


@pytest.mark.process
def test_a_video_that_was_opened_before_a_fork_is_read_in_both(video_file: Path) -> None:
    video, other = open_video(video_file), open_video(video_file)
    expected = [video.frame(i).copy() for i in range(8)]
    video.frame(2)
    other.frame(2)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends it where it waits for a thread of the other process
        right = all(np.array_equal(video.frame(i), expected[i]) for i in (7, 3, 4, 0))
        video = other = None
        gc.collect()
        os.write(writing, b"1" if right else b"0")
        os._exit(0)
    here = [np.array_equal(video.frame(i), expected[i]) for i in (3, 6, 1)]
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(reading, 1) == b"1" and all(here)
    assert not np.array_equal(expected[0], expected[7])


def test_a_folder_that_changes_meanwhile_is_noticed(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    video = open_video(folder)
    kept = ModelFrames(open_video(folder), 64, "cpu").whole()
    video.frame(2)
    shutil.copy(folder / "00007.jpg", folder / "00003.jpg")
    with pytest.raises(InputError, match=r"00003\.jpg was changed since the video was opened"):
        video.frame(3)
    video.frame(4)
    (folder / "00005.jpg").unlink()
    with pytest.raises(InputError, match=r"00005\.jpg is gone since the video was opened"):
        video.frame(5)
    fresh = ModelFrames(open_video(clip_folder), 64, "cpu")
    assert torch.equal(kept[3], fresh[3]) and not torch.equal(kept[3], fresh[7])


def test_a_file_that_changes_meanwhile_is_noticed_when_it_is_opened_again(video_file: Path) -> None:
    video = open_video(video_file)
    stored = pickle.dumps(video)
    shutil.copy(video_file, video_file.with_suffix(".again.mp4"))
    os.utime(video_file)
    with pytest.raises(InputError, match="was changed since the video was opened"):
        pickle.loads(stored)
    assert pickle.loads(pickle.dumps(open_video(video_file))).num_frames == len(make_frames())
