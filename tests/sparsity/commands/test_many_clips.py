"""``segment`` and ``probe`` over many clips: the same wherever they are worked on, gone on with, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from probes.records import load_recording
from sparsity.clips.masks import read_mask, write_mask
from sparsity.commands.app import run
from sparsity.profile import load_profile
from tests.conftest import make_frames, make_mask
from tests.sparsity.clips.made_files import FRAMES, cut, write

CLIPS = ("one", "two", "three")


def write_clip(root: Path, name: str, shift: int) -> None:
    """Write three frames in DAVIS's layout."""
    frames, masks = (root / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
    frames.mkdir(parents=True)
    masks.mkdir(parents=True)
    for t, frame in enumerate(make_frames(3)):
        Image.fromarray(np.roll(frame, shift, 1)).save(frames / f"{t:05d}.jpg")
        mask = np.roll(make_mask(t), shift, 1)
        write_mask(masks / f"{t:05d}.png", mask.astype(np.uint8), "")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    for n, name in enumerate(CLIPS):
        write_clip(root, name, 7 * n)
    return root


@pytest.fixture(scope="module")
def model() -> list[str]:
    """Options of the demo model with random weights, at a size at which it is quick."""
    small = ["--model", "demo", "--image-size", "128"]
    return [*small, "--weights", "random", "--device", "cpu"]


def masks(out: Path) -> dict[str, bytes]:
    """All masks of a folder, by clip and frame."""
    files = sorted(out.rglob("masks/*.png"))
    return {str(f.relative_to(out)): read_mask(f).tobytes() for f in files}


@pytest.fixture(scope="module")
def segmented(root: Path, model: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segmented") / "out"
    assert run(["segment", str(root), *model, "--out", str(out)]) == 0
    return out


def test_every_clip_has_a_folder_and_goes_its_own_way(segmented: Path) -> None:
    found = masks(segmented)
    assert sorted({Path(name).parts[0] for name in found}) == sorted(CLIPS)
    assert len(found) == 9
    assert found["one/masks/00000.png"] != found["two/masks/00000.png"]
    assert all((segmented / name / "report.json").is_file() for name in CLIPS)
    assert not segmented.with_name("out.clips").exists()


@pytest.mark.process
def test_workers_write_the_same_masks(
    root: Path, model: list[str], segmented: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    assert run(["segment", str(root), *model, "--out", str(out), "--jobs", "2"]) == 0
    assert capsys.readouterr().out == "3 clips done\n"
    assert masks(out) == masks(segmented)


@pytest.mark.process
@pytest.mark.parametrize("by", ["ctrl-C", "a scheduler"])
def test_an_interrupt_leaves_one_line_and_nothing_behind(
    root: Path, model: list[str], tmp_path: Path, by: str
) -> None:
    """Workers leave no semaphore, and sam2's warning of its extension is not told by each of them.

    ctrl-C goes to all processes, SIGTERM of a scheduler to the first.
    """
    many = tmp_path / "many"
    for n in range(8):
        write_clip(many, f"clip{n:02d}", n)
    out = tmp_path / "result.json"
    asked = ["evaluate", str(many), *model, "--profile", "paper", "--jobs", "1", "--out", str(out)]
    command = [sys.executable, "-m", "sparsity.commands.app", *asked]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as started:
        while started.poll() is None and not list(tmp_path.glob("result.json.clips/*.json")):
            time.sleep(0.05)
        if by == "ctrl-C":
            os.killpg(started.pid, signal.SIGINT)
        else:
            started.terminate()
        said = started.communicate(timeout=120)[1]  # until the last of them is gone
    assert started.returncode == 130 and "interrupted; the same command goes on" in said
    assert "leaked" not in said and "_C" not in said
    assert run([*asked[:-4], "--out", str(out)]) == 0, "it goes on here"


def test_a_broken_clip_costs_itself_and_is_made_up_for(
    root: Path, model: list[str], segmented: Path, tmp_path: Path, capsys: Any
) -> None:
    mine, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(root, mine)
    broken = mine / "Annotations" / "480p" / "two" / "00001.png"
    write_mask(broken, np.ones((5, 5), np.uint8), "")
    command = ["segment", str(mine), *model, "--out", str(out)]
    assert run(command) == 2
    assert "1 of 3 clips failed, first two (mask" in capsys.readouterr().err
    assert sorted(p.name for p in out.iterdir()) == ["one", "three"]
    shutil.copy(root / "Annotations" / "480p" / "two" / "00001.png", broken)
    assert run(command) == 0
    assert capsys.readouterr().out == "3 clips done, 2 of them before\n"
    assert masks(out) == masks(segmented)


def test_what_was_removed_or_changed_between_two_starts_is_made_again(
    root: Path, model: list[str], segmented: Path, tmp_path: Path, capsys: Any
) -> None:
    mine, out = tmp_path / "my set", tmp_path / "out"
    shutil.copytree(root, mine)
    broken = mine / "Annotations" / "480p" / "two" / "00001.png"
    broken.write_bytes(b"")
    (tmp_path / "list.txt").write_text("one\r\n\r\ntwo\r\none\r\n")
    command = ["segment", str(mine), *model, "--out", str(out)]
    assert run([*command, "--clips", str(tmp_path / "list.txt")]) == 2
    assert "1 of 2 clips failed, first two" in capsys.readouterr().err
    shutil.copy(root / "Annotations" / "480p" / "two" / "00001.png", broken)
    shutil.rmtree(out / "one")
    assert run(command) == 0
    assert capsys.readouterr().out == "3 clips done\n"
    assert masks(out) == masks(segmented)


def test_a_list_without_names_is_refused(
    root: Path, model: list[str], tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "list.txt").write_text("\n")
    shutil.copytree(root / "Annotations" / "480p", tmp_path / "prompts")
    videos = [str(root / "JPEGImages" / "480p"), "--prompt", str(tmp_path / "prompts")]
    options = ["--clips", str(tmp_path / "list.txt"), "--out", str(tmp_path / "out")]
    for given in (videos, [str(root)]):
        assert run(["segment", *given, *model, *options]) == 2
        assert "list.txt names no clip" in capsys.readouterr().err


def test_a_folder_of_videos_with_a_folder_of_masks(
    root: Path, model: list[str], segmented: Path, tmp_path: Path
) -> None:
    prompts, out = tmp_path / "prompts", tmp_path / "out"
    prompts.mkdir()
    annotations = root / "Annotations" / "480p"
    for name in CLIPS[1:]:
        shutil.copy(annotations / name / "00000.png", prompts / f"{name}.png")
    (prompts / CLIPS[0]).mkdir()
    for frame in ("00000.png", "00002.png"):  # the first is the prompt, others aren't looked at
        shutil.copy(annotations / CLIPS[0] / frame, prompts / CLIPS[0])
    videos = root / "JPEGImages" / "480p"
    options = ["--prompt", str(prompts), "--out", str(out)]
    assert run(["segment", str(videos), *model, *options]) == 0
    assert masks(out) == masks(segmented)


@pytest.mark.process
def test_workers_record_the_same_and_a_recording_is_extended(
    root: Path, model: list[str], tmp_path: Path
) -> None:
    here, there = tmp_path / "here.recording", tmp_path / "there.recording"
    command = ["probe", str(root), *model, "--sites", "memory.*"]
    assert run([*command, "--out", str(here)]) == 0
    (tmp_path / "some.txt").write_text("two\n")
    assert run([*command, "--out", str(there), "--clips", str(tmp_path / "some.txt")]) == 0
    assert load_recording(there).names == ["two"]
    assert run([*command, "--out", str(there), "--jobs", "2"]) == 0
    shards = {info.name: info.sha256 for info in load_recording(here).header.clips}
    assert {info.name: info.sha256 for info in load_recording(there).header.clips} == shards
    assert sorted(shards) == sorted(CLIPS) and len(set(shards.values())) == 3
    assert not there.with_name("there.recording.clips").exists()


def test_what_another_model_recorded_before_an_interrupt_does_not_count(
    root: Path, model: list[str], tmp_path: Path
) -> None:
    mine, out = tmp_path / "set", tmp_path / "r.recording"
    for name in ("one", "two"):
        write_clip(mine, name, 0)
    broken = mine / "Annotations" / "480p" / "two" / "00000.png"
    broken.write_bytes(b"")
    command = ["probe", str(mine), *model, "--sites", "memory.*", "--seed"]
    assert run([*command, "1", "--out", str(out)]) == 2
    shutil.copy(root / "Annotations" / "480p" / "one" / "00000.png", broken)
    assert run([*command, "2", "--out", str(out)]) == 0
    for seed in ("1", "2"):
        assert run([*command, seed, "--out", str(tmp_path / seed)]) == 0
    found, other, same = (
        load_recording(path).header for path in (out, *map(tmp_path.joinpath, "12"))
    )
    assert found.model == same.model != other.model
    shards = [[info.sha256 for info in header.clips] for header in (found, same, other)]
    assert shards[0] == shards[1] != shards[2]


def test_another_prompt_for_a_recorded_clip_is_refused(
    root: Path, model: list[str], tmp_path: Path, capsys: Any
) -> None:
    mine = tmp_path / "set"
    write_clip(mine, "one", 0)
    command = ["probe", str(mine), *model, "--sites", "memory.*", "--out", str(tmp_path / "r")]
    assert run(command) == 0
    shutil.rmtree(mine)
    write_clip(mine, "one", 9)
    assert run(command) == 2
    assert "with another prompt or length" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["segment", "probe"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--jobs", "2", "--box", "20,18,84,78"], "--jobs and a prompt for one video given"),
        (["--scheduler", "tcp://a:1", "--box", "20,18,84,78"], "--scheduler and a prompt for one"),
        (["--jobs", "2", "--scheduler", "tcp://a:1"], "expected one of the two"),
        ([], "of no known layout"),
        (["--scheduler", "nonsense"], "scheduler nonsense does not answer"),
    ],
)
def test_bad_input_is_one_line(
    command: str,
    options: list[str],
    words: str,
    root: Path,
    model: list[str],
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sparsity.work.spread.SECONDS_TO_CONNECT", 1)
    given = root if options else root / "JPEGImages"
    out = tmp_path / "out"
    assert run([command, str(given), *model, *options, "--out", str(out)]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said
    assert not out.exists() and not (tmp_path / "out.clips").exists()


@pytest.mark.parametrize("command", ["segment", "probe"])
def test_the_folder_one_is_in_takes_the_results(
    command: str, root: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, listed = tmp_path / "here", tmp_path / "list.txt"
    here.mkdir()
    listed.write_text("one\n")
    monkeypatch.chdir(here)
    assert run([command, str(root), *model, "--clips", str(listed), "--out", "."]) == 0
    made = {"segment": ["one"], "probe": ["header.json", "one.safetensors"]}[command]
    assert sorted(path.name for path in here.iterdir()) == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "list.txt"]


@pytest.mark.parametrize("command", ["segment", "probe"])
def test_a_folder_without_a_name_is_refused(
    command: str, root: Path, model: list[str], capsys: Any
) -> None:
    assert run([command, str(root), *model, "--out", "/"]) == 2
    said = capsys.readouterr().err
    assert "/ given; expected a folder with a name" in said and said.count("\n") == 1


@pytest.mark.parametrize("command", ["segment", "probe"])
@pytest.mark.parametrize(
    ("many", "options"),
    [
        ("data set", ["--prompt-frame", "1"]),
        ("folder of masks", ["--prompt-frame", "1"]),
        ("folder of masks", ["--points", "5,5"]),
        ("folder of masks", ["--box", "20,18,84,78"]),
    ],
)
def test_options_for_one_prompt_are_refused_for_many(
    command: str,
    many: str,
    options: list[str],
    root: Path,
    model: list[str],
    tmp_path: Path,
    capsys: Any,
) -> None:
    given = [str(root)]
    if many == "folder of masks":
        folder = tmp_path / "prompts"
        folder.mkdir()
        for name in CLIPS:
            shutil.copy(root / "Annotations" / "480p" / name / "00000.png", folder / f"{name}.png")
        given = [str(root / "JPEGImages" / "480p"), "--prompt", str(folder)]
    out = tmp_path / "out"
    words = [command, *given, *model, "--out", str(out)]
    assert run([*words, *options]) == 2
    said = capsys.readouterr().err
    assert f"{options[0]} and many clips given" in said and said.count("\n") == 1
    assert not out.exists() and not out.with_name("out.clips").exists()
    (tmp_path / "list.txt").write_text("one\n")
    assert run([*words, "--prompt-frame", "0", "--clips", str(tmp_path / "list.txt")]) == 0


def test_what_fits_no_clip_is_said_once_before_the_work(
    root: Path, model: list[str], tmp_path: Path, capsys: Any
) -> None:
    out, profile = tmp_path / "out", tmp_path / "other.json"
    other = {"model": f"sha256:{64 * '0'}", "name": "other"}
    profile.write_text(load_profile("exact").model_copy(update=other).to_json())
    command = ["segment", str(root), *model, "--out", str(out)]
    assert run([*command, "--profile", str(profile)]) == 2
    said = capsys.readouterr().err
    assert "profile" in said and "clips failed" not in said and said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json"]
    out.touch()
    assert run(command) == 2
    assert f"{out} is a file; expected a folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "out"]
    out.unlink()
    (tmp_path / "list.txt").write_text("one\n")
    forced = ["--profile", str(profile), "--force", "--clips", str(tmp_path / "list.txt")]
    assert run([*command, *forced]) == 0


@pytest.mark.process
@pytest.mark.parametrize("command", ["segment", "probe", "evaluate"])
def test_clips_go_where_a_gpu_is_announced_unless_the_device_is_a_cpu(
    command: str, root: Path, model: list[str], tmp_path: Path, mixed_cluster: Any
) -> None:
    place = ["--scheduler", mixed_cluster.address]
    words = [command, str(root), *model[:-2], *place, "--out"]
    assert run([*words, str(tmp_path / "any")]) == 0
    assert mixed_cluster.done() == (3, 0)
    assert run([*words, str(tmp_path / "cpu"), "--device", "cpu"]) == 0
    assert mixed_cluster.done()[1] > 0


def test_objects_that_come_later_are_segmented_from_there_on(
    root: Path, model: list[str], tmp_path: Path, capsys: Any
) -> None:
    mine = tmp_path / "mose"
    frames, masks = mine / "JPEGImages" / "one", mine / "Annotations" / "one"
    shutil.copytree(root / "JPEGImages" / "480p" / "one", frames)
    for t in (3, 4):
        shutil.copy(frames / "00002.jpg", frames / f"{t:05d}.jpg")
    masks.mkdir(parents=True)
    late = np.zeros((96, 128), bool)
    late[60:, 100:] = True
    for t, shown in ((0, False), (2, True)):  # prompts alone, as sets for tests have
        ids = make_mask(t).astype(np.uint8)
        ids[late & shown] = 2
        write_mask(masks / f"{t:05d}.png", ids, "")
    for given in ([str(mine)], [str(frames.parent), "--prompt", str(masks.parent)]):
        out = tmp_path / f"out{len(given)}"
        assert run(["segment", *given, *model, "--profile", "exact", "--out", str(out)]) == 0
        found = [read_mask(out / "one" / "masks" / f"{t:05d}.png") for t in range(5)]
        assert [2 in ids for ids in found] == [False, False, True, True, True]
        assert all(1 in ids for ids in found)
        assert (found[2] == 2)[late].mean() > 0.9
        assert json.loads((out / "one" / "report.json").read_text())["objects"] == [1, 2]
    short = tmp_path / "short"
    assert run(["segment", str(mine), *model, "--max-frames", "2", "--out", str(short)]) == 0
    assert "objects 2 come after the last frame that is tracked" in capsys.readouterr().err
    assert json.loads((short / "one" / "report.json").read_text())["objects"] == [1]


def test_videos_of_every_kind_are_taken_and_what_is_left_out_is_named(
    model: list[str], tmp_path: Path, capsys: Any
) -> None:
    videos, masks = tmp_path / "videos", tmp_path / "masks"
    videos.mkdir()
    masks.mkdir()
    names = {"a.mp4": "libx264", "b.m4v": "libx264", "c.ts": "libx264", "d.mpg": "mpeg2video"}
    for name, codec in names.items():
        write(videos / name, codec, FRAMES[:4])
    write(videos / "e", frames=FRAMES[:4], format="mp4")
    (videos / "f.mp4").symlink_to(tmp_path / "gone.mp4")
    for name in "abcdez":
        Image.fromarray(make_mask().astype(np.uint8) * 255).save(masks / f"{name}.png")
    out = tmp_path / "out"
    command = ["segment", str(videos), "--prompt", str(masks), *model, "--out", str(out)]
    command += ["--max-frames", "1"]
    assert run([*command, "--strict"]) == 2
    said = capsys.readouterr().err
    assert "1 links lead nowhere (f.mp4)" in said and said.count("\n") == 1 and not out.exists()
    assert run(command) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(lines) == 2 and all(line.startswith("efficient-sam2: ") for line in lines)
    assert "1 links lead nowhere (f.mp4), left out" in lines[0]
    assert "1 prompts are of no video (z.png), left out" in lines[1]
    assert sorted(p.name for p in out.iterdir()) == [*"abcde"]
    (videos / "f.mp4").unlink()
    (masks / "z.png").unlink()
    assert run([*command, "--strict"]) == 0
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["segment", "probe"])
def test_a_damaged_video_is_read_and_said_to_be_or_refused(
    command: str, model: list[str], tmp_path: Path, capsys: Any
) -> None:
    path = cut(write(tmp_path / "clip.mkv"), 0.6)
    words = [command, str(path), *model, "--box", "20,20,80,80", "--max-frames", "2"]
    out = tmp_path / "out"
    assert run([*words, "--strict", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "is cut off" in said and "nothing is left out" in said and said.count("\n") == 1
    assert not out.exists()
    assert run([*words, "--out", str(out)]) == 0
    assert "efficient-sam2: " in (said := capsys.readouterr().err) and "is cut off" in said
    if command == "segment":
        (note,) = json.loads((out / "report.json").read_text())["left_out"]
        assert "is cut off" in note and "LeftOut" not in said
