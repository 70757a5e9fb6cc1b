"""Scores of masks in files: those of evaluate and of reference evaluators, in every layout; what is missing is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vos_benchmark.benchmark import VideoEvaluator

from probes.errors import InputError
from sparsity.clips.layouts import find_layout
from sparsity.clips.masks import write_mask
from sparsity.clips.sources import ClipSource
from sparsity.evaluation.evaluate import evaluate
from sparsity.evaluation.results import Scores
from sparsity.evaluation.score import score, table
from sparsity.evaluation.tables import table as evaluate_table
from sparsity.profile import BUILTIN
from sparsity.work.model import ModelChoice
from sparsity.work.record import SegmentClip, segment_clips
from sparsity.work.segment import RunOptions
from sparsity.work.spread import Spread

FRAMES, SIZE = 6, (96, 128)


def ids(t: int, shift: int = 0) -> np.ndarray:
    """Two discs that move, uint8 [H, W]."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    found = np.where((rows - 40) ** 2 + (columns - 40 - 3 * t - shift) ** 2 < 200, 1, 0)
    return np.where((rows - 70) ** 2 + (columns - 90 + 2 * t) ** 2 < 150, 2, found).astype(np.uint8)


def write_frames(folder: Path) -> None:
    folder.mkdir(parents=True)
    for t in range(FRAMES):
        picture = np.stack([60 * ids(t) + 10 * (1 + n) for n in range(3)], -1)
        Image.fromarray(picture).save(folder / f"{t:05d}.jpg")


def write_masks(folder: Path, shift: int = 0, frames: range = range(FRAMES)) -> None:
    folder.mkdir(parents=True)
    for t in frames:
        write_mask(folder / f"{t:05d}.png", ids(t, shift), "")


def davis(root: Path, resolution: str = "480p", clips: tuple[str, ...] = ("a", "b")) -> Path:
    for name in clips:
        write_frames(root / "JPEGImages" / resolution / name)
        write_masks(root / "Annotations" / resolution / name)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return davis(tmp_path_factory.mktemp("davis"))


def youtube(root: Path) -> Path:
    """A made data set with categories, of which one is not in the training set."""
    truth = root / "valid"
    for name in ("a", "b"):
        write_frames(truth / f"JPEGImages/{name}")
        write_masks(truth / f"Annotations/{name}")
    categories = {"a": {"1": "dog", "2": "nyala"}, "b": {"1": "dog", "2": "dog"}}
    videos = {
        n: {"objects": {i: {"category": c} for i, c in e.items()}} for n, e in categories.items()
    }
    (truth / "meta.json").write_text(json.dumps({"videos": videos}))
    return root


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """Masks of some tool, off by some pixels in clip a, by more in b."""
    write_masks(tmp_path / "tool" / "a", 2)
    write_masks(tmp_path / "tool" / "b", 5)
    return tmp_path / "tool"


def quality(scores: Scores, number: int = 0) -> tuple[float, float, float]:
    found = scores.runs[number].quality
    assert found is not None
    return found.over_objects.j_and_f, found.over_objects.j, found.over_objects.f


def test_scores_are_those_of_vos_benchmark(root: Path, tool: Path) -> None:
    scores = score([tool, root / "Annotations/480p"], root)
    js, fs = [], []
    evaluator = VideoEvaluator(str(root / "Annotations/480p"), str(tool))
    for name in ("a", "b"):
        _, j, f = evaluator(name)
        js += j.values()
        fs += f.values()
    both = (np.mean(js) + np.mean(fs)) / 2
    assert quality(scores) == pytest.approx((both, np.mean(js), np.mean(fs)), abs=1e-12)
    assert quality(scores, 1) == (100, 100, 100) and quality(scores)[0] < 95
    assert [run.name for run in scores.runs] == ["tool", "480p"] and scores.rules is None
    assert scores.data.clips == ["a", "b"] and scores.data.frames == 2 * FRAMES
    assert scores.runs[0].objects == 4 and scores.runs[0].frames == 2 * (FRAMES - 2)


@pytest.mark.parametrize("kind", ["DAVIS", "YouTube-VOS"])
def test_score_of_a_run_is_what_evaluate_says(kind: str, root: Path, tmp_path: Path) -> None:
    if kind == "YouTube-VOS":
        root = youtube(tmp_path / "youtube")
    choice = ModelChoice(image_size=128, device="cpu")
    out = tmp_path / "masks"
    segment_clips(SegmentClip(ClipSource(dataset=root), out, RunOptions(choice, BUILTIN["dense"])))
    result = evaluate(root, choice, tmp_path / "result.json")
    told = result.run("dense").quality
    found = score([out], root).runs[0].quality
    assert (told is not None and "G" in told.figures) == (kind == "YouTube-VOS")
    assert ("J unseen" in evaluate_table(result)) == (kind == "YouTube-VOS")
    assert found == told and found is not None and 20 < found.j_and_f < 100
    write_mask(out / "a/masks/00003.png", ids(3), "")
    assert score([out], root).runs[0].quality != told


def test_files_of_prompts_stand_in_for_first_masks(root: Path, tmp_path: Path) -> None:
    choice = ModelChoice(image_size=128, device="cpu")
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in ("a", "b"):
        boxes = {}
        for i in (1, 2):
            y, x = np.nonzero(ids(0) == i)
            boxes[i] = [int(side) for side in (x.min(), y.min(), x.max() + 1, y.max() + 1)]
        entries = [{"frame": 0, "object": i, "box": box} for i, box in boxes.items()]
        (folder / f"{name}.json").write_text(json.dumps(entries))
    result = evaluate(root, choice, tmp_path / "boxes.json", prompts=folder)
    by_masks = evaluate(root, choice, tmp_path / "masks.json")
    assert result.data.settings["prompt"] == "prompts/NAME.json"
    assert result.run("dense").quality != by_masks.run("dense").quality
    with pytest.raises(InputError, match="boxes.json holds another result"):
        evaluate(root, choice, tmp_path / "boxes.json")
    videos = ClipSource(root / "JPEGImages/480p", folder)
    assert [videos.open(name).starts for name in videos.names()] == [{1: 0, 2: 0}] * 2
    assert all(prompt.box is not None for prompt in videos.open("a").prompts)
    (folder / "b.json").write_text(json.dumps([{"frame": 0, "object": 1, "box": boxes[1]}]))
    with pytest.raises(
        InputError, match="prompts of objects 1 of b given; its annotations have 1, 2"
    ):
        evaluate(root, choice, tmp_path / "other.json", prompts=folder)
    (folder / "b.json").unlink()
    with pytest.raises(InputError, match=r"b.json can't be read \(No such file.*; expected a JSON"):
        evaluate(root, choice, tmp_path / "other.json", prompts=folder)


def test_frames_that_do_not_count_may_be_absent_or_wrong(root: Path, tool: Path) -> None:
    before = score([tool], root)
    for name in ("00000", f"{FRAMES - 1:05d}"):
        (tool / "a" / f"{name}.png").unlink()
        write_mask(tool / "b" / f"{name}.png", np.ones(SIZE, np.uint8), "")
    assert score([tool], root).runs == before.runs
    write_mask(tool / "b" / "00002.png", np.ones(SIZE, np.uint8), "")
    assert score([tool], root).runs != before.runs


@pytest.mark.parametrize("what", ["clip", "frame", "size", "folder"])
def test_what_is_missing_is_named_before_any_work(
    what: str, root: Path, tool: Path, tmp_path: Path
) -> None:
    out, words = tmp_path / "scores.json", ""
    if what == "clip":
        shutil.rmtree(tool / "b")
        words = "tool has no folder b; expected masks of every clip"
    elif what == "frame":
        for t in (2, 3):
            (tool / "b" / f"{t:05d}.png").unlink()
        words = r"b.00002.png is missing, one of 2 masks of clip b"
    elif what == "size":
        write_mask(tool / "b/00004.png", np.zeros((9, 9), np.uint8), "")
        words = "00004.png is 9x9; its video is 128x96"
    else:
        shutil.rmtree(tool)
        words = "predictions .*tool given; expected a folder"
    with pytest.raises(InputError, match=words):
        score([root / "Annotations/480p", tool], root, out=out)
    assert not list(tmp_path.glob("scores*"))
    if what in ("clip", "frame", "size"):
        assert score([tool], root, only=["a"]).data.clips == ["a"]


def test_objects_that_come_later_count_from_the_frame_after(tmp_path: Path) -> None:
    truth = tmp_path / "set"
    write_frames(truth / "JPEGImages/a")
    write_masks(truth / "Annotations/a")
    for t in (0, 1):
        write_mask(truth / f"Annotations/a/{t:05d}.png", np.where(ids(t) == 2, 0, ids(t)), "")
    write_masks(tmp_path / "tool/a", frames=range(1, FRAMES - 1))
    assert quality(score([tmp_path / "tool"], truth)) == (100, 100, 100)
    write_mask(tmp_path / "tool/a/00002.png", np.where(ids(2) == 2, 0, ids(2)), "")
    assert quality(score([tmp_path / "tool"], truth)) == (100, 100, 100)
    write_mask(tmp_path / "tool/a/00003.png", np.where(ids(3) == 2, 0, ids(3)), "")
    assert quality(score([tmp_path / "tool"], truth))[1] == 75


def write_layers(folder: Path, overlap: bool = True) -> None:
    """SA-V's masks: a folder an object, called from 000; the second is larger where they may overlap."""
    for i in (1, 2):
        (folder / f"{i - 1:03d}").mkdir(parents=True)
        for t in range(0, FRAMES, 1):
            mask = ids(t) == i if i == 1 or not overlap else ids(t) > 0
            Image.fromarray(mask.astype(np.uint8)).save(folder / f"{i - 1:03d}/{t:05d}.png")


def test_overlapping_objects_have_folders_of_their_own(tmp_path: Path) -> None:
    truth = tmp_path / "sav_val"
    write_frames(truth / "JPEGImages_24fps/a")
    write_layers(truth / "Annotations_6fps/a")
    write_layers(tmp_path / "same/a")
    write_layers(tmp_path / "parted/a", overlap=False)
    write_masks(tmp_path / "indexed/a/masks")
    tools = [tmp_path / name for name in ("same", "parted", "indexed")]
    scores = score(tools, tmp_path / "sav_val")
    assert quality(scores) == (100, 100, 100) and quality(scores, 1)[1] < 80
    assert quality(scores, 1) == quality(scores, 2), "one object a pixel"
    (tmp_path / "parted/a/001/00003.png").unlink()
    with pytest.raises(InputError, match=r"001.00003.png is missing, one of 1 masks"):
        score(tools, truth)


def test_davis_is_scored_at_full_resolution_and_subsets_by_their_folder(
    tool: Path, tmp_path: Path
) -> None:
    full = davis(tmp_path / "full", "Full-Resolution")
    assert find_layout(full).name == "DAVIS at full resolution"
    usual = davis(tmp_path / "sets" / "trainval")
    assert find_layout(tmp_path / "sets").frames == Path("trainval/JPEGImages/480p")
    runs = [score([tool], place).runs for place in (full, usual, tmp_path / "sets")]
    assert runs[0] == runs[1] == runs[2]
    davis(tmp_path / "sets" / "test")
    with pytest.raises(InputError, match=r"holds 2 data sets \(test, trainval\); expected one"):
        score([tool], tmp_path / "sets")


def test_vost_leaves_out_objects_that_come_later(tmp_path: Path) -> None:
    truth = tmp_path / "VOST"
    write_frames(truth / "JPEGImages/a")
    write_masks(truth / "Annotations/a")
    write_mask(truth / "Annotations/a/00000.png", np.where(ids(0) == 2, 0, ids(0)), "")
    write_masks(tmp_path / "tool/a", 3)
    plain = score([tmp_path / "tool"], truth)
    (truth / "ImageSets").mkdir()
    (truth / "ImageSets/val.txt").write_text("a\n")
    scores = score([tmp_path / "tool"], truth)
    assert (plain.runs[0].objects, scores.runs[0].objects) == (2, 1)
    found = scores.runs[0].quality
    assert found is not None and scores.rules == "VOST"
    assert found.figures["J"] == pytest.approx(found.j) and "J last quarter" in found.figures


def test_figures_of_the_set_stand_in_the_table(tool: Path, tmp_path: Path) -> None:
    truth = youtube(tmp_path / "youtube") / "valid"
    scores = score([tool], tmp_path / "youtube")
    found = scores.runs[0].quality
    assert found is not None and scores.rules == "YouTube-VOS"
    j = {n: {i: o.j for i, o in clip.objects.items()} for n, clip in found.clips.items()}
    assert found.figures["J unseen"] == j["a"]["2"] == 100
    assert found.figures["J seen"] == pytest.approx(np.mean([j["a"]["1"], *j["b"].values()]))
    said = table(scores)
    assert "YouTube-VOS" in said and f"{found.figures['G']:.1f}" in said
    other = score([tool], truth, rules="MOSEv2")
    heads, row = (line.split() for line in table(other).splitlines()[-2:])
    assert heads == ["MOSEv2", "J&F", "adapted", "J", "F", "adapted"] and len(row) == 4
    assert "F adapted" in table(other) and "J seen" not in table(other)
    assert other.runs[0].quality is not None and other.runs[0].quality.j == found.j


def test_lvos_counts_the_frame_that_prompts_and_wants_its_mask(tool: Path, tmp_path: Path) -> None:
    truth = tmp_path / "lvos"
    write_frames(truth / "JPEGImages/a")
    write_masks(truth / "Annotations/a")
    ends = {"start": "0", "end": "5", "frame_nums": 1}
    entry = {"objects": {i: {"frame_range": ends} for i in ("1", "2")}}
    (truth / "meta.json").write_text(json.dumps({"videos": {"a": entry}}))
    write_mask(tool / "a/00000.png", ids(0), "")
    found = score([tool], truth).runs[0].quality
    assert found is not None and found.figures == {"J": 100, "F": 100} and found.j < 95
    (tool / "a/00000.png").unlink()
    with pytest.raises(InputError, match=r"a.00000.png is missing, one of 1 masks"):
        score([tool], truth)
    assert score([tool], truth, rules="MOSEv2").rules == "MOSEv2"


@pytest.mark.process
def test_processes_find_the_same(root: Path, tool: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    scores = score([tool], root, out=out, rules="MOSEv2", spread=Spread(jobs=2))
    assert scores == score([tool], root, rules="MOSEv2")
    assert Scores.model_validate_json(out.read_text()) == scores
    assert not out.with_name("scores.json.clips").exists()
