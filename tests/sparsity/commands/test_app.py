"""The command as a user runs it: exit statuses, one line for bad input, nothing half-written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsity.calibration.request import FEWEST_CLIPS
from sparsity.commands import app as cli
from sparsity.profile import load_profile
from tests.sparsity.clips.made_files import FILES
from tests.sparsity.clips.test_drawn import REFUSED

MODEL = ("--model", "demo", "--weights", "random", "--image-size", "128", "--device", "cpu")


@pytest.fixture
def first_mask(tmp_path: Path, clip_mask: np.ndarray) -> Path:
    Image.fromarray(clip_mask.astype(np.uint8) * 255).save(tmp_path / "first.png")
    return tmp_path / "first.png"


def _bad_inputs(tmp: Path, clip: Path, mask: Path) -> dict[str, tuple[list[str], str]]:
    """Return command lines by name, with a word of the answer."""
    (tmp / "none").mkdir()
    truncated = tmp / "cut.mp4"
    truncated.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500))
    Image.new("L", (10, 10), 255).save(tmp / "small.png")
    Image.new("L", (128, 96), 0).save(tmp / "empty.png")
    REFUSED["a photograph"][0]().save(tmp / "photograph.png")
    REFUSED["two smooth greys"][0]().save(tmp / "smooth.png")
    for name in ("animation", "long text", "too large"):
        FILES[name].make(tmp / name)
    for name, change in {
        "nan": '"routing": {"saliency_mass": NaN}',
        "range": '"retrieval": {"keep": 1.5}',
        "unknown": '"retreival": {"keep": 0.5}',
        "other": f'"model": "sha256:{64 * "0"}"',
        "version": '"schema": "efficient-sam2/profile/9"',
    }.items():
        head = '"schema": "efficient-sam2/profile/2", ' if name != "version" else ""
        (tmp / f"{name}.json").write_text("{" + head + f'"name": "x", {change}' + "}")
    (tmp / "nameless.json").write_text('{"memory_policy": {"stable_below": 0.7}}')
    good = [str(clip), "--prompt", str(mask), *MODEL]
    point = [str(clip), *MODEL]
    return {
        "no such file": (["nowhere.mp4", *good[1:]], "nowhere.mp4 does not exist"),
        "0 frames": ([str(tmp / "none"), *good[1:]], "holds no frames"),
        "truncated mp4": ([str(truncated), *good[1:]], "expected"),
        "no such mask": ([*point, "--prompt", "no.png"], "no.png does not exist"),
        "mask of another size": (
            [*point, "--prompt", str(tmp / "small.png")],
            "10x10; the video is 128x96",
        ),
        "empty mask": ([*point, "--prompt", str(tmp / "empty.png")], "is empty"),
        "photograph as mask": ([*point, "--prompt", str(tmp / "photograph.png")], "a photograph"),
        "smooth greys as mask": ([*point, "--prompt", str(tmp / "smooth.png")], "smooth edges"),
        "animated frame": ([str(tmp / "animation"), *good[1:]], "holds 16 pictures"),
        "frame with long text": ([str(tmp / "long text"), *good[1:]], "can't be read as a picture"),
        "frame that is too large": ([str(tmp / "too large"), *good[1:]], "can't be read as"),
        "shares as point": ([*point, "--points", "0.25,0.5"], "write 32,48"),
        "shares as box": ([*point, "--box", "0,0,0.5,1"], "write 0,0,64,96"),
        "points and boxes": ([*point, *2 * ["--box", "5,5,9,9"], "--points", "5,5"], "2 boxes"),
        "folder of masks of no frame": ([*point, "--prompt", str(tmp)], "named after no frame"),
        "no prompt": (point, "given without a prompt"),
        "two prompts": ([*good, "--points", "5,5"], "give one"),
        "point outside": ([*point, "--points", "128,5"], "lies outside"),
        "point of one number": ([*point, "--points", "12"], "expected x,y or x,y,label"),
        "point with NaN": ([*point, "--points", "nan,1"], "expected x,y"),
        "point label": ([*point, "--points", "1,1,7"], "label 7"),
        "background alone": ([*point, "--points", "5,5,0"], "at least one on the object"),
        "box turned round": ([*point, "--box", "50,50,10,10"], "is empty or lies outside"),
        "frame index": ([*good, "--prompt-frame", "8"], "frames 0 to 7"),
        "negative frame": ([*good, "--prompt-frame=-1"], "frames 0 to 7"),
        "max frames": ([*good, "--max-frames", "0"], "max-frames"),
        "max frames in words": ([*good, "--max-frames", "many"], "'many'"),
        "unknown model": ([*good[:3], "--model", "sam9"], "expected one of"),
        "unknown device": ([*good, "--device", "toaster"], "torch knows no such device"),
        "device without numbers": ([*good[:-1], "meta"], "device 'meta'"),
        "seed": ([*good, "--seed", "9" * 20], "64 bits"),
        "unknown dtype": ([*good, "--dtype", "int4"], "dtype 'int4'"),
        "no checkpoint": ([*good[:3], "--checkpoint", "no.pt", "--model", "sam2.1-tiny"], "no.pt"),
        "image size": ([*good[:-3], "250"], "multiple of 32"),
        "unknown profile": ([*good, "--profile", "fastest"], "fastest"),
        "profile with NaN": ([*good, "--profile", str(tmp / "nan.json")], "saliency_mass"),
        "profile out of range": ([*good, "--profile", str(tmp / "range.json")], "keep"),
        "profile with unknown key": ([*good, "--profile", str(tmp / "unknown.json")], "retreival"),
        "profile of another model": ([*good, "--profile", str(tmp / "other.json")], "model"),
        "profile of another version": ([*good, "--profile", str(tmp / "version.json")], "schema"),
        "unknown option": ([*good, "--fast"], "--fast"),
        "profile without a name": (
            [*good, "--profile", str(tmp / "nameless.json")],
            "name is missing",
        ),
    }


def test_bad_input_gets_one_line_and_status_2(
    tmp_path: Path, clip_folder: Path, first_mask: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    failures = {}
    for name, (words, expected) in _bad_inputs(tmp_path, clip_folder, first_mask).items():
        status = cli.run(["segment", *words, "--out", str(out)])
        said = capsys.readouterr()
        lines = said.err.strip().splitlines()
        if status != 2 or len(lines) != 1 or expected not in said.err or said.out or out.exists():
            failures[name] = status, said.err, said.out, out.exists()
    assert failures == {}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["calibrate", "--made", "4.5"], ("'4.5'", "--made", "efficient-sam2 calibrate --help")),
        (["segment", "clip.mp4"], ("--out", "efficient-sam2 segment --help")),
        (["nothing"], ("'nothing'", "efficient-sam2 --help")),
    ],
)
def test_a_misused_command_names_what_was_given_and_its_own_help(
    words: list[str], expected: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(words) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert [word for word in expected if word not in said] == []


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, clip_folder: Path, first_mask: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["segment", str(clip_folder), "--prompt", str(first_mask), *MODEL]
    assert cli.run([*words, "--out", str(first_mask / "inside")]) == 2
    said = capsys.readouterr().err
    assert str(first_mask) in said and "holds a run" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("command", ["bench", "calibrate", "evaluate DATA"])
def test_a_folder_in_place_of_a_result_is_named_before_the_work(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command.split()
    assert cli.run([*words, "--out", str(tmp_path), "--force"]) == 2
    assert f"{tmp_path} is a folder; expected a file" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    assert cli.run([*words, "--out", str(tmp_path / "new.json"), "--profile", "none-such"]) == 2
    assert "is a folder" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["bench", "calibrate --made 5"])
def test_two_results_need_two_files(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sub").mkdir()
    words = [*command.split(), *MODEL, "--out", str(tmp_path / "r.json")]
    twice = str(tmp_path / "sub" / ".." / "r.json")
    assert cli.run([*words, "--report", twice]) == 2
    said = capsys.readouterr().err
    assert "r.json given for two results; expected a file for each" in said
    assert said.count("\n") == 1 and not list(tmp_path.glob("r*"))
    other = [*words, "--report", str(tmp_path / "r.html"), "--image-size", "250"]
    assert cli.run(other) == 2
    assert "for two results" not in capsys.readouterr().err


def test_a_report_does_not_replace_the_figures_of_a_calibration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", "--made", "5", "--out", str(tmp_path / "r.json"), "--report"]
    assert cli.run([*words, str(tmp_path / "r.calibration.json")]) == 2
    assert "r.calibration.json given for two results" in capsys.readouterr().err


def test_the_same_command_with_good_input_works(
    tmp_path: Path, clip_folder: Path, first_mask: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["segment", str(clip_folder), "--prompt", str(first_mask), *MODEL, "--max-frames", "2"]
    assert cli.run([*words, "--out", str(tmp_path / "out")]) == 0
    assert "2 frames, 1 objects" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.json").is_file()


def test_a_profile_for_another_model_can_be_forced(
    tmp_path: Path, clip_folder: Path, first_mask: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "other.json"
    other = load_profile("exact").model_copy(
        update={"model": f"sha256:{64 * '0'}", "name": "other"}
    )
    profile.write_text(other.to_json())
    words = ["segment", str(clip_folder), "--prompt", str(first_mask), *MODEL, "--max-frames", "2"]
    words += ["--profile", str(profile), "--out", str(tmp_path / "out")]
    assert cli.run(words) == 2
    assert not (tmp_path / "out").exists()
    assert cli.run([*words, "--force"]) == 0
    assert '"forced": true' in (tmp_path / "out" / "report.json").read_text()


def test_profiles_are_shown_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["profile", "show", "paper"]) == 0
    (tmp_path / "mine.json").write_text(capsys.readouterr().out)
    assert load_profile(tmp_path / "mine.json") == load_profile("paper")
    assert cli.run(["profile", "check", str(tmp_path / "mine.json")]) == 0
    assert "paper: valid, for any model" in capsys.readouterr().out
    (tmp_path / "mine.json").write_text("{")
    assert cli.run(["profile", "check", str(tmp_path / "mine.json")]) == 2


@pytest.mark.parametrize(
    ("encoding", "cut"), [("latin-1", r"\u2026"), ("ascii", r"\u2026"), ("utf-8", "…")]
)
def test_what_an_encoding_lacks_is_written_in_its_letters(
    encoding: str, cut: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = BytesIO()
    monkeypatch.setattr("sys.argv", ["efficient-sam2", "profile", "list"])
    monkeypatch.setattr("sys.stdout", TextIOWrapper(written, encoding=encoding))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    sys.stdout.flush()
    assert ended.value.code == 0 and not capsys.readouterr().err
    (demo,) = (x for x in written.getvalue().decode(encoding).splitlines() if x[:4] == "demo")
    assert f"{cut}: " in demo


def test_fetch_says_in_one_line_that_the_hub_is_out_of_reach(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert cli.run(["fetch", "someone/sam2"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "can't be reached (ConnectionError)" in said[0]
    assert "hf_secret" not in said[0]


def test_fetch_refuses_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["fetch", "sam3"]) == 2
    assert "sam2.1-tiny" in capsys.readouterr().err


def test_the_demo_says_how_many_clips_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.run(["demo", "--out", str(out), "--clips", str(FEWEST_CLIPS - 1)]) == 2
    said = capsys.readouterr().err
    assert f"--clips': Input should be greater than or equal to {FEWEST_CLIPS}" in said
    assert len(said.splitlines()) == 1 and not out.exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--target-speedup", "nan"], "target-speedup nan given"),
        (["--target-speedup", "inf"], "target-speedup inf given"),
        (["--split-seed", "-1"], "--split-seed"),
    ],
)
def test_calibrate_refuses_numbers_that_mean_nothing(
    tmp_path: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["calibrate", "--made", "5", "--out", str(tmp_path / "c.json"), *words]) == 2
    said = capsys.readouterr().err
    assert expected in said and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [[], ["profile"]], ids=["command", "group"])
def test_without_arguments_the_help_is_shown(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(words) == 2
    assert "Usage: efficient-sam2" in capsys.readouterr().out


def test_every_subcommand_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    assert "segment" in names
    for name in names:
        assert cli.run([name, "--help"]) == 0
        assert f"efficient-sam2 {name} " in " ".join(capsys.readouterr().out.split("Example:")[1:])


def _start(config: Path, clip: Path, mask: Path, out: Path) -> subprocess.Popen[str]:
    words = ["segment", str(clip), "--prompt", str(mask), "--profile", "dense"]
    words += ["--config", str(config), "--weights", "random", "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-m", "sparsity.commands.app", *words, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.process
def test_interrupt_and_kill(
    tmp_path: Path, padded_config: Path, clip_folder: Path, first_mask: Path
) -> None:
    out = tmp_path / "out"
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        running = _start(padded_config, clip_folder, first_mask, out)
        had = len(list(out.glob("masks/[!.]*.png")))
        until = time.monotonic() + 60
        while len(list(out.glob("masks/[!.]*.png"))) <= had and time.monotonic() < until:
            time.sleep(0.01)
        running.send_signal(number)
        _, said = running.communicate(timeout=60)
        assert running.returncode == status
        assert "Traceback" not in said
        assert ("interrupted; the same command goes on" in said) == (number == signal.SIGINT)
        assert not (out / "report.json").exists()
    finished = _start(padded_config, clip_folder, first_mask, out)
    printed, said = finished.communicate(timeout=120)
    assert finished.returncode == 0, said
    assert "8 frames, 1 objects" in printed and "interrupted" not in said
    assert len(list(out.glob("masks/[!.]*.png"))) == 8
    assert not list(out.rglob(".*"))


def test_a_full_disk_is_said_to_be_full(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sparsity.profile.load_profile", full)
    assert cli.run(["profile", "show", "paper"]) == 2
    said = capsys.readouterr().err
    assert "No space left on device; expected room for the results; make some" in said
