"""The command: videos in, a profile with its promise out; interrupted and resumed; bad input in one line."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from probes.errors import InputError
from sparsity.calibration.calibrate import Calibration, calibrate
from sparsity.calibration.ledger import FILE
from sparsity.calibration.request import Request
from sparsity.clips.sources import ClipSource
from sparsity.commands.app import run
from sparsity.commands.calibrate import seconds_of_budget
from sparsity.profile import EXACT, load_profile
from sparsity.techniques.adapter import Adapter
from sparsity.techniques.routing import Guard
from sparsity.work.model import ModelChoice, shared_predictor, stamp_of
from sparsity.work.spread import Spread
from tests.sparsity.calibration.conftest import LONGEST, NAMES

SMALL = ModelChoice(image_size=192)
"""The demo model at a size at which it takes a third of the time: 9 windows of 4 cells."""


@pytest.fixture(scope="module")
def arguments(folders):
    given = ["--videos", str(folders / "videos"), "--prompts", str(folders / "masks")]
    return [*given, "--image-size", str(SMALL.image_size)]


@pytest.fixture(scope="module", autouse=True)
def few_runs():
    """Three settings are tried, two of them tested, and the cost is measured on a few frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsity.calibration.cost.FRAMES", 3)
        patch.setattr("sparsity.calibration.calibrate.TRIED", 3)
        patch.setattr("sparsity.calibration.calibrate.TESTED", 2)
        # each test's questions are its own
        patch.setattr("sparsity.calibration.ledger.ledger_of", lambda _, beside: beside / FILE)
        yield


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
    alone = [row["name"] for row in report["replayed"] if row["said"].startswith("keep")]
    assert alone and all(name.startswith("exact") for name in alone), "bases don't differ there"
    assert 1 <= len(report["tested"]) <= 2 < len(report["searched"])
    row = next(r for r in report["tested"] if r["bound"] and r["bound"]["upper"] <= 50)
    assert max(row["losses"]) == row["bound"]["upper"]
    promise = profile.promise
    assert promise.upper_bound == 50, "what was tested, not the bound that was found"
    assert promise.clips == 3 and promise.confidence == 0.95 and promise.question == 1
    assert promise.method == EXACT and (promise.over, promise.share) == (50, 0.6316)
    assert (
        "at most 63% of videos like these lose more than 50.00 J&F points (exact" in promise.text()
    )
    assert promise.mean_loss <= promise.upper_bound <= 50
    assert 0 < promise.expected_keys <= 1 and promise.expected_speedup >= 1
    assert profile.routing is not None and profile.adapter.kind == "cached"
    assert profile.made_by["settings"]["adapter"] == report["adapter"] == "cached"
    assert profile.model.startswith("sha256:") and profile.made_by["seed"] == 0
    assert sorted(profile.made_by["clips"]) == sorted(NAMES)
    assert calibrated.with_suffix(".html").read_text().count("plotly-graph-div") >= 3


def test_a_second_start_repeats_no_clip_and_finds_the_same(
    calibrated, arguments, monkeypatch, capsys
):
    before = calibrated.read_text()

    def never(*args, **more):
        raise AssertionError("a clip was run again")

    monkeypatch.setattr("sparsity.evaluation.evaluate.evaluate_clip", never)
    monkeypatch.setattr("sparsity.calibration.calibrate.capture", never)
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

    def again(predictor, clip, *args, **more):
        seen.append(clip.name)
        raise InputError("was begun again")

    monkeypatch.setattr("sparsity.evaluation.evaluate.evaluate_clip", again)
    monkeypatch.setattr("sparsity.calibration.calibrate.capture", again)
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
    last = tmp_path / "masks" / "tiny" / "00005.png"
    Image.fromarray(np.ones((90, 160), np.uint8)).save(last)
    out = tmp_path / "p.json"
    given = ["--prompts", str(tmp_path / "masks"), "--out", str(out)]
    assert run(["calibrate", *arguments, *given]) == 2
    said = capsys.readouterr().err
    assert "00005.png is 160x90; its video is 160x96" in said and "clips failed" not in said
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
    files = sorted(calibrated.with_name("mine.json.clips").rglob("cost-*.json"))
    for base, file in zip(("exact", "paper", "recommended"), files, strict=True):
        assert file.name.startswith(f"cost-{base}-cached.{LONGEST}.")
        assert json.loads(file.read_text())["operations"] == report["bases"][base]["cost"]


def test_what_was_done_on_another_device_does_not_count(monkeypatch):
    predictor, float32 = shared_predictor(SMALL), replace(SMALL, dtype="float32")
    here = stamp_of(predictor, float32)
    assert here == stamp_of(predictor, SMALL)
    monkeypatch.setattr(type(predictor), "device", torch.device("cuda"))
    assert stamp_of(predictor, float32) == {**here, "device": "cuda"} != here


def test_a_profile_is_shown_and_checked_with_its_promise(calibrated, capsys):
    assert run(["profile", "check", str(calibrated)]) == 0
    said = capsys.readouterr().out
    assert "95%" in said and "3 clips" in said
    assert run(["profile", "check", "paper"]) == 0
    assert "promises nothing" in capsys.readouterr().out
    assert run(["profile", "list"]) == 0
    said = capsys.readouterr().out
    names = ["dense", "exact", "paper", "recommended", "demo"]
    assert [line.split()[0] for line in said.splitlines()] == names


def test_a_hand_edited_profile_is_refused(calibrated, tmp_path, capsys):
    text = calibrated.read_text()
    for old, new, said in (
        ('"clips": 3', '"clips": -3', "promise.clips is -3"),
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
        ((), {"bound": "certain"}, "bound certain and max-drop 1 given; 3 clips .* 63.2 points"),
        ((), {"max_drop": 0.0}, "max-drop 0 given"),
        ((), {"confidence": 1.0}, "confidence 1 given"),
        ((), {"adapter": "magic"}, "adapter 'magic' given; expected identity, ridge, .* cached"),
        ((), {"base": "exact"}, "base 'exact' given; expected paper or recommended"),
        ((), {"target_speedup": 0.9}, "target-speedup 0.9 given"),
        ((), {"target_speedup": 2, "max_drop": 1}, "--max-drop and --target-speedup given; .* one"),
        ((), {"max_drift": 1.0, "max_drop": 1.0}, "--max-drop and --max-drift given"),
    ],
)
def test_bad_requests_are_refused_in_one_line(folders, tmp_path, names, more, said):
    with pytest.raises(InputError, match=said) as caught:
        calibrate(request(folders, *names, **more), tmp_path, Spread())
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def speedup_of_cells(calibrated):
    """A speed-up that only routing by cells reaches, neither that by windows nor cutting memory alone."""
    rows = json.loads(calibrated.with_name("mine.calibration.json").read_text())["replayed"]
    rows = [row for row in rows if "int8" not in row["said"]]  # which isn't tried where it is asked
    others = min(row["cost"] for row in rows if "by cells" not in row["said"])
    assert others > min(row["cost"] for row in rows)
    return 2 / (others + min(row["cost"] for row in rows))


@pytest.fixture(scope="module")
def fast(calibrated, arguments, speedup_of_cells, tmp_path_factory):
    """A profile of one setting that was chosen by its speed, by cells, with an adapter that is fitted, and windows reused."""
    out = tmp_path_factory.mktemp("fast") / "fast.json"
    shutil.copytree(calibrated.with_name("mine.json.clips"), out.with_name("fast.json.clips"))
    asked = ["--adapter", "ridge", "--budget", "1s", "--target-speedup", str(speedup_of_cells)]
    asked += ["--base", "recommended"]
    assert run(["calibrate", *arguments, *asked, "--out", str(out)]) == 0
    return out


def test_a_profile_by_cells_is_found_and_says_so(fast):
    profile, report = (
        load_profile(fast),
        json.loads(fast.with_name("fast.calibration.json").read_text()),
    )
    assert profile.routing.unit == "cell" and 0 < profile.promise.expected_windows < 1
    assert "by cells" in report["tested"][0]["said"]
    assert "by cells" in Calibration(profile, report).text().splitlines()[0]


def test_what_settings_build_on_is_in_the_profile(fast, calibrated):
    wanted, plain = load_profile("recommended"), load_profile(calibrated)
    on = load_profile("recommended" if plain.reuse else "paper")
    for profile, base in ((load_profile(fast), wanted), (plain, on)):
        assert profile.routing.refresh == base.routing.refresh
        assert (profile.exact, profile.graphs, profile.reuse) == (base.exact, True, base.reuse)
    assert load_profile(fast).made_by["settings"]["base"] == "recommended"
    alone, both = (
        json.loads(path.with_name(f"{path.stem}.calibration.json").read_text())
        for path in (fast, calibrated)
    )
    assert [*alone["bases"]] == ["exact", "recommended"]
    assert [*both["bases"]] == ["exact", "paper", "recommended"]
    assert not any("int8" in row["said"] for row in alone["replayed"]), (
        "a speed-up is of operations"
    )
    reused, computed = (
        min(row["cost"] for row in both["replayed"] if row["name"].startswith(base))
        for base in ("recommended", "paper")
    )
    assert reused < 0.8 * computed, "the cheapest setting is cheaper by what is reused"


def test_a_target_speedup_takes_the_surest_that_fast_and_states_its_own_bound(
    fast, arguments, speedup_of_cells, tmp_path, monkeypatch, capsys
):
    promise = load_profile(fast).promise
    assert promise.expected_speedup >= 1.0 and promise.upper_bound not in (50.0, 1.0)
    report = json.loads(fast.with_name("fast.calibration.json").read_text())
    (tested,) = report["tested"]
    assert promise.method == EXACT and promise.upper_bound < 20 and promise.coverage is None
    assert promise.upper_bound == promise.over == round(max(tested["losses"]), 4)
    assert promise.share == 0.6316
    assert all(set(runs) == {"exact", tested["name"]} for runs in report["outcomes"].values())
    assert all(1 / row["cost"] >= speedup_of_cells for row in report["searched"])
    shutil.copytree(fast.with_name("fast.json.clips"), tmp_path / "none.json.clips")

    def never(*args, **more):
        raise AssertionError("something was done again")

    monkeypatch.setattr("sparsity.evaluation.evaluate.evaluate_clip", never)
    for what in ("calibrate.capture", "routed_frames.collect", "adapter.fit_ridge"):
        monkeypatch.setattr(f"sparsity.calibration.{what}", never)
    asked = ["--adapter", "ridge", "--budget", "1s", "--target-speedup", "50"]
    asked += ["--base", "recommended"]
    assert run(["calibrate", *arguments, *asked, "--out", str(tmp_path / "none.json")]) == 2
    said = capsys.readouterr().err
    assert said.index("at best") < said.index("settings replayed")
    assert "the cheapest setting is" in said
    assert not (tmp_path / "none.json").exists()


def test_a_fitted_adapter_goes_with_the_profile_and_is_applied(fast, folders, tmp_path):
    weights = "fast.adapter.safetensors"
    for file in (fast, fast.with_name(weights)):
        shutil.copy(file, tmp_path)
    profile = load_profile(tmp_path / "fast.json")
    written = json.loads(fast.read_text())
    assert written["adapter"]["kind"] == written["made_by"]["settings"]["adapter"] == "ridge"
    assert written["adapter"]["file"] == weights
    assert profile.routing is not None and profile.adapter.file == str(tmp_path / weights)
    clip = ClipSource(folders / "videos", folders / "masks").open("smooth")
    predictor = shared_predictor(SMALL)
    found = []
    for adapter in (profile.adapter, profile.adapter, Adapter(), Adapter(kind="cached")):
        with predictor.use(profile.model_copy(update={"adapter": adapter, "guard": Guard()})):
            state = clip.begin(predictor)
            tracked = predictor.propagate_in_video(state, max_frame_num_to_track=3)
            found.append([logits for _, _, logits in tracked][-1])
    assert torch.equal(found[0], found[1])
    assert not any(torch.equal(found[0], other) for other in found[2:])
    (tmp_path / weights).write_bytes(b"another")
    with pytest.raises(InputError, match="is not the one the profile was made with"):
        with predictor.use(load_profile(tmp_path / "fast.json")):
            pass


@pytest.fixture(scope="module")
def fresh(folders, tmp_path_factory):
    """The clips under other names, as options of a command."""
    root = tmp_path_factory.mktemp("fresh")
    for kind, name in product(("videos", "masks"), NAMES):
        shutil.copytree(folders / kind / name, root / kind / f"new-{name}")
    given = ["--videos", str(root / "videos"), "--prompts", str(root / "masks")]
    return [*given, "--image-size", str(SMALL.image_size)]


def test_a_profile_is_rechecked_on_fresh_clips_without_a_search(
    calibrated, arguments, fresh, tmp_path, capsys
):
    out, asked = tmp_path / "again.json", ["recheck", str(calibrated)]
    assert run([*asked, *arguments, "--out", str(out)]) == 2
    assert "5 clips given that the profile was calibrated on" in capsys.readouterr().err
    assert run([*asked, *fresh, "--out", str(out)]) == 0
    again, before = load_profile(out), load_profile(calibrated)
    assert again.routing == before.routing and again.retrieval == before.retrieval
    assert again.promise.clips == 5 and (again.promise.over, again.promise.share) == (50, 0.4507)
    assert again.made_by["before"] == before.made_by and again.promise.question == 1
    said = capsys.readouterr().out
    assert before.promise.text() in said and again.promise.text() in said and "\nholds" in said
    strict = [*asked, *fresh, "--max-drift", "0.0001", "--out", str(tmp_path / "strict.json")]
    assert run(strict) == 3
    said = capsys.readouterr().out
    assert "does not hold" in said and "of 5 lose more than 0.0001" in said
    assert not (tmp_path / "strict.json").exists()
    assert run([*asked[:1], "paper", *fresh, "--out", str(tmp_path / "paper.json")]) == 2
    assert "profile paper promises no loss" in capsys.readouterr().err


def test_the_next_question_of_the_same_clips_is_asked_at_a_part_of_the_level(
    calibrated, fresh, tmp_path
):
    shares = {}
    for number, drop in enumerate((60, 70), 1):
        out = tmp_path / f"{drop}.json"
        asked = ["recheck", str(calibrated), *fresh, "--max-drop", str(drop), "--out", str(out)]
        assert run(asked) == 0
        promise = load_profile(out).promise
        assert promise.question == number and promise.confidence == 0.95
        assert ("question 2 of these clips" in promise.text()) is (number == 2)
        shares[number] = promise.share
    assert shares[1] == pytest.approx(1 - 0.05**0.2, abs=1e-4)
    assert shares[2] == pytest.approx(1 - 0.005**0.2, abs=1e-4)


def test_an_adapter_of_no_kind_is_refused_in_one_line(arguments, tmp_path, capsys):
    asked = ["--adapter", "magic", "--out", str(tmp_path / "none.json")]
    assert run(["calibrate", *arguments, *asked]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "expected identity, ridge, bottleneck, cached" in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20min", 1200), ("1.5h", 5400)])
def test_budgets_are_read(text, seconds):
    assert seconds_of_budget(text) == seconds


@pytest.mark.parametrize("text", ["20", "0min", "min", "-3s"])
def test_other_budgets_are_refused(text):
    with pytest.raises(InputError, match="budget"):
        seconds_of_budget(text)
