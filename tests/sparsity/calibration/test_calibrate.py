"""The command: videos in, a profile with its promise out; interrupted and resumed; bad input in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from probes.errors import InputError
from sparsity.calibration.calibrate import calibrate
from sparsity.calibration.clips import ClipSource
from sparsity.calibration.command import seconds_of_budget
from sparsity.calibration.promise import approximate_bound
from sparsity.calibration.request import Request
from sparsity.cli import run
from sparsity.demo.clips import make_clip
from sparsity.evaluation.jobs import Spread
from sparsity.options import ModelChoice
from sparsity.profile import load_profile

NAMES = ("smooth", "fast", "occlusion", "static_camera", "distractors", "tiny")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Six short clips as folders of frames, with a mask for every frame."""
    root = tmp_path_factory.mktemp("videos")
    for name in NAMES:
        clip = make_clip(name, seed=5, frames=10, size=(96, 160))
        for t, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
            for kind, picture in (("videos", frame), ("masks", mask)):
                path = root / kind / name / f"{t:05d}.{'jpg' if kind == 'videos' else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    return root


@pytest.fixture(scope="module")
def arguments(folders):
    return ["--videos", str(folders / "videos"), "--prompts", str(folders / "masks")]


@pytest.fixture(scope="module")
def calibrated(arguments, tmp_path_factory):
    """A profile, calibrated with room enough that something holds."""
    out = tmp_path_factory.mktemp("out") / "mine.json"
    more = ["--max-drop", "50", "--out", str(out), "--report", str(out.with_suffix(".html"))]
    assert run(["calibrate", *arguments, *more]) == 0
    return out


def test_the_profile_states_what_was_found(calibrated):
    profile = load_profile(calibrated)
    report = json.loads(calibrated.with_name("mine.calibration.json").read_text())
    row = next(r for r in report["tested"] if r["bound"] and r["bound"]["upper"] <= 50)
    assert approximate_bound(np.array(row["losses"]), 0.95).upper == row["bound"]["upper"]
    promise = profile.promise
    assert promise.clips == 4 and promise.confidence == 0.95
    assert promise.mean_loss <= promise.upper_bound <= 50
    assert 0 < promise.expected_keys <= 1 and promise.expected_speedup >= 1
    assert profile.model.startswith("sha256:") and profile.made_by["seed"] == 0
    assert sorted(profile.made_by["clips"]) == sorted(NAMES)
    assert calibrated.with_suffix(".html").read_text().count("plotly-graph-div") >= 3


def test_a_second_start_repeats_no_clip_and_finds_the_same(
    calibrated, arguments, monkeypatch, capsys
):
    before = calibrated.read_text()

    def never(*args):
        raise AssertionError("a clip was run again")

    monkeypatch.setattr("sparsity.calibration.runs.run_clip", never)
    monkeypatch.setattr("sparsity.calibration.watching.capture", never)
    again = ["calibrate", *arguments, "--max-drop", "50", "--out", str(calibrated), "--force"]
    assert run(again) == 0
    assert calibrated.read_text() == before
    assert "promise" in capsys.readouterr().out


def test_a_profile_is_shown_and_checked_with_its_promise(calibrated, capsys):
    assert run(["profile", "check", str(calibrated)]) == 0
    said = capsys.readouterr().out
    assert "95%" in said and "4 videos" in said
    assert run(["profile", "check", "paper"]) == 0
    assert "promises nothing" in capsys.readouterr().out


def test_a_hand_edited_profile_is_refused(calibrated, tmp_path, capsys):
    text = calibrated.read_text()
    for old, new, said in (
        ('"clips": 4', '"clips": -4', "promise.clips is -4"),
        ('"mean_loss"', '"mean_lss"', "mean_lss"),
    ):
        edited = tmp_path / "edited.json"
        edited.write_text(text.replace(old, new))
        assert run(["profile", "check", str(edited)]) == 2
        assert said in capsys.readouterr().err


def request(folders, *names, **more):
    source = ClipSource(folders / "videos", folders / "masks")
    return Request(source, names or NAMES, ModelChoice(), **more)


@pytest.mark.parametrize(
    ("names", "more", "said"),
    [
        (("smooth",), {}, "1 clip given; no bound .* give more videos"),
        ((), {"max_drop": 0.0}, "max-drop 0 given"),
        ((), {"confidence": 1.0}, "confidence 1 given"),
        ((), {"target_speedup": 0.9}, "target-speedup 0.9 given"),
    ],
)
def test_bad_requests_are_refused_in_one_line(folders, tmp_path, names, more, said):
    with pytest.raises(InputError, match=said) as caught:
        calibrate(request(folders, *names, **more), tmp_path, Spread())
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20min", 1200), ("1.5h", 5400)])
def test_budgets_are_read(text, seconds):
    assert seconds_of_budget(text) == seconds


@pytest.mark.parametrize("text", ["20", "0min", "min", "-3s"])
def test_other_budgets_are_refused(text):
    with pytest.raises(InputError, match="budget"):
        seconds_of_budget(text)


def test_clips_without_a_prompt_or_with_an_empty_one_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="has neither smooth.png nor a folder smooth"):
        ClipSource(folders / "videos", tmp_path).names(only=["smooth"])
    with pytest.raises(InputError, match="clip 'nothing' listed"):
        ClipSource(folders / "videos", folders / "masks").names(only=["nothing"])
    Image.fromarray(np.zeros((96, 160), np.uint8)).save(tmp_path / "smooth.png")
    with pytest.raises(InputError, match=r"smooth.png is empty; expected the objects"):
        ClipSource(folders / "videos", tmp_path).open("smooth")


def test_a_prompt_alone_gives_no_truth(folders, tmp_path):
    first = folders / "masks" / "smooth" / "00000.png"
    (tmp_path / "smooth.png").write_bytes(first.read_bytes())
    assert ClipSource(folders / "videos", tmp_path).open("smooth").truth is None
    labelled = ClipSource(folders / "videos", folders / "masks").open("smooth")
    assert labelled.truth is not None and len(labelled.truth) == 10
