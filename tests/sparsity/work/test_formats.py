"""Results as other tools read them, and prompts of several objects and frames from a file to the masks."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from probes.errors import InputError, LeftOut
from probes.prompts import Prompt
from sparsity.clips.drawn import read_mask
from sparsity.commands.app import run
from sparsity.work import run as one_run
from sparsity.work.formats import read_masks
from sparsity.work.model import ModelChoice, shared_predictor
from sparsity.work.run import memory_of
from sparsity.work.segment import run_segment
from tests.conftest import FRAMES, HEIGHT, WIDTH, make_frames, make_mask
from tests.probes.test_live import sending, served, written

BOX, SECOND = [20, 20, 80, 80], [96, 60, 128, 96]
CORRECTED = make_mask(7)
PROMPTS = [
    Prompt(1, 1, box=BOX, label="disc"),
    Prompt(2, 2, points=[(110, 70), (10, 10)], labels=[1, 0]),
    Prompt(4, 3, mask=make_mask(4)[:, ::-1]),
    Prompt(5, 1, mask=CORRECTED),
    Prompt(6, 2, remove=True),
]


def entries_of(prompts: list[Prompt]) -> list[dict[str, Any]]:
    """Return prompts as a file holds them, masks as run-length codes."""
    found: list[dict[str, Any]] = []
    for prompt in prompts:
        entry: dict[str, Any] = {"frame": prompt.frame, "object": prompt.object}
        if prompt.label:
            entry["label"] = prompt.label
        if prompt.box is not None:
            entry["box"] = prompt.box.tolist()
        if prompt.points is not None:
            labelled = zip(prompt.points.tolist(), prompt.labels.tolist(), strict=True)
            entry["points"] = [[*point, label] for point, label in labelled]
        if prompt.mask is not None:
            code = coco.encode(np.asfortranarray(prompt.mask.astype(np.uint8)))
            entry["mask"] = {"size": code["size"], "counts": code["counts"].decode()}
        if prompt.remove:
            entry["remove"] = True
        found.append(entry)
    return found


@pytest.fixture(scope="module")
def choice() -> ModelChoice:
    """The demo model at a size at which it is quick."""
    return ModelChoice(image_size=128, device="cpu")


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, choice: ModelChoice, clip_folder: Path
) -> dict[str, Path]:
    """The same run in each format, by a file of prompts."""
    root = tmp_path_factory.mktemp("formats")
    (root / "prompts.json").write_text(json.dumps(entries_of(PROMPTS)))
    for kind in ("png", "layers", "coco-rle", "boxes-csv"):
        run_segment(
            clip_folder, root / "prompts.json", choice, root / kind, profile="dense", kind=kind
        )
    return {kind: root / kind for kind in ("png", "layers", "coco-rle", "boxes-csv")}


@pytest.fixture(scope="module")
def by_hand(choice: ModelChoice, clip_folder: Path) -> dict[int, dict[int, np.ndarray]]:
    """Masks by frame and object of the same calls in Python."""
    predictor = shared_predictor(choice)
    found: dict[int, dict[int, np.ndarray]] = {}

    def track(state: Any, start: int, last: int, reverse: bool = False) -> None:
        for frame, ids, logits in predictor.propagate_in_video(
            state, start, abs(last - start), reverse
        ):
            found[frame] = {i: logits[k, 0].numpy() > 0 for k, i in enumerate(ids)}

    with predictor.use("dense"):
        state = predictor.init_state(clip_folder, corrections="keep")
        predictor.add_new_points_or_box(state, 1, 1, box=np.float32(BOX))
        track(state, 1, 1)
        points = np.float32([(110, 70), (10, 10)])
        predictor.add_new_points_or_box(state, 2, 2, points=points, labels=np.int32([1, 0]))
        track(state, 2, 3)
        predictor.add_new_mask(state, 4, 3, make_mask(4)[:, ::-1].copy())
        track(state, 4, 5)
        predictor.add_new_mask(state, 5, 1, CORRECTED)
        track(state, 5, 5)
        predictor.remove_object(state, 2)
        track(state, 6, 7)
        predictor.remove_object(state, 3)
        last = found[1]
        track(state, 1, 0, reverse=True)
        found[1] = last
    return found


def test_a_file_of_prompts_gives_the_masks_of_the_same_calls(
    runs: dict[str, Path], by_hand: dict[int, dict[int, np.ndarray]]
) -> None:
    masks = read_masks(runs["coco-rle"] / "masks.json")
    assert sorted(masks) == sorted(by_hand) == list(range(FRAMES))
    objects = {t: sorted(layers) for t, layers in masks.items()}
    assert objects == {
        0: [1],
        1: [1],
        2: [1, 2],
        3: [1, 2],
        4: [1, 2, 3],
        5: [1, 2, 3],
        6: [1, 3],
        7: [1, 3],
    }
    for frame, layers in masks.items():
        assert all((layers[i] == by_hand[frame][i]).all() for i in layers), frame
    overlap = (masks[5][1] & CORRECTED).sum() / (masks[5][1] | CORRECTED).sum()
    assert overlap > 0.97, "the correction stays"
    assert (masks[4][1] != masks[5][1]).any()


def test_every_format_reads_back_to_the_same_masks(runs: dict[str, Path]) -> None:
    masks = read_masks(runs["coco-rle"] / "masks.json")
    entries = json.loads((runs["coco-rle"] / "masks.json").read_text())
    assert sum(len(layers) for layers in masks.values()) == len(entries)
    by_place = {(e["image_id"], e["category_id"]): e for e in entries}
    for frame, layers in masks.items():
        merged = read_mask(runs["png"] / "masks" / f"{frame:05d}.png")
        alone = np.sum([*layers.values()], axis=0) == 1
        for i, layer in layers.items():
            file = runs["layers"] / "masks" / str(i) / f"{frame:05d}.png"
            with Image.open(file) as picture:
                assert picture.mode == "1" and (np.array(picture) == layer).all()
            assert ((merged == i)[alone] == layer[alone]).all(), "where objects don't overlap"
            entry = by_place[frame, i]
            assert (coco.decode(entry["segmentation"]) == layer).all()
            assert entry["area"] == layer.sum() and entry["file_name"] == f"{frame:05d}"
    with (runs["boxes-csv"] / "boxes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(entries)
    for row in rows:
        layer = masks[int(row["frame"])][int(row["object"])]
        if layer.any():
            ys, xs = layer.any(1).nonzero()[0], layer.any(0).nonzero()[0]
            box = [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]
            assert [int(row[side]) for side in ("x0", "y0", "x1", "y1")] == box
    assert (
        not (runs["coco-rle"] / "masks").exists() and not (runs["layers"] / "masks.json").exists()
    )
    assert all((folder / "overlay.mp4").is_file() for folder in runs.values())


def test_scores_and_predicted_ious_are_told(runs: dict[str, Path]) -> None:
    entries = json.loads((runs["coco-rle"] / "masks.json").read_text())
    found = {(e["image_id"], e["category_id"]): e for e in entries}
    assert found[5, 1]["ious"] == [], "a mask as prompt"
    assert len(found[3, 1]["ious"]) == 3 and found[3, 1]["score"] == max(found[3, 1]["ious"])
    assert len(found[1, 1]["ious"]) in (1, 3), "a box as prompt"
    report = json.loads((runs["coco-rle"] / "report.json").read_text())
    (frame,) = (f for f in report["report"]["frames"] if f["frame"] == 3)
    assert frame["objects"]["1"]["ious"] == found[3, 1]["ious"]
    assert frame["objects"]["1"]["score"] == found[3, 1]["object_score"]
    assert report["labels"] == {"1": "disc"} and report["objects"] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["layers", "coco-rle"])
def test_an_interrupted_run_goes_on_in_every_format(
    kind: str,
    runs: dict[str, Path],
    choice: ModelChoice,
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every file as in the run that wasn't interrupted, the overlay's frames too."""
    merge, merged = one_run.merge_objects, []

    def merge_and_interrupt(*arguments: Any) -> Any:
        merged.append(1)
        if len(merged) in (3, 5):
            signal.raise_signal(signal.SIGINT)
        return merge(*arguments)

    monkeypatch.setattr(one_run, "merge_objects", merge_and_interrupt)
    settings = {"profile": "dense", "kind": kind}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_segment(clip_folder, PROMPTS, choice, tmp_path / "out", **settings)
    run_segment(clip_folder, PROMPTS, choice, tmp_path / "out", **settings)
    assert len(merged) == FRAMES
    expected = sorted(p.relative_to(runs[kind]) for p in runs[kind].rglob("*"))
    assert (
        sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*")) == expected
    )
    for name in expected:
        if name.suffix == ".png" or name.name == "masks.json":
            whole = (runs[kind] / name).read_bytes()
            assert (tmp_path / "out" / name).read_bytes() == whole, name
    shown = [_frames(folder / "overlay.mp4") for folder in (runs[kind], tmp_path / "out")]
    assert len(shown[0]) == len(shown[1]) == FRAMES
    differences = np.abs(shown[0].astype(int) - shown[1])
    assert differences.mean() < 2 < np.abs(shown[0][1:].astype(int) - shown[1][:-1]).mean() + 2


def _frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_300_objects_survive(choice: ModelChoice, clip_folder: Path, tmp_path: Path) -> None:
    squares = [(y, x) for y in range(0, HEIGHT, 5) for x in range(0, WIDTH, 8)][:300]
    prompts = []
    for number, (y, x) in enumerate(squares, 1):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[y : y + 20, x : x + 24] = True
        prompts.append(Prompt(0, number, mask=mask))
    with pytest.raises(InputError, match="object 255 given; .* --format layers or coco-rle"):
        run_segment(clip_folder, prompts, choice, tmp_path / "png", max_frames=1)
    assert not (tmp_path / "png").exists()
    run_segment(
        clip_folder,
        prompts,
        choice,
        tmp_path / "rle",
        kind="coco-rle",
        max_frames=1,
        profile="exact",
    )
    masks = read_masks(tmp_path / "rle" / "masks.json")[0]
    assert sorted(masks) == list(range(1, 301))
    for number, prompt in enumerate(prompts, 1):
        assert (masks[number] & prompt.mask).sum() > 0.6 * (masks[number] | prompt.mask).sum()
        assert number == 1 or (masks[number] != masks[number - 1]).any()


def test_the_memory_of_many_objects_is_said(
    choice: ModelChoice, clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [Prompt(0, i + 1, box=[5 + i, 5, 60 + i, 60]) for i in range(9)]
    for count, said in ((8, False), (9, True)):
        out = tmp_path / str(count)
        run_segment(clip_folder, prompts[:count], choice, out, max_frames=1, overlay=False)
        text = capsys.readouterr().err
        assert ("9 objects take about 0.0 GiB of memory beside the model" in text) == said
        assert not (out / "overlay.mp4").exists()
    predictor = shared_predictor(choice)
    one, two = (memory_of(predictor, n, 10**9, (1080, 1920)) for n in (1, 2))
    assert two == 2 * one > memory_of(predictor, 1, 3, (1080, 1920))


def frames_then_interrupt(count: int) -> Iterator[np.ndarray]:
    for number, frame in enumerate(make_frames()):
        if number == count:
            signal.raise_signal(signal.SIGINT)
        yield frame


def test_a_stream_is_written_as_it_goes_and_ends_where_it_is_interrupted(
    choice: ModelChoice, clip_folder: Path, tmp_path: Path
) -> None:
    prompts = [Prompt(0, 1, box=BOX), Prompt(3, 2, box=SECOND)]
    whole = run_segment(iter(make_frames()), prompts, choice, tmp_path / "whole", profile="dense")
    assert whole.frames == FRAMES and len(_frames(whole.out / "overlay.mp4")) == FRAMES
    masks = [read_mask(file) for file in sorted((whole.out / "masks").iterdir())]
    assert [2 in ids for ids in masks] == [False] * 3 + [True] * 5
    cut = run_segment(frames_then_interrupt(5), prompts, choice, tmp_path / "cut", profile="dense")
    assert 5 <= cut.frames < FRAMES and len(_frames(cut.out / "overlay.mp4")) == cut.frames
    for frame, file in enumerate(sorted((cut.out / "masks").iterdir())):
        assert (read_mask(file) == masks[frame]).all()
        assert (read_mask(file) != masks[frame - 1]).any()
    assert len(list((cut.out / "masks").iterdir())) == cut.frames
    with pytest.raises(InputError, match="holds a run of a stream, which can't be gone on with"):
        run_segment(iter(make_frames()), prompts, choice, tmp_path / "cut", profile="dense")
    again = run_segment(
        iter(make_frames()[:2]), prompts[:1], choice, tmp_path / "cut", profile="dense", force=True
    )
    assert again.frames == 2 == len(list((again.out / "masks").iterdir()))


def frames_until_it_breaks() -> Iterator[np.ndarray]:
    yield from make_frames()[:5]
    raise InputError("the camera fell; expected it upright; lift it")


def test_what_came_before_a_stream_broke_is_kept(choice: ModelChoice, tmp_path: Path) -> None:
    prompts = [Prompt(0, 1, box=BOX)]
    with pytest.warns(LeftOut, match="after frame 4: the camera fell"):
        done = run_segment(frames_until_it_breaks(), prompts, choice, tmp_path / "out")
    assert done.frames == 5 == len(_frames(done.out / "overlay.mp4"))
    assert "the camera fell" in done.left_out[0]
    late = [Prompt(6, 1, box=BOX)]
    with pytest.raises(InputError, match="the camera fell"):
        run_segment(frames_until_it_breaks(), late, choice, tmp_path / "late")


def test_a_stream_is_segmented_by_its_address(
    choice: ModelChoice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = written(make_frames(), "mpegts")
    (tmp_path / "clip.ts").write_bytes(data)
    words = ["--box", "20,20,80,80", "--image-size", "128", "--device", "cpu", "--profile", "exact"]
    with served(sending(data)) as address:
        assert run(["segment", address, *words, "--out", str(tmp_path / "out")]) == 0
    assert f"({FRAMES} frames, 1 objects)" in capsys.readouterr().out
    assert len(_frames(tmp_path / "out" / "overlay.mp4")) == FRAMES
    assert len(list((tmp_path / "out" / "masks").iterdir())) == FRAMES
    with served(sending(b"")) as address:
        assert run(["segment", address, *words, "--out", str(tmp_path / "no")]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and not (tmp_path / "no").exists()


def test_the_command_takes_a_file_of_prompts_and_a_format(
    choice: ModelChoice, clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.json").write_text(json.dumps(entries_of(PROMPTS[:1])))
    words = [
        "segment",
        str(clip_folder),
        "--prompts",
        str(tmp_path / "p.json"),
        "--max-frames",
        "2",
    ]
    words += ["--image-size", "128", "--device", "cpu", "--profile", "exact", "--no-overlay"]
    assert run([*words, "--format", "boxes-csv", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "boxes.csv  (2 frames, 1 objects)" in said and "overlay  none" in said
    assert "ms a frame by the wall (model " in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "boxes.csv",
        "report.json",
        "run.json",
    ]
    assert run([*words, "--format", "gif", "--out", str(tmp_path / "no")]) == 2
    assert "format 'gif' given; expected png, layers" in capsys.readouterr().err
    (tmp_path / "p.json").write_text(json.dumps([{"frame": 99, "box": BOX}]))
    assert run([*words, "--out", str(tmp_path / "no")]) == 2
    assert "prompt on frame 99 given" in capsys.readouterr().err and not (tmp_path / "no").exists()
