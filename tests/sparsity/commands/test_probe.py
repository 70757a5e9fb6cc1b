"""``efficient-sam2 probe``: a clip, a data set, and what it refuses."""

from __future__ import annotations

import os
import shutil
from inspect import signature
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from PIL import Image

from probes.recording import record
from probes.records import load_recording
from sparsity.clips.masks import write_mask
from sparsity.commands.app import run

PROBE = ("probe", "--image-size", "128")
"""The command, on the demo model at a size at which it is quick."""


@pytest.fixture
def prompt(tmp_path: Path, clip_mask: np.ndarray) -> str:
    path = tmp_path / "first.png"
    write_mask(path, clip_mask.astype(np.uint8), "")
    return str(path)


@pytest.fixture
def data_set(tmp_path: Path, clip_frames: np.ndarray, clip_mask: np.ndarray) -> Path:
    """Two annotated clips of three frames in DAVIS's layout."""
    root = tmp_path / "set"
    for name in ("one", "two"):
        frames, masks = (root / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
        frames.mkdir(parents=True)
        masks.mkdir(parents=True)
        for t in range(3):
            Image.fromarray(clip_frames[t]).save(frames / f"{t:05d}.jpg")
            write_mask(masks / f"{t:05d}.png", clip_mask.astype(np.uint8), "")
    return root


def test_a_clip_is_recorded(
    tmp_path: Path, clip_folder: Path, prompt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clip.recording"
    arguments = [*PROBE, str(clip_folder), "--prompt", prompt, "--max-frames", "3"]
    assert run([*arguments, "--out", str(out), "--rows", "*.global"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{out}: 1 clips, 3 frames, ")
    assert "raw rows of 3 sites take" in said.err
    recording = load_recording(out)
    table = tmp_path / "all.parquet"
    assert run([*arguments, "--out", str(out), "--rows", "*.global", "--table", str(table)]) == 0
    assert_frame_equal(pd.read_parquet(table), recording.to_frame())
    assert recording.header.model.name == "demo"
    assert recording.clip(recording.names[0]).frame.tolist() == [0, 1, 2]


def test_a_run_under_a_profile_is_recorded(tmp_path: Path, clip_folder: Path, prompt: str) -> None:
    words = [
        *PROBE,
        str(clip_folder),
        "--prompt",
        prompt,
        "--max-frames",
        "3",
        "--sites",
        "memory.*",
    ]
    for profile in ("exact", "paper"):
        out = tmp_path / profile
        assert run([*words, "--profile", profile, "--out", str(out)]) == 0
        recorded = load_recording(out).header.settings.profile
        assert recorded is not None and recorded["name"] == profile
    assert run([*words, "--out", str(tmp_path / "paper")]) == 2  # is of another profile
    assert (
        run([*words, "--profile", "demo", "--out", str(tmp_path / "demo")]) == 2
    )  # made at another size
    assert not (tmp_path / "demo").exists()


def test_clips_under_a_profile_are_recorded(tmp_path: Path, data_set: Path) -> None:
    words = [*PROBE, str(data_set), "--sites", "memory.*", "--profile", "paper"]
    assert run([*words, "--out", str(tmp_path / "set.recording")]) == 0
    recording = load_recording(tmp_path / "set.recording")
    assert recording.names == ["one", "two"] and recording["two"].keys_read is not None


def test_rows_are_measured_from_as_many_queries_as_python_takes(
    tmp_path: Path, clip_folder: Path, prompt: str
) -> None:
    out = tmp_path / "clip.recording"
    words = [*PROBE, str(clip_folder), "--prompt", prompt, "--max-frames", "1"]
    assert run([*words, "--sites", "memory.*", "--out", str(out)]) == 0
    settings = load_recording(out).header.settings
    assert settings.query_rows == signature(record).parameters["query_rows"].default
    fewer = tmp_path / "fewer.recording"
    assert run([*words, "--sites", "memory.*", "--out", str(fewer), "--query-rows", "9"]) == 0
    assert load_recording(fewer).header.settings.query_rows == 9


def test_a_folder_of_frames_gives_its_whole_name(
    tmp_path: Path, clip_folder: Path, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = tmp_path / "clip.2"
    frames.mkdir()
    shutil.copy(clip_folder / "00000.jpg", frames)
    monkeypatch.chdir(frames)
    for video in (str(frames), "."):
        out = tmp_path / f"{len(video)}.recording"
        assert run([*PROBE, video, "--prompt", prompt, "--out", str(out)]) == 0
        assert load_recording(out).names == ["clip.2"]


def test_a_name_in_an_older_encoding_is_made_readable(
    tmp_path: Path, clip_folder: Path, prompt: str
) -> None:
    for name, shown in {b"caf\xe9": "caf\N{REPLACEMENT CHARACTER}", b"caf\xc3\xa9": "café"}.items():
        frames = tmp_path / os.fsdecode(name)
        frames.mkdir()
        shutil.copy(clip_folder / "00000.jpg", frames)
        out = tmp_path / f"{len(name)}.recording"
        words = ["--prompt", prompt, "--sites", "memory.*", "--out", str(out)]
        assert run([*PROBE, str(frames), *words]) == 0
        assert load_recording(out).names == [shown]


def test_a_place_that_cannot_be_written_is_named_before_tracking(
    tmp_path: Path, clip_folder: Path, prompt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*PROBE, str(clip_folder), "--prompt", prompt, "--out", f"{prompt}/inside/r"]
    assert run(words) == 2
    said = capsys.readouterr().err  # a run under way would show a bar
    assert f"{prompt} can't be written into" in said and said.count("\n") == 1


def test_a_data_set_is_recorded_and_gone_on_with(tmp_path: Path, data_set: Path) -> None:
    listed, out = tmp_path / "clips.txt", tmp_path / "set.recording"
    listed.write_text("two\n")
    options = ["--out", str(out), "--sites", "memory.*"]
    assert run([*PROBE, str(data_set), "--clips", str(listed), *options]) == 0
    stamp = (out / "two.safetensors").stat().st_mtime_ns
    assert load_recording(out).names == ["two"]
    assert run([*PROBE, str(data_set), *options]) == 0
    assert sorted(load_recording(out).names) == ["one", "two"]
    assert (out / "two.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "without a prompt"),
        (["--box", "1,1,50,50", "--sites", "nowhere"], "no attention site matches 'nowhere'"),
        (["--box", "1,1,500,50"], "box"),
        (["--box", "1,1,50,50", "--rows", "*.window"], "name none whose attention rows are stored"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    clip_folder: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "r"
    assert run([*PROBE, str(clip_folder), "--out", str(out), *options]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out
    assert not out.exists()


def test_a_table_that_cannot_be_written_is_refused_first(
    tmp_path: Path, clip_folder: Path, prompt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clip.recording"
    words = [*PROBE, str(clip_folder), "--prompt", prompt, "--out", str(out)]
    assert run([*words, "--table", str(tmp_path / "all.csv")]) == 2
    assert "ends in .parquet" in capsys.readouterr().err and not out.exists()
