"""The watch over a promise: what it may not change, what it finds, what it costs, and how often it errs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from probes.errors import BeyondPromise, InputError
from probes.observing import observe
from sparsity import accelerate
from sparsity.acceleration.watch import (
    ALPHA,
    BETS,
    LEVEL,
    Stakes,
    Watch,
    level_of,
    safer_than,
    watch_over,
)
from sparsity.clips.masks import write_mask
from sparsity.commands import app as cli
from sparsity.evaluation.meters import counted_flops
from sparsity.profile import BUILTIN, Profile, Promise, Seen, save_profile
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import Decision, Routing
from tests.sparsity.acceleration.conftest import PROMPTS, make_frames, make_mask, run, track

FRAMES = 9

ROUTED, WHOLE = Decision((0,), "routed"), Decision(None, "low score")

LOSSES = json.loads(
    (Path(__file__).parents[3] / "benchmarks" / "watch_losses.json").read_text(encoding="utf-8")
)

RISKY = Profile(
    name="risky",
    exact=True,
    routing=Routing(margin_px=0.0, candidates="best"),
    retrieval=Retrieval(),
)


def promised(profile: Profile, bound: float, **seen: Any) -> Profile:
    """The profile with a promise, of clips that lost so much at most."""
    described = Seen(frames=(1, 99), objects=(1, 9), drift=bound, **seen)
    promise = Promise(
        mean_loss=0.0, upper_bound=bound, confidence=0.95, method="Student t", clips=9, seen=described
    )  # fmt: skip
    return profile.model_copy(update={"promise": promise})


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return make_frames(FRAMES)


@pytest.mark.parametrize("profile", ["recommended", "paper"])
def test_masks_are_those_of_a_run_that_is_not_watched(
    small_demo: Any, frames: np.ndarray, profile: str
) -> None:
    """On frames with a shadow and on those without; the state, on which later frames build, is the same too."""
    prompts = PROMPTS["three objects"][:2]
    plain = track(accelerate(small_demo, profile), frames, prompts)
    fast = accelerate(small_demo, promised(BUILTIN[profile], 40.0), watch=1.0)
    watched = track(fast, frames, prompts)
    assert plain.equal(watched) and plain.report.watch is None
    watch = watched.report.watch
    assert (
        watch is not None and 2 <= watch.looked < FRAMES and set(watch.shadows[0].objects) == {1, 2}
    )
    assert max(shadow.loss for shadow in watch.shadows) > 0
    assert [f.reason for f in plain.report.frames] == [f.reason for f in watched.report.frames]
    shadow = watch.shadows[0]
    assert shadow.loss == pytest.approx(np.mean(list(shadow.objects.values())))
    again = track(fast, frames, prompts).report.watch
    assert again is not None and again.shadows == watch.shadows, "the same frames are drawn"
    dense = track(accelerate(small_demo, "exact"), frames, prompts, 4)
    assert not plain.equal(dense, 4)


def test_a_shadow_is_the_dense_frame_on_the_same_memory(
    small_demo: Any, frames: np.ndarray
) -> None:
    """What it finds is what a run finds that stops there and tracks the frame densely."""
    fast = accelerate(small_demo, promised(RISKY, 40.0), watch=1.0)
    watch = track(fast, frames, PROMPTS["mask"]).report.watch
    assert watch is not None
    shadow = max(watch.shadows, key=lambda one: one.loss)
    before = track(fast, frames, PROMPTS["mask"], shadow.frame).state
    masks = {}
    for name in ("exact", "risky"):
        with fast.use(BUILTIN["exact"] if name == "exact" else RISKY):
            state = copy.deepcopy(before)
            masks[name] = (
                run(fast, state, start_frame_idx=shadow.frame, max_frame_num_to_track=0)[
                    shadow.frame
                ]
                > 0
            )
    union = (masks["exact"] | masks["risky"]).sum()
    agreed = (masks["exact"] & masks["risky"]).sum() / union
    assert shadow.loss == pytest.approx(100 * (1 - float(agreed)), abs=1e-3) and shadow.loss > 1


def test_a_broken_promise_ends_in_a_safer_setting_and_then_in_every_window(
    small_demo: Any, frames: np.ndarray
) -> None:
    safer = RISKY.model_copy(update={"name": "next safer", "retrieval": Retrieval(keep=0.1)})
    left = safer.model_dump(mode="json", by_alias=True, exclude={"adapter"})
    profile = promised(RISKY, 0.0).model_copy(update={"made_by": {"safer": left}})
    long = np.concatenate([frames, frames[::-1]] * 3)
    plain = track(accelerate(small_demo, profile), long, PROMPTS["mask"])
    with pytest.warns(BeyondPromise, match="promise is broken since frame"):
        watched = track(accelerate(small_demo, profile, watch=1.0), long, PROMPTS["mask"])
    report = watched.report
    watch = report.watch
    assert watch is not None and watch.alarm is not None and watch.since is not None
    assert report.promise == f"broken since frame {watch.since}" and watch.since <= watch.alarm
    assert plain.equal(watched, watch.alarm + 1) and not plain.equal(watched, watch.alarm + 5)
    assert {shadow.profile for shadow in watch.shadows} == {"risky", "next safer"}
    assert watch.profile.name == "every window and key"
    assert report.frames[-1].windows is None and report.frames[-1].reason == "not routed"
    assert "from there on every window and key" in watch.text()
    assert json.loads(report.to_json())["summary"]["promise"] == report.promise
    allowed = track(
        accelerate(small_demo, promised(RISKY, 50.0), watch=1.0), frames, PROMPTS["mask"]
    )
    assert allowed.report.promise == "unknown" and not allowed.equal(watched, FRAMES), (
        "more is allowed"
    )


def test_segment_ends_with_status_3_where_a_promise_is_broken(
    frames: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for t, frame in enumerate(np.concatenate([frames, frames[::-1], frames])):
        (tmp_path / "clip").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / "clip" / f"{t:05d}.jpg", quality=92)
    write_mask(tmp_path / "first.png", make_mask().astype(np.uint8), "")
    given = ["segment", str(tmp_path / "clip"), "--prompt", str(tmp_path / "first.png")]
    given += ["--image-size", "128", "--device", "cpu", "--no-overlay"]
    for name, allowed, status, most in (("strict", 0.0, 3, "27"), ("lenient", 50.0, 0, "5")):
        save_profile(promised(RISKY, allowed), tmp_path / f"{name}.json")
        asked = [
            "--profile",
            str(tmp_path / f"{name}.json"),
            "--watch-share",
            "1",
            "--max-frames",
            most,
        ]
        assert cli.run([*given, *asked, "--out", str(tmp_path / name)]) == status
        report = json.loads((tmp_path / name / "report.json").read_text())["report"]
        assert f"promise  {report['watch']['said']}" in capsys.readouterr().out
        assert report["summary"]["promise"].startswith("broken since frame") is (status == 3)
    assert cli.run([*given, "--watch-share", "2", "--out", str(tmp_path / "none")]) == 2
    assert "expected a share of frames" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_cameras_are_watched_alike(small_demo: Any, frames: np.ndarray) -> None:
    found = {}
    for share in (None, 1.0):
        fast = accelerate(small_demo, promised(BUILTIN["recommended"], 40.0), watch=share)
        one, other = fast.camera(frames.shape[1:3]), fast.camera(frames.shape[1:3])
        for camera in (one, other):
            camera.prompt(1, mask=PROMPTS["mask"][0].mask)
        masks = [fast.track_cameras({one: frame, other: frame}) for frame in frames]
        found[share] = [m[one][1] for m in masks], one.report()
    assert all(torch.equal(a, b) for a, b in zip(found[None][0], found[1.0][0], strict=True))
    report = found[1.0][1]
    assert report.watch.looked >= 2 and found[None][1].watch is None


def test_nothing_is_watched_where_nothing_is_left_out(small_demo: Any, frames: np.ndarray) -> None:
    for profile in ("dense", "exact"):
        report = track(
            accelerate(small_demo, profile, watch=1.0), frames[:4], PROMPTS["mask"]
        ).report
        assert report.promise == "holds" and report.watch is not None and report.watch.looked == 0
    assert (
        track(accelerate(small_demo, "paper"), frames[:2], PROMPTS["mask"]).report.promise
        == "unknown"
    )


def test_who_observes_attention_is_told_once(small_demo: Any, frames: np.ndarray) -> None:
    calls: dict[Any, list[Any]] = {}
    for share in (None, 1.0):
        fast = accelerate(small_demo, promised(RISKY, 40.0), watch=share)
        calls[share] = []
        with observe(
            fast, lambda call, told=calls[share]: told.append((call.site, call.moment.frame))
        ):
            track(fast, frames[:5], PROMPTS["mask"])
    assert calls[None] == calls[1.0] and len(calls[None]) > 10


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan"), True, "2%"])
def test_a_share_that_is_none_is_refused(small_demo: Any, share: Any) -> None:
    with pytest.raises(InputError, match="expected a share of frames above 0"):
        accelerate(small_demo, "paper", watch=share)
    with (
        pytest.raises(InputError, match="expected a share"),
        accelerate(small_demo).use("paper", watch=share),
    ):
        pass
    assert accelerate(small_demo, "paper", watch=1).parts.own.watch == 1


def test_what_calibration_left_is_read_before_any_work(small_demo: Any) -> None:
    odd = RISKY.model_copy(update={"made_by": {"safer": {"name": "odd", "routing": 3}}})
    with pytest.raises(InputError, match="routing"):
        accelerate(small_demo, odd, watch=0.1)
    accelerate(small_demo, odd)  # nobody asks for it


def test_a_watch_costs_its_share_of_a_dense_run(small_demo: Any, frames: np.ndarray) -> None:
    """In operations, counted: a shadow is less than a dense frame; `test_a_jump_of_difficulty_is_found_soon` counts shadows."""
    spent, counted = {}, 4
    for name, profile, share in (
        ("dense", BUILTIN["exact"], None),
        ("plain", promised(RISKY, 40.0), None),
        ("watched", promised(RISKY, 40.0), 1.0),
    ):
        fast = accelerate(small_demo, profile, watch=share)
        with counted_flops() as counter:
            report = track(fast, frames[:counted], PROMPTS["mask"]).report
        spent[name] = counter.get_total_flops()
    assert report.watch is not None and report.watch.looked >= 1
    a_frame = spent["dense"] / (counted - 1)
    assert 0 < spent["watched"] - spent["plain"] <= report.watch.looked * a_frame


# ------------------------------------------------------------------ the test, and what is drawn


def rounds(losses: np.ndarray, level: float) -> np.ndarray:
    """Evidence after each frame, ``[runs, frames]``."""
    stakes = Stakes(level, losses.shape[:1])
    found = []
    for nth in losses.T:
        stakes.add(nth)
        found.append(stakes.evidence)
    return np.stack(found, 1)


@pytest.mark.parametrize("kind", ["coin", "small", "worst"])
def test_false_alarms_are_few_whenever_one_looks(kind: str) -> None:
    """1,000 runs of 2,000 shadows that lose just what is allowed: an alarm at any time, in 5 % at most."""
    rng, level = np.random.default_rng(0), 0.05

    def runs(mean: float, shadows: int) -> np.ndarray:
        shape = 1000, shadows
        if kind == "small":
            return rng.gamma(1.0, mean, shape).clip(max=1)
        size = {"coin": 0.5, "worst": 1.0}[kind]
        return size * (rng.random(shape) < mean / size)

    assert (rounds(runs(level, 2000), level) >= 1 / ALPHA).any(1).mean() <= ALPHA
    assert (rounds(runs(4 * level, 200), level) >= 1 / ALPHA).any(1).mean() > 0.95


def test_holds_is_said_wrongly_as_seldom() -> None:
    rng, level = np.random.default_rng(0), 0.05
    for mean, low, high in ((level, 0.0, ALPHA), (level / 5, 0.95, 1.0)):
        stakes = Stakes(level, (1000,))
        ever = np.zeros(1000, bool)
        for _ in range(300):
            stakes.add(rng.gamma(1.0, mean, 1000).clip(max=1))
            ever |= stakes.shown
        assert low <= ever.mean() <= high


def test_the_onset_is_where_the_bets_began_that_count() -> None:
    stakes = Stakes(0.05)
    for loss in [0.0] * 50 + [0.4] * 6:
        stakes.add(loss)
    assert 49 <= int(stakes.since) <= 51 and stakes.evidence > 1 / ALPHA
    assert len(BETS) == len(stakes.more)


def stream(seed: int, share: float, jump: int | None, length: int, cue: int | None = None) -> Watch:
    """Watch a stream of recorded losses, which are those of hard frames from `jump` on; cues are odd from `cue` on.

    Losses follow each other as they did in the clips that they were recorded on.
    """
    rng = np.random.default_rng(seed)
    easy, hard = ([LOSSES["clips"][name] for name in LOSSES[kind]] for kind in ("easy", "hard"))

    def run_of(kind: list[list[float]], frames: int) -> np.ndarray:
        parts = [np.zeros(0)]
        while sum(map(len, parts)) < frames:
            clip = kind[rng.integers(len(kind))]
            parts.append(np.roll(clip, rng.integers(len(clip))))
        return np.concatenate(parts)[:frames]

    at = length if jump is None else jump
    losses = np.concatenate([run_of(easy, at), run_of(hard, length - at)])
    level = LOSSES["level"]
    watch = Watch(share, level, (RISKY, *safer_than(RISKY)), Stakes(level / 100), seed=seed)
    for frame, loss in enumerate(losses):
        if watch.looks_at(frame, False, ROUTED):
            watch.found = {1: float(loss)}
        odd = cue is not None and frame >= cue
        watch.close(frame, False, ["lately, lowest mean score 0.1"] if odd else [])
        if watch.alarm is not None:
            break
    return watch


@pytest.mark.filterwarnings("ignore::probes.errors.BeyondPromise")
def test_a_jump_of_difficulty_is_found_soon() -> None:
    """Within 60 frames in 9 of 10 streams; nothing in 2,000 frames without a jump in 19 of 20."""
    jumps = [stream(seed, 0.1, 600, 660) for seed in range(100)]
    assert np.mean([one.alarm is not None and one.alarm >= 600 for one in jumps]) >= 0.95
    sooner = [stream(seed, 0.05, 1500, 1560, cue=1512) for seed in range(60)]
    assert np.mean([one.alarm is not None and one.alarm >= 1500 for one in sooner]) >= 0.95
    for share in (0.02, 0.1):
        quiet = [stream(seed, share, None, 2000) for seed in range(60)]
        assert np.mean([one.alarm is not None for one in quiet]) <= 0.05
        assert all(0 < one.looked <= share * 2000 for one in quiet)


def test_frames_on_which_nothing_is_left_out_are_passed_over() -> None:
    watch = watch_over([RISKY, *safer_than(RISKY)], 1.0)
    watch.credit, watch.waited = 12.0, 5
    assert any(watch.looks_at(frame, False, ROUTED) for frame in range(20))
    assert not any(watch.looks_at(frame, False, WHOLE) for frame in range(20))
    pruned = Decision(None, "refresh")
    assert any(watch.looks_at(frame, False, pruned) for frame in range(20)), (
        "memory is pruned there"
    )
    watch.step = 1
    assert not any(watch.looks_at(frame, False, pruned) for frame in range(20))


def test_cues_beyond_those_of_the_calibration_are_a_first_alarm(
    small_demo: Any, frames: np.ndarray
) -> None:
    """More frames are looked at and nothing is said to hold; scores within them change nothing."""
    found, longer = {}, np.concatenate([frames, frames[:4]])
    for name, cues in (("odd", (90.0, 99.0)), ("usual", (-99.0, 99.0))):
        profile = promised(RISKY, 40.0, cues={"lowest mean score": cues})
        fast = accelerate(small_demo, profile, watch=0.5)
        found[name] = track(fast, longer, PROMPTS["mask"]).report.watch
    assert found["odd"].suspicious and not found["usual"].suspicious
    assert "lately, lowest mean score" in found["odd"].text()


@pytest.mark.parametrize(
    ("promise", "level"),
    [
        (None, LEVEL),
        ({"upper_bound": 2.0}, LEVEL),
        ({"upper_bound": 8.0}, 8.0),
        ({"upper_bound": 1.0, "drift": 3.0}, 3.0),
        ({"upper_bound": 1.0, "drift": 0.0, "share": 0.4, "over": 2.0}, 2.0),
        ({"upper_bound": 0.0, "drift": 0.0}, 0.5),
    ],
)
def test_the_level_is_what_the_promise_accepts(
    promise: dict[str, float] | None, level: float
) -> None:
    profile = RISKY
    if promise is not None:
        given = {"mean_loss": 0.0, "confidence": 0.95, "method": "Student t", "clips": 9, **promise}
        drift = given.pop("drift", None)
        if drift is not None:
            given["seen"] = Seen(frames=(1, 9), objects=(1, 1), drift=drift)
        profile = RISKY.model_copy(update={"promise": Promise(**given)})
    assert level_of(profile) == level
