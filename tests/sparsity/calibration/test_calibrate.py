"""The command: videos in, a profile with its promise out; interrupted and resumed; bad input in one line."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from probes.errors import InputError
from sparsity.calibration.bounds import approximate_bound, certain_bound
from sparsity.calibration.calibrate import calibrate
from sparsity.calibration.clips import ClipSource, video_file
from sparsity.calibration.command import seconds_of_budget
from sparsity.calibration.request import Request, certifiable
from sparsity.calibration.runs import shared_predictor
from sparsity.cli import run
from sparsity.demo.clips import make_clip
from sparsity.evaluation.jobs import Spread
from sparsity.options import ModelChoice
from sparsity.profile import Guard, Shortcut
from sparsity.profiles import load_profile

SMALL = ModelChoice(image_size=256)
"""The demo model at a size at which it takes half the time."""

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
    given = ["--videos", str(folders / "videos"), "--prompts", str(folders / "masks")]
    return [*given, "--image-size", str(SMALL.image_size)]


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
    assert promise.upper_bound == 50, "what was tested, not the bound that was found"
    assert promise.clips == 4 and promise.confidence == 0.95
    assert promise.mean_loss <= promise.upper_bound <= 50
    assert 0 < promise.expected_keys <= 1 and promise.expected_speedup >= 1
    assert profile.windows is not None and profile.shortcut.kind == "cached"
    assert profile.made_by["settings"]["shortcut"] == report["shortcut"] == "cached"
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


def test_a_clip_that_was_changed_is_watched_and_run_again(
    calibrated, folders, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "mine.json"
    shutil.copytree(calibrated.with_name("mine.json.clips"), out.with_name("mine.json.clips"))
    shutil.copytree(folders, tmp_path / "set")
    given = ["--videos", str(tmp_path / "set/videos"), "--prompts", str(tmp_path / "set/masks")]
    asked = ["calibrate", *given, "--image-size", str(SMALL.image_size), "--max-drop", "50"]
    seen = []

    def again(predictor, clip, *args):
        seen.append(clip.name)
        raise InputError("was begun again")

    monkeypatch.setattr("sparsity.calibration.runs.run_clip", again)
    monkeypatch.setattr("sparsity.calibration.watching.capture", again)
    assert run([*asked, "--out", str(out)]) == 0 and not seen
    parts = json.loads(out.with_name("mine.calibration.json").read_text())["clips"]
    for name in (parts["promise"][0], parts["search"][0]):
        mask = tmp_path / "set/masks" / name / "00003.png"
        os.utime(mask, (0, mask.stat().st_mtime + 1))
        assert run([*asked, "--out", str(out), "--force"]) == 2
    assert seen == [parts["promise"][0], parts["search"][0]]


def test_a_report_that_has_nowhere_to_go_is_refused_before_any_work(arguments, tmp_path, capsys):
    asked = ["--out", str(tmp_path / "p.json"), "--report", str(tmp_path / "nowhere" / "p.html")]
    assert run(["calibrate", *arguments, *asked]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err
    assert run(["calibrate", *arguments, "--clips", str(tmp_path / "no.txt"), *asked[:2]]) == 2
    assert "no.txt can't be read" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_profile_is_shown_and_checked_with_its_promise(calibrated, capsys):
    assert run(["profile", "check", str(calibrated)]) == 0
    said = capsys.readouterr().out
    assert "95%" in said and "4 videos" in said
    assert run(["profile", "check", "paper"]) == 0
    assert "promises nothing" in capsys.readouterr().out
    assert run(["profile", "list"]) == 0
    said = capsys.readouterr().out
    names = ["dense", "exact", "paper", "recommended", "demo"]
    assert [line.split()[0] for line in said.splitlines()] == names


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
        ((), {"shortcut": "magic"}, "shortcut 'magic' given; expected identity, mean, .* cached"),
        ((), {"base": "exact"}, "base 'exact' given; expected paper or recommended"),
        ((), {"target_speedup": 0.9}, "target-speedup 0.9 given"),
    ],
)
def test_bad_requests_are_refused_in_one_line(folders, tmp_path, names, more, said):
    with pytest.raises(InputError, match=said) as caught:
        calibrate(request(folders, *names, **more), tmp_path, Spread())
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_what_so_many_clips_can_promise_is_said_before_anything_runs():
    def said(count, **more):
        return certifiable(Request(ClipSource(), NAMES, ModelChoice(), **more), count)

    assert "20 clips for the promise can certify a mean loss of 13.9 points at 95% at best" in said(
        20
    )
    assert "takes 299 clips" in said(20) and "approximate" in said(20)
    assert "whatever the videos are" in said(20, max_drop=14.0)
    assert "approximate" in said(20, max_drop=14.0, bound="approximate")
    assert "4.8 points in expectation" in said(20, bound="expectation")
    assert "takes 1 clips" in said(20, max_drop=100.0, bound="approximate")
    assert "1.0 points at 95% at best, whatever" in said(299)
    lossless = certain_bound(np.zeros(299), 0.95).upper
    assert f"a mean loss of {lossless:.1f} points" in said(299, target_speedup=1.2)
    assert "takes" not in said(20, target_speedup=1.2)


@pytest.fixture(scope="module")
def routed_speedup(calibrated):
    """A speed-up that cutting memory alone does not reach."""
    rows = json.loads(calibrated.with_name("mine.calibration.json").read_text())["replayed"]
    memory_alone = min(row["cost"] for row in rows if row["windows"] == 1)
    return 2 / (memory_alone + min(row["cost"] for row in rows))


@pytest.fixture(scope="module")
def fast(calibrated, arguments, routed_speedup, tmp_path_factory):
    """A profile of one setting that was chosen by its speed, with a shortcut that is fitted, and windows reused."""
    out = tmp_path_factory.mktemp("fast") / "fast.json"
    shutil.copytree(calibrated.with_name("mine.json.clips"), out.with_name("fast.json.clips"))
    asked = ["--shortcut", "ridge", "--budget", "1s", "--target-speedup", str(routed_speedup)]
    asked += ["--base", "recommended"]
    assert run(["calibrate", *arguments, *asked, "--out", str(out)]) == 0
    return out


def test_what_settings_build_on_is_in_the_profile(fast, calibrated):
    wanted, plain = load_profile("recommended"), load_profile(calibrated)
    for profile, base in ((load_profile(fast), wanted), (plain, load_profile("paper"))):
        assert profile.windows.rolling_refresh == base.windows.rolling_refresh
        assert profile.techniques == base.techniques
    assert load_profile(fast).memory.readers == "routed" != plain.memory.readers
    assert load_profile(fast).made_by["settings"]["base"] == "recommended"
    reports = [path.with_name(f"{path.stem}.calibration.json") for path in (fast, calibrated)]
    reused, computed = (
        min(row["cost"] for row in json.loads(report.read_text())["replayed"]) for report in reports
    )
    assert reused < 0.8 * computed, "the cheapest setting is cheaper by what is reused"


def test_a_target_speedup_takes_the_surest_that_fast_and_states_its_own_bound(
    fast, arguments, routed_speedup, tmp_path, monkeypatch, capsys
):
    promise = load_profile(fast).promise
    assert promise.expected_speedup >= 1.0 and promise.upper_bound not in (50.0, 1.0)
    report = json.loads(fast.with_name("fast.calibration.json").read_text())
    assert all(1 / row["cost"] >= routed_speedup for row in report["searched"])
    shutil.copytree(fast.with_name("fast.json.clips"), tmp_path / "none.json.clips")

    def never(*args, **more):
        raise AssertionError("something was done again")

    for what in ("runs.run_clip", "watching.capture", "fitting.collect", "fitting.fit_closed"):
        monkeypatch.setattr(f"sparsity.calibration.{what}", never)
    asked = ["--shortcut", "ridge", "--budget", "1s", "--target-speedup", "50"]
    asked += ["--base", "recommended"]
    assert run(["calibrate", *arguments, *asked, "--out", str(tmp_path / "none.json")]) == 2
    said = capsys.readouterr().err
    assert said.index("at best") < said.index("settings replayed")
    assert "the cheapest setting is" in said
    assert not (tmp_path / "none.json").exists()


def test_a_fitted_shortcut_goes_with_the_profile_and_is_applied(fast, folders, tmp_path):
    weights = "fast.shortcut.safetensors"
    for file in (fast, fast.with_name(weights)):
        shutil.copy(file, tmp_path)
    profile = load_profile(tmp_path / "fast.json")
    written = json.loads(fast.read_text())
    assert written["shortcut"]["kind"] == written["made_by"]["settings"]["shortcut"] == "ridge"
    assert written["shortcut"]["file"] == weights
    assert profile.windows is not None and profile.shortcut.file == str(tmp_path / weights)
    clip = ClipSource(folders / "videos", folders / "masks").open("smooth")
    predictor = shared_predictor(SMALL)
    found = []
    for shortcut in (profile.shortcut, profile.shortcut, Shortcut(), Shortcut(kind="cached")):
        with predictor.use(profile.model_copy(update={"shortcut": shortcut, "guard": Guard()})):
            state = predictor.init_state(clip.video)
            for object_id, mask in clip.prompts().items():
                predictor.add_new_mask(state, 0, object_id, mask)
            tracked = predictor.propagate_in_video(state, max_frame_num_to_track=3)
            found.append([logits for _, _, logits in tracked][-1])
    assert torch.equal(found[0], found[1])
    assert not any(torch.equal(found[0], other) for other in found[2:])
    (tmp_path / weights).write_bytes(b"another")
    with pytest.raises(InputError, match="is not the one the profile was made with"):
        with predictor.use(load_profile(tmp_path / "fast.json")):
            pass


def test_a_shortcut_of_no_kind_is_refused_in_one_line(arguments, tmp_path, capsys):
    asked = ["--shortcut", "magic", "--out", str(tmp_path / "none.json")]
    assert run(["calibrate", *arguments, *asked]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "expected identity, mean, ridge, bottleneck, cached" in said
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


def test_names_are_those_of_videos_each_once(folders, tmp_path):
    prompt = (folders / "masks" / "smooth" / "00000.png").read_bytes()
    for name in ("GX01.MP4", "b.mov", "._b.mov", ".DS_Store", "notes.txt"):
        (tmp_path / name).write_bytes(b"\0")
    for name in ("c", ".cache"):
        (tmp_path / name).mkdir()
    for name in ("GX01", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(prompt)
    source = ClipSource(tmp_path, tmp_path)
    assert source.names() == ["GX01", "b", "c"]
    assert video_file(tmp_path, "GX01") == tmp_path / "GX01.MP4"
    assert video_file(tmp_path, "b") == tmp_path / "b.mov"
    assert source.names(1, only=["c", "b", "c"]) == ["c", "b", "made-smooth-100"]
    (tmp_path / "b.mp4").write_bytes(b"\0")
    with pytest.raises(InputError, match=r"holds b.mov and b.mp4; expected videos of different"):
        source.names()


def test_masks_go_with_frames_in_playing_order(folders, tmp_path):
    for kind in ("videos", "masks"):
        (tmp_path / kind / "clip").mkdir(parents=True)
        for t, file in enumerate(sorted((folders / kind / "smooth").iterdir())):
            shutil.copy(file, tmp_path / kind / "clip" / f"frame{t + 5}{file.suffix}")
    (tmp_path / "masks" / "clip" / "._frame5.png").write_bytes(b"\0")
    renamed = ClipSource(tmp_path / "videos", tmp_path / "masks").open("clip").truth
    plain = ClipSource(folders / "videos", folders / "masks").open("smooth").truth
    assert np.array_equal(renamed, plain)
    assert not np.array_equal(renamed, plain[::-1])
