"""The command: videos in, a profile with its promise out; interrupted and resumed; bad input in one line."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from probes.errors import InputError
from sparsity.calibration.bounds import APPROXIMATE, approximate_bound
from sparsity.calibration.calibrate import calibrate, stamp_of
from sparsity.calibration.clips import ClipSource
from sparsity.calibration.command import seconds_of_budget
from sparsity.calibration.request import Request
from sparsity.calibration.runs import shared_predictor
from sparsity.cli import run
from sparsity.evaluation.jobs import Spread
from sparsity.options import ModelChoice
from sparsity.profile import Guard, Shortcut
from sparsity.profiles import load_profile
from tests.sparsity.calibration.conftest import LONGEST, NAMES

SMALL = ModelChoice(image_size=256)
"""The demo model at a size at which it takes half the time."""


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
    assert len(report["tested"]) > 1
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


def test_clips_are_looked_at_before_any_work(arguments, folders, tmp_path, capsys):
    shutil.copytree(folders / "masks", tmp_path / "masks")
    last = tmp_path / "masks" / "tiny" / "00009.png"
    Image.fromarray(np.ones((90, 160), np.uint8)).save(last)
    out = tmp_path / "p.json"
    given = ["--prompts", str(tmp_path / "masks"), "--out", str(out)]
    assert run(["calibrate", *arguments, *given]) == 2
    said = capsys.readouterr().err
    assert "00009.png is 160x90; its video is 160x96" in said and "clips failed" not in said
    assert not out.with_name("p.json.clips").exists()


def test_two_results_of_one_place_are_refused(arguments, tmp_path, capsys):
    out = tmp_path / "p.json"
    for report in (tmp_path / "." / "p.json", tmp_path / "p.calibration.json"):
        assert run(["calibrate", *arguments, "--out", str(out), "--report", str(report)]) == 2
        assert f"{report.name} given for two results" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_what_was_cut_off_between_its_results_goes_on(calibrated, arguments, tmp_path, monkeypatch):
    out = tmp_path / "mine.json"
    shutil.copytree(calibrated.with_name("mine.json.clips"), out.with_name("mine.json.clips"))
    asked = ["calibrate", *arguments, "--max-drop", "50", "--out", str(out)]
    asked += ["--report", str(tmp_path / "mine.html")]

    def cut(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("figures.calibration.write_report", cut)
        assert run(asked) == 2
    assert not out.exists() and not (tmp_path / "mine.html").exists()
    assert run(asked) == 0
    assert out.exists() and (tmp_path / "mine.html").exists()
    assert run(asked) == 2, "what is there is not replaced"


def test_the_cost_is_measured_on_the_longest_clip_of_the_search(calibrated):
    report = json.loads(calibrated.with_name("mine.calibration.json").read_text())
    assert LONGEST in report["clips"]["search"] and report["clips"]["search"][0] != LONGEST
    (measured,) = calibrated.with_name("mine.json.clips").rglob("cost-*.json")
    assert measured.name.startswith(f"cost-paper-cached.{LONGEST}.")
    assert json.loads(measured.read_text())["operations"] == report["cost"]


def test_what_was_done_on_another_device_does_not_count(monkeypatch):
    predictor, float32 = shared_predictor(SMALL), replace(SMALL, dtype="float32")
    here = stamp_of(predictor, float32)
    assert here == stamp_of(predictor, SMALL)
    monkeypatch.setattr(type(predictor), "device", torch.device("cuda"))
    assert stamp_of(predictor, float32) == {**here, "device": "cuda"} != here


def test_a_profile_is_shown_and_checked_with_its_promise(calibrated, capsys):
    assert run(["profile", "check", str(calibrated)]) == 0
    said = capsys.readouterr().out
    assert "95%" in said and "4 clips" in said
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
        ((), {"bound": "certain"}, "bound certain and max-drop 1 given; 4 clips .* 52.7 points"),
        ((), {"bound": "expectation"}, "bound expectation and max-drop 1 given; 4 clips .* 20.0"),
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
    (tested,) = report["tested"]
    assert promise.method == APPROXIMATE and promise.upper_bound < 20
    assert promise.upper_bound == round(
        approximate_bound(np.array(tested["losses"]), 0.95).upper, 4
    )
    assert all(set(runs) == {"exact", tested["name"]} for runs in report["outcomes"].values())
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
