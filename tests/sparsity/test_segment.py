"""``segment``: what it writes, that an interrupted run goes on, and what it refuses to touch."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from probes.errors import InputError
from sparsity import segment
from sparsity.masks import PALETTE, davis_palette, draw_over, merge_objects, read_mask, write_mask
from sparsity.options import ModelChoice
from sparsity.profile import Guard, Profile, Windows
from sparsity.prompt import Prompt
from sparsity.segment import run_segment

MODEL = ModelChoice("sam2.1-tiny", weights="random", image_size=256, device="cpu")


@pytest.fixture(autouse=True)
def one_model(monkeypatch: pytest.MonkeyPatch, tiny_predictor: Any) -> None:
    """Build the model once for all runs; it is the one that MODEL asks for."""
    build = ModelChoice.build
    monkeypatch.setattr(
        ModelChoice, "build", lambda self: tiny_predictor if self == MODEL else build(self)
    )


@pytest.fixture(scope="module")
def mask_file(tmp_path_factory: pytest.TempPathFactory, clip_mask: np.ndarray) -> Path:
    """Two objects in the DAVIS palette, ids 1 and 7."""
    ids = clip_mask.astype(np.uint8)
    ids[70:90, 100:120] = 7
    path = tmp_path_factory.mktemp("prompt") / "first.png"
    write_mask(path, ids, "")
    return path


def _run(clip: Path, out: Path, mask: Path, **changes: Any) -> Any:
    prompt = Prompt(mask, frame=changes.pop("frame", 0))
    return run_segment(clip, prompt, MODEL, out, **{"profile": "dense", **changes})


def _masks(out: Path) -> dict[str, np.ndarray]:
    return {p.name: np.array(Image.open(p)) for p in sorted((out / "masks").iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole") / "out"


def test_masks_overlay_and_report(clip_folder: Path, mask_file: Path, whole: Path) -> None:
    outcome = _run(clip_folder, whole, mask_file)
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
    assert report["schema"] == "efficient-sam2/segment/1"
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
    clip_folder: Path, mask_file: Path, tmp_path: Path
) -> None:
    said = {}
    for name, rules in {"calm": Guard(), "alarmed": Guard(scene_cut=1e-6)}.items():
        profile = tmp_path / f"{name}.json"
        profile.write_text(Profile(name=name, windows=Windows(), guard=rules).to_json())
        outcome = _run(clip_folder, tmp_path / name, mask_file, profile=profile, max_frames=4)
        said[name] = outcome.summary()
    report = json.loads((tmp_path / "alarmed" / "report.json").read_text())["report"]
    assert report["summary"]["rescued"] == {"2": "scene cut", "3": "scene cut"}
    assert "guard    encoded densely: frame 2 (scene cut), frame 3 (scene cut)" in said["alarmed"]
    assert "guard    encoded densely: no frame" in said["calm"]


def test_the_same_command_again_does_nothing(
    clip_folder: Path, mask_file: Path, whole: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    _run(clip_folder, whole, mask_file)
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def test_other_settings_are_refused_until_forced(
    clip_folder: Path, mask_file: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _run(clip_folder, out, mask_file, max_frames=3)
    assert list(_masks(out)) == ["00000.png", "00001.png", "00002.png"]
    with pytest.raises(InputError, match="holds a run with another max_frames; .* --force"):
        _run(clip_folder, out, mask_file, max_frames=2)
    assert len(_masks(out)) == 3
    _run(clip_folder, out, mask_file, max_frames=2, force=True)
    assert list(_masks(out)) == ["00000.png", "00001.png"]


def test_another_configuration_of_the_same_weights_is_another_setting(
    clip_folder: Path, mask_file: Path, dividing_config: Path, tmp_path: Path
) -> None:
    def segment_with(config: Path) -> None:
        choice = ModelChoice(config=config, weights="random", device="cpu")
        run_segment(clip_folder, Prompt(mask_file), choice, tmp_path / "out", max_frames=1)

    same, other = tmp_path / "same.yaml", tmp_path / "other.yaml"
    same.write_text(dividing_config.read_text())
    other.write_text(f"{dividing_config.read_text()}  memory_temporal_stride_for_eval: 2\n")
    segment_with(dividing_config)
    segment_with(same)
    with pytest.raises(InputError, match="holds a run with another configuration; "):
        segment_with(other)


def test_a_colon_in_the_name_of_the_folder(
    clip_folder: Path, mask_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny:exact", "tiny"):
        _run(clip_folder, Path(name), mask_file, max_frames=1)
        assert (tmp_path / name / "overlay.mp4").is_file()


def test_a_folder_with_other_files_is_left_alone(
    clip_folder: Path, mask_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        _run(clip_folder, tmp_path, mask_file)
    _run(clip_folder, tmp_path, mask_file, max_frames=1, force=True)
    assert (tmp_path / "letter.txt").read_text() == "mine"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        _run(clip_folder, tmp_path / "file", mask_file)


def _interrupt_after(monkeypatch: pytest.MonkeyPatch, frames: int, number: int) -> None:
    """Send this process a signal while frame `frames` is being written."""
    write, written = segment.write_mask, []

    def write_and_interrupt(*arguments: Any) -> None:
        write(*arguments)
        written.append(1)
        if len(written) == frames:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(segment, "write_mask", write_and_interrupt)


@pytest.mark.parametrize(
    ("number", "frame"),
    [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGINT, 5)],
    ids=["interrupt", "terminate", "tracking back"],
)
def test_an_interrupted_run_goes_on_to_the_same_masks(
    clip_folder: Path,
    mask_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    frame: int,
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    _run(clip_folder, whole, mask_file, frame=frame)
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 5, number)
        with pytest.raises(KeyboardInterrupt):
            _run(clip_folder, out, mask_file, frame=frame)
    assert len(_masks(out)) == 5
    saved = torch.load(out / "state.pt", weights_only=False)["state"]
    assert "obj_ids" in saved
    assert not any(isinstance(value, torch.device) for value in saved.values()), (
        "it may go on elsewhere"
    )
    assert not (out / "report.json").exists()
    assert not list(out.rglob("*.part"))
    early = {p: p.stat().st_mtime_ns for p in (out / "masks").iterdir()}
    _run(clip_folder, out, mask_file, frame=frame)
    assert {p: p.stat().st_mtime_ns for p in early} == early  # they were not computed again
    found, expected = _masks(out), _masks(whole)
    assert list(found) == list(expected)
    assert all(np.array_equal(found[k], expected[k]) for k in expected)
    reports = [json.loads((d / "report.json").read_text()) for d in (out, whole)]
    assert reports[0]["report"]["frames"] == reports[1]["report"]["frames"]
    assert len(reports[0]["milliseconds"]) == 8
    assert not (out / "state.pt").exists()


@pytest.fixture
def interrupted(
    clip_folder: Path, mask_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with four frames of six done."""
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 4, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            _run(clip_folder, tmp_path, mask_file, max_frames=6)
    return tmp_path


def test_a_state_without_its_masks_is_not_trusted(
    clip_folder: Path, mask_file: Path, interrupted: Path
) -> None:
    Image.new("P", (128, 96)).save(
        interrupted / "masks" / "00001.png"
    )  # whole, but not of this run
    _run(clip_folder, interrupted, mask_file, max_frames=6)
    assert _masks(interrupted)["00001.png"].any()


def test_a_state_of_other_sources_is_not_trusted(
    clip_folder: Path, mask_file: Path, interrupted: Path, monkeypatch: pytest.MonkeyPatch
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
    _run(clip_folder, interrupted, mask_file, max_frames=6)
    assert len(_masks(interrupted)) == 6
    assert first.stat().st_mtime_ns > before, "it began anew"


def test_an_accelerated_run_goes_on_too(
    clip_folder: Path, mask_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 5, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            _run(clip_folder, tmp_path, mask_file, profile="paper")
    _run(clip_folder, tmp_path, mask_file, profile="paper")
    report = json.loads((tmp_path / "report.json").read_text())["report"]
    assert [f["frame"] for f in report["frames"]] == list(range(8))
    last = report["frames"][-1]["objects"]["1"]
    assert last["pruned_frames"] > 0
    assert last["keys_used"][0] < last["keys_total"]


def test_video_files_points_and_boxes(
    clip_frames: np.ndarray, tmp_path: Path, mask_file: Path
) -> None:
    from sparsity.overlay import write_video

    clip = tmp_path / "clip.mp4"
    write_video(clip, iter(clip_frames), 25)
    for name, prompt in {
        "points": Prompt(points=("50,48", "5,5,0")),
        "box": Prompt(box="20,20,80,80"),
        "both": Prompt(points=("50,48",), box="20,20,80,80"),
    }.items():
        run_segment(clip, prompt, MODEL, tmp_path / name, profile="dense", max_frames=2)
        assert list(_masks(tmp_path / name)) == ["00000.png", "00001.png"]


def test_merged_objects_go_to_the_highest_logit() -> None:
    logits = np.array([[[1.0, -1, 2]], [[3.0, -2, 1]]], dtype=np.float32)
    assert merge_objects(logits, [4, 9]).tolist() == [[9, 0, 4]]


def test_masks_are_read_by_kind(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "grey.png")
    assert read_mask(tmp_path / "grey.png").tolist() == [[0, 1]]
    Image.fromarray(np.array([[0, 3, 5]], np.uint8)).save(tmp_path / "ids.png")
    assert read_mask(tmp_path / "ids.png").tolist() == [[0, 3, 5]]
    Image.fromarray(np.array([[0, 5]], np.uint8)).save(tmp_path / "left.png")
    assert read_mask(tmp_path / "left.png").tolist() == [[0, 5]], "where object 3 is gone"
    Image.new("1", (2, 1), 1).save(tmp_path / "bits.png")
    assert read_mask(tmp_path / "bits.png").tolist() == [[1, 1]]
    write_mask(tmp_path / "void.png", np.array([[0, 2, 255]], np.uint8), "")
    assert read_mask(tmp_path / "void.png").tolist() == [[0, 2, 0]]
    Image.new("L", (2, 2)).save(tmp_path / "grey.jpg")
    with pytest.raises(InputError, match="is a JPEG, which blurs values; .* threshold it"):
        read_mask(tmp_path / "grey.jpg")
    Image.new("RGB", (2, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(InputError, match="in mode RGB; expected indexed or grey"):
        read_mask(tmp_path / "rgb.png")


def test_the_palette_is_that_of_davis() -> None:
    chosen = davis_palette()[[0, 1, 2, 3, 9, 21, 22, 255]]
    assert chosen.tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [191, 0, 0],
        [128, 64, 128],
        [22, 22, 22],
        [255, 255, 255],
    ]


def test_drawing_leaves_the_background_alone() -> None:
    frame = np.full((6, 6, 3), 100, np.uint8)
    ids = np.zeros((6, 6), np.uint8)
    assert np.array_equal(draw_over(frame, ids), frame)
    ids[2:5, 2:5] = 1
    drawn = draw_over(frame, ids)
    assert np.array_equal(drawn[ids == 0], frame[ids == 0])
    assert drawn[3, 3].tolist() == [114, 50, 50]
