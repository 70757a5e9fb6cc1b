"""Several videos segmented at once in one process: files of each as if it were alone, whatever becomes of the others."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from probes.errors import InputError
from sparsity.clips.masks import write_mask
from sparsity.clips.sources import ClipSource
from sparsity.profile import BUILTIN
from sparsity.work import record, run
from sparsity.work.model import ModelChoice
from sparsity.work.record import SegmentClip, on_one_gpu, segment_clips
from sparsity.work.segment import RunOptions
from sparsity.work.spread import Spread
from tests.conftest import make_frames, make_mask

LENGTHS = {"a": 6, "b": 4, "c": 5}

NAMES = list(LENGTHS)

CHOICE = ModelChoice(image_size=128, device="cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    """Three videos of other lengths and sizes, one with two objects, one prompted in its middle."""
    root = tmp_path_factory.mktemp("videos")
    for n, (name, first) in enumerate(zip(NAMES, (0, 0, 2), strict=True)):
        (root / "videos" / name).mkdir(parents=True)
        (root / "masks" / name).mkdir(parents=True)
        side = 128 - 16 * n
        for t, frame in enumerate(make_frames(LENGTHS[name])):
            Image.fromarray(frame[:, :side]).save(root / "videos" / name / f"{t:05d}.png")
        ids = make_mask(first).astype(np.uint8)[:, :side]
        if name == "b":
            ids[70:90, 60:80] = 2
        write_mask(root / "masks" / name / f"{first:05d}.png", ids, "")
    return ClipSource(root / "videos", root / "masks")


def work_into(out: Path, source: ClipSource, **options: Any) -> SegmentClip:
    profile = BUILTIN[options.pop("profile", "dense")]
    return SegmentClip(source, out, RunOptions(CHOICE, profile, **options))


def together(work: SegmentClip, at_once: int) -> dict[str, tuple[Any, str | None]]:
    """What becomes of all clips, by name."""
    return {name: found for name, *found in work.together(NAMES, at_once)}


def files(out: Path) -> dict[str, bytes]:
    """All that was written but for the reports, which hold times."""
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in sorted(out.rglob("*"))
        if file.is_file() and file.name != "report.json"
    }


def report(out: Path, name: str) -> dict[str, Any]:
    """What was done with a video, but for how."""
    found = json.loads((out / name / "report.json").read_text())["report"]
    for frame in found["frames"]:
        del frame["encoded_together"]
    return found


@pytest.fixture(scope="module", params=["dense", "recommended"])
def alone(
    request: Any, source: ClipSource, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A profile, and what it makes of the videos one after the other."""
    out = tmp_path_factory.mktemp("alone") / "out"
    work = work_into(out, source, profile=request.param, watch=0.5)
    assert segment_clips(work).resumed == []
    return request.param, out


@pytest.mark.parametrize("at_once", [2, 3])
def test_files_are_those_of_one_after_the_other(
    source: ClipSource, alone: tuple[str, Path], tmp_path: Path, at_once: int
) -> None:
    profile, expected = alone
    found = together(work_into(tmp_path, source, profile=profile, watch=0.5), at_once)
    assert sorted(found) == NAMES and all(why is None for _, why in found.values())
    assert files(tmp_path) == files(expected)
    assert any(name.endswith("overlay.mp4") for name in files(tmp_path))
    for name in NAMES:
        if profile == "dense":
            assert report(tmp_path, name) == report(expected, name)
        mine, other = report(tmp_path, name), report(expected, name)
        assert mine["summary"] == other["summary"] and mine["watch"] == other["watch"]
        times = json.loads((tmp_path / name / "report.json").read_text())["milliseconds"]
        assert len(times) == LENGTHS[name] and all(ms > 0 for ms in times)
    masks = {name: files(tmp_path / name)["masks/00003.png"] for name in NAMES}
    assert len(set(masks.values())) == 3


def test_whole_frames_of_several_are_encoded_in_one_batch(
    source: ClipSource, tmp_path: Path
) -> None:
    for profile in ("exact", "dense"):
        together(work_into(tmp_path / profile, source, profile=profile), 3)
        said = [
            json.loads((tmp_path / profile / name / "report.json").read_text()) for name in NAMES
        ]
        batches = {f["encoded_together"] for one in said for f in one["report"]["frames"]}
        assert batches == ({1, 2, 3} if profile == "exact" else {1})


def test_a_video_that_breaks_is_named_and_costs_no_other(
    source: ClipSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command does it where processes would share a GPU; mended, it goes on with that video."""
    monkeypatch.setattr(record, "on_one_gpu", lambda *given: True)
    assert source.videos is not None
    whole, out = tmp_path / "whole", tmp_path / "out"
    shutil.copytree(source.videos, tmp_path / "videos")
    mine = ClipSource(tmp_path / "videos", source.prompts)
    assert sorted(segment_clips(work_into(whole, mine), spread=Spread(3)).results) == NAMES
    broken = tmp_path / "videos" / "b" / "00002.png"
    picture = broken.rename(tmp_path / "picture.png")
    broken.write_bytes(b"no picture")
    with pytest.raises(InputError, match="1 of 3 clips failed, first b .*00002.png"):
        segment_clips(work_into(out, mine), spread=Spread(3))
    assert all(files(out / name) == files(whole / name) for name in ("a", "c"))
    picture.replace(broken)
    shutil.rmtree(out / "b")  # begun with another video
    summary = segment_clips(work_into(out, mine), spread=Spread(3))
    assert summary.resumed == ["a", "c"] and list(summary.results) == NAMES
    assert files(out) == files(whole)


@pytest.mark.parametrize(
    ("merged", "left"), [(1, {"a"}), (4, {"a", "b"}), (7, {"a"}), (10, set()), (11, {"c"})]
)
def test_interrupted_runs_go_on_to_the_same_files(
    source: ClipSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: int, left: set[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    together(work_into(whole, source, overlay=False), 2)
    merge, count = run.merge_objects, []

    def merge_and_interrupt(*given: Any) -> Any:
        count.append(1)
        if len(count) == merged:
            os.kill(os.getpid(), signal.SIGINT)
        return merge(*given)

    with monkeypatch.context() as patch:
        patch.setattr(run, "merge_objects", merge_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            together(work_into(out, source, overlay=False), 2)
    assert len(count) <= merged + 1, "one that lacks its last frame alone finishes it"
    saved = {file.parent.name for file in out.rglob("state.pt")}
    assert saved == left
    early = {file: file.stat().st_mtime_ns for file in out.rglob("masks/*.png")}
    assert early
    found = together(work_into(out, source, overlay=False), 2)
    assert {file: file.stat().st_mtime_ns for file in early} == early
    assert all(why is None for _, why in found.values())
    assert files(out) == files(whole)


def test_processes_would_share_a_gpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert on_one_gpu(gpu, None, 1) and on_one_gpu(gpu, "cuda", 1)
    assert on_one_gpu(gpu, "cuda:0", 4) and on_one_gpu(torch.device("mps"), None, 0)
    assert not on_one_gpu(gpu, None, 2) and not on_one_gpu(gpu, "cuda", 2)
    assert not on_one_gpu(cpu, None, 1) and not on_one_gpu(cpu, "cpu", 0)
