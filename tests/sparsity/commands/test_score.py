"""``efficient-sam2 score``: several tools in one table, a file of scores, true boxes; bad input in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsity.clips.masks import write_mask
from sparsity.commands.app import run
from sparsity.evaluation.results import Scores
from tests.sparsity.evaluation.test_score import davis, write_masks

FRAMES = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return davis(tmp_path_factory.mktemp("davis"))


@pytest.fixture
def tools(tmp_path: Path) -> list[str]:
    for name, shift in (("near", 1), ("far", 6)):
        for clip in ("a", "b"):
            write_masks(tmp_path / name / clip, shift)
    return [str(tmp_path / "near"), str(tmp_path / "far")]


def test_two_tools_stand_in_one_table(
    root: Path, tools: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    words = ["score", *tools, str(root), "--out", str(out)]
    assert run(words) == 0
    heads, _, near, far, last = capsys.readouterr().out.splitlines()
    assert heads.split() == ["over", "objects", "over", "clips"]
    assert near.split()[0] == "near" and far.split()[0] == "far" and last.startswith("2 clips, 4 ")
    assert float(near.split()[1]) > float(far.split()[1]) + 1
    scores = Scores.model_validate_json(out.read_text())
    assert [f"{r.quality.over_objects.j_and_f:.1f}" for r in scores.runs if r.quality] == [
        near.split()[1],
        far.split()[1],
    ]
    assert run(words) == 2
    assert "scores.json exists; expected a new file" in capsys.readouterr().err
    assert run([*words, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())


def test_the_same_name_twice_is_told_apart_by_the_path(
    root: Path, tools: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tools[1], tmp_path / "other" / "near")
    again = str(tmp_path / "other" / "near")
    assert run(["score", tools[0], again, str(root), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in said["runs"]] == [tools[0], again]


# ---------------------------------------------------------------------- true boxes


def boxes() -> np.ndarray:
    """x, y, w, h of each frame."""
    return np.array([[10 + 2 * t, 20 + t, 20, 12] for t in range(FRAMES)])


def write_clip(folder: Path, truth: str = "groundtruth.txt", inside: str = "img") -> None:
    (folder / inside).mkdir(parents=True)
    for t in range(FRAMES):
        Image.new("RGB", (80, 60), (9 * t, 0, 0)).save(folder / inside / f"{t + 1:08d}.jpg")
    (folder / truth).write_text("\n".join(",".join(map(str, row)) for row in boxes()) + "\n")


def write_found(folder: Path, shift: int) -> None:
    folder.mkdir(parents=True)
    for t, (x, y, w, h) in enumerate(boxes()):
        mask = np.zeros((60, 80), np.uint8)
        mask[y : y + h, x + shift : x + shift + w] = 1
        write_mask(folder / f"{t + 1:08d}.png", mask, "")


def write_table(path: Path, shift: int) -> None:
    rows = [
        f"{t},{t + 1:08d},1,{x + shift},{y},{x + shift + w},{y + h}"
        for t, (x, y, w, h) in enumerate(boxes())
    ]
    path.write_text("\n".join(["frame,name,object,x0,y0,x1,y1", *rows]) + "\n")


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """LaSOT's folder of a class, OTB's and GOT-10k's of a clip."""
    write_clip(tmp_path / "boxed" / "cat" / "cat-1")
    write_clip(tmp_path / "boxed" / "Walking", "groundtruth_rect.txt")
    write_clip(tmp_path / "boxed" / "GOT-10k_Val_000001", inside=".")
    return tmp_path / "boxed"


CLIPS = ("GOT-10k_Val_000001", "Walking", "cat-1")


def test_boxes_are_scored_of_masks_and_of_tables(
    boxed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for clip in CLIPS:
        write_found(tmp_path / "masks" / clip / "masks", 3)
        (tmp_path / "tables").mkdir(exist_ok=True)
        write_table(tmp_path / "tables" / f"{clip}.csv", 3)
        write_found(tmp_path / "right" / clip, 0)
    tools = [str(tmp_path / name) for name in ("masks", "tables", "right")]
    assert run(["score", *tools, str(boxed), "--json"]) == 0
    scores = Scores.model_validate_json(capsys.readouterr().out)
    one, other, right = (r.boxes for r in scores.runs)
    assert one is not None and one == other and right is not None
    # 17 of 23 columns are shared: above 15 of 21 thresholds; the first frame is given, above 20
    assert one.success == pytest.approx(100 * (20 + 4 * 15) / 21 / FRAMES)
    assert right.success == pytest.approx(100 * 20 / 21) and tuple(one.clips) == CLIPS
    assert run(["score", *tools, str(boxed)]) == 0
    assert "95.2" in capsys.readouterr().out


def test_lasot_flags_frames_without_the_object(
    boxed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_found(tmp_path / "tool" / "cat-1", 0)
    listed = tmp_path / "list.txt"
    listed.write_text("cat-1\n")
    words = ["score", str(tmp_path / "tool"), str(boxed), "--clips", str(listed), "--json"]
    found = []
    for flags in (None, "0,0,0,0,0", "0,0,1,0,0"):
        if flags is not None:
            (boxed / "cat/cat-1/full_occlusion.txt").write_text(flags)
        assert run(words) == 0
        found.append(json.loads(capsys.readouterr().out)["runs"][0]["boxes"]["success"])
    assert found[0] == found[1] and found[2] == pytest.approx(found[0] * 4 / 5)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no truth", "is of no known layout"),
        ("no clip", "has neither Walking.csv nor a folder Walking"),
        ("no frame", "00000003.png is missing, one of 1 masks of clip Walking"),
        ("size", "00000003.png is 9x9; its video is 80x60"),
        ("table", "can't be read as boxes of clip Walking (KeyError: 'x0')"),
        ("strange frame", "can't be read as boxes of clip Walking (KeyError: 'nothing')"),
        ("two objects", "has boxes of objects 1, 2; expected one object"),
        ("lines", "has 4 lines; its clip has 5 frames"),
        ("corners", "has 8 numbers in line 1; expected 4 (x,y,w,h)"),
        ("letters", "groundtruth_rect.txt can't be read as numbers"),
        ("listed", "clip 'Runnign' listed"),
        ("rules", "rules VOST given; "),
    ],
)
def test_bad_input_gets_one_line_and_status_2(
    what: str, words: str, boxed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool, listed, truth = tmp_path / "tool", tmp_path / "list.txt", boxed
    write_found(tool / "Walking", 0)
    listed.write_text("Walking\n")
    extra = ["--clips", str(listed), "--out", str(tmp_path / "scores.json")]
    assert run(["score", str(tool), str(truth), *extra]) == 0
    (tmp_path / "scores.json").unlink()
    capsys.readouterr()
    table, lines = tool / "Walking.csv", boxed / "Walking/groundtruth_rect.txt"
    if what == "no truth":
        truth = tool
    elif what == "no clip":
        shutil.rmtree(tool / "Walking")
    elif what == "no frame":
        (tool / "Walking/00000003.png").unlink()
    elif what == "size":
        write_mask(tool / "Walking/00000003.png", np.zeros((9, 9), np.uint8), "")
    elif what == "table":
        table.write_text("frame,x,y\n0,1,2\n")
    elif what == "strange frame":
        table.write_text("frame,name,object,x0,y0,x1,y1\n0,nothing,1,1,2,3,4\n")
    elif what == "two objects":
        table.write_text("frame,name,object,x0,y0,x1,y1\n0,,1,1,2,3,4\n0,,2,1,2,3,4\n")
    elif what == "lines":
        lines.write_text("".join(lines.read_text().splitlines(keepends=True)[1:]))
    elif what == "corners":
        lines.write_text(lines.read_text().replace("\n", ",0,0,0,0\n"))
    elif what == "letters":
        lines.write_text(lines.read_text().replace("20", "twenty"))
    elif what == "listed":
        listed.write_text("Runnign\n")
    else:
        extra += ["--rules", "VOST"]
    assert run(["score", str(tool), str(truth), *extra]) == 2
    said = capsys.readouterr()
    assert words in said.err and len(said.err.strip().splitlines()) == 1 and not said.out
    assert not list(tmp_path.glob("scores*"))
