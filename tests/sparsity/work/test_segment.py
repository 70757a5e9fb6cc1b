"""``segment``: what it writes, that an interrupted run goes on, and what it refuses to touch."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

import sparsity.demo
from figures.sides import read_side
from probes.errors import InputError, LeftOut
from probes.prompts import Prompt
from sparsity.acceleration.model.choice import CHOSEN
from sparsity.clips.masks import PALETTE, read_mask, write_mask, write_video
from sparsity.clips.prompt import PromptOptions
from sparsity.profile import Profile
from sparsity.techniques import KEY
from sparsity.techniques.routing import Guard, Routing
from sparsity.work import run
from sparsity.work.model import ModelChoice, shared_predictor
from sparsity.work.run_folder import RunFolder
from sparsity.work.segment import run_segment


@pytest.fixture(scope="module")
def choice() -> ModelChoice:
    """The demo model with 2 x 2 windows, at a size at which it is quick."""
    return ModelChoice(image_size=128, device="cpu")


@pytest.fixture(scope="module")
def mask_file(tmp_path_factory: pytest.TempPathFactory, clip_mask: np.ndarray) -> Path:
    """Two objects in the DAVIS palette, ids 1 and 7."""
    ids = clip_mask.astype(np.uint8)
    ids[70:90, 100:120] = 7
    path = tmp_path_factory.mktemp("prompt") / "first.png"
    write_mask(path, ids, "")
    return path


def _run(choice: ModelChoice, clip: Path, out: Path, mask: Path, **changes: Any) -> Any:
    prompt = PromptOptions(mask, frame=changes.pop("frame", 0))
    return run_segment(clip, prompt, choice, out, **{"profile": "dense", **changes})


def _masks(out: Path) -> dict[str, np.ndarray]:
    return {p.name: np.array(Image.open(p)) for p in sorted((out / "masks").iterdir())}


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
    choice: ModelChoice,
    clip_folder: Path,
    mask_file: Path,
) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    _run(choice, clip_folder, out, mask_file)
    return out


def test_masks_overlay_and_report(
    choice: ModelChoice, clip_folder: Path, mask_file: Path, whole: Path
) -> None:
    outcome = _run(choice, clip_folder, whole, mask_file)
    masks = _masks(whole)
    assert list(masks) == [f"{t:05d}.png" for t in range(8)]
    with Image.open(whole / "masks" / "00000.png") as image:
        assert image.mode == "P"
        assert image.size == (128, 96)
        assert np.array(image.getpalette()).reshape(-1, 3)[:8].tolist() == PALETTE[:8].tolist()
    assert set(np.unique(masks["00000.png"])) == {0, 1, 7}
    assert (masks["00000.png"] == read_mask(mask_file)).mean() > 0.98
    with av.open(str(whole / "overlay.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 8
    report = json.loads((whole / "report.json").read_text())
    assert report["schema"] == "efficient-sam2/segment/2"
    assert report["objects"] == outcome.objects == [1, 7]
    assert len(report["milliseconds"]) == len(report["report"]["frames"]) == 8
    assert report["settings"]["profile"]["name"] == "dense"
    assert "8 frames, 2 objects" in outcome.summary()
    assert sorted(p.name for p in whole.iterdir()) == [
        "masks",
        "overlay.mp4",
        "report.json",
        "run.json",
    ]


def test_the_summary_names_rescued_frames(
    choice: ModelChoice, clip_folder: Path, mask_file: Path, tmp_path: Path
) -> None:
    said = {}
    for name, rules in {"calm": Guard(), "alarmed": Guard(scene_cut=1e-6)}.items():
        profile = tmp_path / f"{name}.json"
        profile.write_text(Profile(name=name, routing=Routing(), guard=rules).to_json())
        outcome = _run(
            choice, clip_folder, tmp_path / name, mask_file, profile=profile, max_frames=4
        )
        said[name] = outcome.summary()
    report = json.loads((tmp_path / "alarmed" / "report.json").read_text())["report"]
    assert report["summary"]["rescued"] == {"2": "scene cut", "3": "scene cut"}
    assert "guard    encoded densely: frame 2 (scene cut), frame 3 (scene cut)" in said["alarmed"]
    assert "guard    encoded densely: no frame" in said["calm"]


def test_the_same_command_again_does_nothing(
    choice: ModelChoice, clip_folder: Path, mask_file: Path, whole: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    _run(choice, clip_folder, whole, mask_file)
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def test_other_settings_are_refused_until_forced(
    choice: ModelChoice, clip_folder: Path, mask_file: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _run(choice, clip_folder, out, mask_file, max_frames=3)
    assert list(_masks(out)) == ["00000.png", "00001.png", "00002.png"]
    with pytest.raises(InputError, match="holds a run with another max_frames; .* --force"):
        _run(choice, clip_folder, out, mask_file, max_frames=2)
    assert len(_masks(out)) == 3
    _run(choice, clip_folder, out, mask_file, max_frames=2, force=True)
    assert list(_masks(out)) == ["00000.png", "00001.png"]


def test_another_configuration_of_the_same_weights_is_another_setting(
    choice: ModelChoice, clip_folder: Path, mask_file: Path, tmp_path: Path
) -> None:
    def segment_with(config: Path) -> None:
        model = replace(choice, config=config, weights="random")
        run_segment(clip_folder, PromptOptions(mask_file), model, tmp_path / "out", max_frames=1)

    config = Path(sparsity.demo.__file__).parent / "config.yaml"
    same, other = tmp_path / "same.yaml", tmp_path / "other.yaml"
    same.write_text(config.read_text())
    other.write_text(f"{config.read_text()}  memory_temporal_stride_for_eval: 2\n")
    segment_with(config)
    segment_with(same)
    with pytest.raises(InputError, match="holds a run with another configuration; "):
        segment_with(other)


def test_a_colon_in_the_name_of_the_folder(
    choice: ModelChoice,
    clip_folder: Path,
    mask_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny:exact", "tiny"):
        _run(choice, clip_folder, Path(name), mask_file, max_frames=1)
        assert (tmp_path / name / "overlay.mp4").is_file()


def test_a_folder_with_other_files_is_left_alone(
    choice: ModelChoice, clip_folder: Path, mask_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        _run(choice, clip_folder, tmp_path, mask_file)
    _run(choice, clip_folder, tmp_path, mask_file, max_frames=1, force=True)
    assert (tmp_path / "letter.txt").read_text() == "mine"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        _run(choice, clip_folder, tmp_path / "file", mask_file)


def test_a_folder_that_another_run_writes_into_is_left_to_it(
    choice: ModelChoice, clip_folder: Path, mask_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "out"
    with (
        RunFolder(out).held(),
        pytest.raises(InputError, match="another run is writing into .*; wait for its end"),
    ):
        _run(choice, clip_folder, out, mask_file, max_frames=1)
    assert not any(out.iterdir())
    _run(choice, clip_folder, out, mask_file, max_frames=1)
    assert (out / "overlay.mp4").is_file()


def test_what_was_reported_of_removed_objects_stays(
    choice: ModelChoice, clip_folder: Path, tmp_path: Path
) -> None:
    prompts = [
        Prompt(0, 1, box=(20, 20, 60, 60)),
        Prompt(3, 1, remove=True),
        Prompt(5, 2, box=(20, 20, 60, 60)),
    ]
    out = tmp_path / "out"
    run_segment(clip_folder, prompts, choice, out, profile="paper", watch=1.0)
    report = json.loads((out / "report.json").read_text())["report"]
    assert [(f["frame"], *f["objects"]) for f in report["frames"]] == [
        (0, "1"), (1, "1"), (2, "1"), (5, "2"), (6, "2"), (7, "2")
    ]  # fmt: skip
    assert report["summary"]["reasons"]["prompt"] == 2
    assert report["watch"]["shadows"][0]["frame"] == 2, "what was watched before is forgotten"
    side = read_side(out, None)
    assert sorted(side.masks) == list(range(8)) and not side.masks[4][1].any()
    assert side.masks[2][1].any() and side.masks[7][2].any()
    whole = json.loads((out / "report.json").read_text())
    for kept in (
        report["frames"][1:3],
        report["frames"][4:],
        [],
    ):  # as a long stream keeps the latest
        whole["report"]["frames"] = kept
        (out / "report.json").write_text(json.dumps(whole))
        with pytest.raises(InputError, match=f"a report of {len(kept)} frames and 8 masks"):
            read_side(out, None)


def _interrupt_after(monkeypatch: pytest.MonkeyPatch, frames: int, number: int) -> None:
    """Send this process a signal while frame `frames` is being merged."""
    merge, merged = run.merge_objects, []

    def merge_and_interrupt(*arguments: Any) -> Any:
        merged.append(1)
        if len(merged) == frames:
            os.kill(os.getpid(), number)
        return merge(*arguments)

    monkeypatch.setattr(run, "merge_objects", merge_and_interrupt)


@pytest.mark.parametrize(
    ("number", "frame"),
    [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGINT, 5)],
    ids=["interrupt", "terminate", "tracking back"],
)
def test_an_interrupted_run_goes_on_to_the_same_masks(
    choice: ModelChoice,
    clip_folder: Path,
    mask_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    frame: int,
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    _run(choice, clip_folder, whole, mask_file, frame=frame)
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 5, number)
        with pytest.raises(KeyboardInterrupt):
            _run(choice, clip_folder, out, mask_file, frame=frame)
    assert len(_masks(out)) == 5
    saved = torch.load(out / "state.pt", weights_only=False)["state"]
    assert "obj_ids" in saved and saved[KEY].published is None, "features are soon made"
    assert not any(isinstance(value, torch.device) for value in saved.values()), (
        "it may go on elsewhere"
    )
    assert not (out / "report.json").exists()
    assert not list(out.rglob(".*"))
    early = {p: p.stat().st_mtime_ns for p in (out / "masks").iterdir()}
    _run(choice, clip_folder, out, mask_file, frame=frame)
    assert {p: p.stat().st_mtime_ns for p in early} == early  # they were not computed again
    found, expected = _masks(out), _masks(whole)
    assert list(found) == list(expected)
    assert all(np.array_equal(found[k], expected[k]) for k in expected)
    reports = [json.loads((d / "report.json").read_text()) for d in (out, whole)]
    assert reports[0]["report"]["frames"] == reports[1]["report"]["frames"]
    assert len(reports[0]["milliseconds"]) == 8
    assert not (out / "state.pt").exists()


def test_windows_take_over_what_they_gave_before_an_interrupt(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice, mask = ModelChoice(image_size=256, device="cpu"), tmp_path / "first.png"
    ids = np.zeros((96, 128), np.uint8)
    ids[8:24, 8:24] = 1
    write_mask(mask, ids, "")
    found = {}
    for name in ("whole", "out"):
        if name == "out":
            with monkeypatch.context() as patch:
                _interrupt_after(patch, 5, signal.SIGINT)
                patch.setitem(CHOSEN, "found there", "other")
                with pytest.raises(KeyboardInterrupt):
                    _run(choice, clip_folder, tmp_path / name, mask, profile="recommended")
            shared_predictor.cache_clear()  # as in another process
            assert "found there" not in CHOSEN
        _run(choice, clip_folder, tmp_path / name, mask, profile="recommended")
        report = json.loads((tmp_path / name / "report.json").read_text())["report"]
        found[name] = report["frames"]
    assert CHOSEN.pop("found there") == "other", "formulations are those of the first process, too"
    assert all(frame["windows_kept"] < frame["windows_total"] for frame in found["whole"][4:6])
    assert found["out"] == found["whole"]
    ours, theirs = (_masks(tmp_path / name) for name in found)
    assert all(np.array_equal(ours[k], theirs[k]) for k in theirs)


def test_an_interrupted_run_with_a_later_object_goes_on_to_the_same_masks(
    choice: ModelChoice, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = tmp_path / "prompts"
    masks.mkdir()
    for frame in (1, 3):
        ids = np.zeros((96, 128), np.uint8)
        ids[10 * frame : 10 * frame + 30, 20:60] = frame
        write_mask(masks / f"{frame:05d}.png", ids, "")
    expected = {}
    for done in (0, 1, 4, 6):
        out = tmp_path / f"out{done}"
        with monkeypatch.context() as patch:
            _interrupt_after(patch, done, signal.SIGINT)
            if done:
                with pytest.raises(KeyboardInterrupt):
                    _run(choice, clip_folder, out, masks, frame=None)
                assert len(_masks(out)) == done
        _run(choice, clip_folder, out, masks, frame=None)
        expected = expected or _masks(out)
        found = _masks(out)
        assert all(np.array_equal(found[k], expected[k]) for k in expected) and len(found) == 8
    assert 3 in expected["00003.png"] and 3 not in expected["00002.png"]


def test_an_overlay_that_cannot_be_encoded_costs_nothing_else(
    choice: ModelChoice, mask_file: Path, tmp_path: Path
) -> None:
    wide = tmp_path / "wide"
    wide.mkdir()
    for t in range(2):
        Image.new("RGB", (17000, 64), (90, 90 + t, 90)).save(wide / f"{t}.png")
    outcomes = []
    for _ in range(2):
        prompt = PromptOptions(boxes=("1000,20,3000,40",))
        if not outcomes:
            with pytest.warns(LeftOut, match=r"overlay.mp4 can't be encoded \(.*\), left out"):
                outcomes.append(run_segment(wide, prompt, choice, tmp_path / "out"))
        else:
            outcomes.append(run_segment(wide, prompt, choice, tmp_path / "out"))
    assert outcomes[0] == outcomes[1] and not outcomes[0].overlay
    assert "overlay  none" in outcomes[0].summary()
    assert sorted(_masks(tmp_path / "out")) == ["0.png", "1.png"]
    (note,) = json.loads((tmp_path / "out" / "report.json").read_text())["left_out"]
    assert (
        "overlay.mp4 can't be encoded" in note and not (tmp_path / "out" / "overlay.mp4").exists()
    )


def test_objects_that_masks_cannot_hold_are_refused(
    choice: ModelChoice, clip_folder: Path, clip_mask: np.ndarray, tmp_path: Path
) -> None:
    for number, said in {
        0: "a whole number from 1",
        255: "ids of 1 to 254",
        300: "ids of 1 to 254",
    }.items():
        with pytest.raises(InputError, match=f"object {number} .* expected {said}"):
            prompts = (Prompt(0, number, mask=clip_mask),)
            run_segment(clip_folder, prompts, choice, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    prompts = (Prompt(0, 254, mask=clip_mask),)
    run_segment(clip_folder, prompts, choice, tmp_path / "out", max_frames=1)
    assert set(np.unique(read_mask(tmp_path / "out" / "masks" / "00000.png"))) == {0, 254}


@pytest.fixture
def interrupted(
    choice: ModelChoice,
    clip_folder: Path,
    mask_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with four frames of six done."""
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 4, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            _run(choice, clip_folder, tmp_path, mask_file, max_frames=6)
    return tmp_path


def test_a_state_without_its_masks_is_not_trusted(
    choice: ModelChoice, clip_folder: Path, mask_file: Path, interrupted: Path
) -> None:
    Image.new("P", (128, 96)).save(
        interrupted / "masks" / "00001.png"
    )  # whole, but not of this run
    _run(choice, clip_folder, interrupted, mask_file, max_frames=6)
    assert _masks(interrupted)["00001.png"].any()


def test_a_state_of_other_sources_is_not_trusted(
    choice: ModelChoice,
    clip_folder: Path,
    mask_file: Path,
    interrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It names a class of a module that is no longer there."""
    with monkeypatch.context() as patch:
        gone = ModuleType("gone")
        exec("class Session: pass", gone.__dict__)
        patch.setitem(sys.modules, "gone", gone)
        torch.save({"state": gone.Session()}, interrupted / "state.pt")
    assert "gone" not in sys.modules
    first = interrupted / "masks" / "00000.png"
    before = first.stat().st_mtime_ns
    _run(choice, clip_folder, interrupted, mask_file, max_frames=6)
    assert len(_masks(interrupted)) == 6
    assert first.stat().st_mtime_ns > before, "it began anew"


def test_an_accelerated_run_goes_on_too(
    choice: ModelChoice,
    clip_folder: Path,
    mask_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 5, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            _run(choice, clip_folder, tmp_path, mask_file, profile="paper")
    _run(choice, clip_folder, tmp_path, mask_file, profile="paper")
    report = json.loads((tmp_path / "report.json").read_text())["report"]
    assert [f["frame"] for f in report["frames"]] == list(range(8))
    last = report["frames"][-1]["objects"]["1"]
    assert last["pruned_frames"] > 0
    assert last["keys_used"][0] < last["keys_total"]


def test_video_files_points_and_boxes(
    choice: ModelChoice, clip_frames: np.ndarray, tmp_path: Path, mask_file: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    write_video(clip, iter(clip_frames), 25)
    for name, prompt in {
        "points": PromptOptions(points=("50,48", "5,5,0")),
        "box": PromptOptions(boxes=("20,20,80,80",)),
        "both": PromptOptions(points=("50,48",), boxes=("20,20,80,80",)),
    }.items():
        run_segment(clip, prompt, choice, tmp_path / name, profile="dense", max_frames=2)
        assert list(_masks(tmp_path / name)) == ["00000.png", "00001.png"]


@pytest.mark.parametrize("fps", [None, 0.0, 1e-9, 90000.0, float("nan"), float("inf"), 12.5])
def test_an_overlay_plays_at_a_rate_that_can_be(
    fps: float | None, clip_frames: np.ndarray, tmp_path: Path
) -> None:
    write_video(tmp_path / "overlay.mp4", iter(clip_frames), fps)
    with av.open(str(tmp_path / "overlay.mp4")) as video:
        rate = video.streams.video[0].average_rate
        assert sum(1 for _ in video.decode(video=0)) == len(clip_frames)
    assert rate == (12.5 if fps == 12.5 else 24)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (1, 96)])
def test_a_written_video_has_the_colours_of_its_frames(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    colours = [(230, 30, 40), (20, 200, 60), (30, 40, 220), (128, 128, 128)]
    frames = [np.full((*size, 3), colour, np.uint8) for colour in colours]
    write_video(tmp_path / "v.mp4", iter(frames), 25)
    with av.open(str(tmp_path / "v.mp4")) as video:
        found = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert [frame.shape for frame in found] == [(max(2, size[0] // 2 * 2), 96, 3)] * 4
    off = [[np.abs(f.astype(int) - colour).mean() for colour in colours] for f in found]
    assert all(row[n] < 4 for n, row in enumerate(off)), "each its own"
    assert all(min(row[:n] + row[n + 1 :]) > 40 for n, row in enumerate(off)), "and no other's"
