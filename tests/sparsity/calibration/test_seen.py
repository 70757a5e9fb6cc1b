"""What the videos behind a promise were like, and what is said of one beyond them."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from probes.errors import BeyondPromise
from sparsity.acceleration.watch import level_of
from sparsity.calibration.bounds import choose
from sparsity.calibration.report import Look, next_safer
from sparsity.calibration.search import Candidate
from sparsity.calibration.seen import pictures_of, seen_of, strata, told, worst_clips
from sparsity.clips.sources import ClipSource
from sparsity.commands.app import run
from sparsity.evaluation.evaluate import evaluate_clip
from sparsity.profile import BUILTIN, EXACT, Promise, Seen, parse_profile, save_profile
from tests.sparsity.calibration.conftest import SMALL, made

WIDE = {"lowest mean score": (-1e3, 1e3)}


def promised(seen: Seen):
    """The profile paper with a promise of such videos."""
    promise = Promise(
        mean_loss=0.5,
        upper_bound=1.0,
        confidence=0.95,
        method=EXACT,
        clips=5,
        share=0.45,
        over=1.0,
        seen=seen,
    )
    return BUILTIN["paper"].model_copy(update={"name": "mine", "promise": promise})


def tracked(predictor, clip, profile, count=None):
    """Track with a profile; the report, and what was warned of."""
    with predictor.use(profile), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = clip.begin(predictor)
        list(predictor.propagate_in_video(state, max_frame_num_to_track=count))
    said = [str(one.message) for one in caught if issubclass(one.category, BeyondPromise)]
    return predictor.report(state), said


def test_a_longer_video_or_more_objects_are_warned_of_before_tracking(demo_predictor):
    clip = made("distractors")
    objects = len(clip.objects)
    within = Seen(frames=(4, 10), objects=(1, objects), cues=WIDE)
    report, said = tracked(demo_predictor, clip, promised(within), 2)
    assert said == [] == report.beyond
    beyond = Seen(
        frames=(4, 9), objects=(1, max(1, objects - 1)), cues={"lowest mean score": (500.0, 600.0)}
    )
    report, said = tracked(demo_predictor, clip, promised(beyond))
    assert any(
        "profile mine: 10 frames; the promise is of videos of at most 9" in one for one in said
    )
    assert any("objects; the promise" in one for one in said) is (objects > 1)
    assert any("lowest mean score" in one and "500.00 to 600.00" in one for one in report.beyond)
    document = json.loads(report.to_json())
    assert document["summary"]["beyond"] == report.beyond and "seen" not in document
    assert tracked(demo_predictor, clip, BUILTIN["paper"], 2)[1] == []


def test_segment_says_what_is_beyond_the_promise(folders, tmp_path, capsys):
    given = [
        str(folders / "videos/smooth"),
        "--prompt",
        str(folders / "masks/smooth/00000.png"),
        "--no-overlay",
    ]
    given += ["--image-size", str(SMALL.image_size)]
    for name, most in (("short", 3), ("long", 99)):
        save_profile(
            promised(Seen(frames=(2, most), objects=(1, 9), cues=WIDE)), tmp_path / f"{name}.json"
        )
        asked = [
            "segment",
            *given,
            "--profile",
            str(tmp_path / f"{name}.json"),
            "--out",
            str(tmp_path / name),
        ]
        assert run(asked) == 0
        said, told = capsys.readouterr()
        assert told.count("efficient-sam2: profile mine: 5 frames; the promise") == (
            name == "short"
        )
        assert ("beyond   5 frames; the promise is of videos of at most 3" in said) is (
            name == "short"
        )
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert bool(report["report"]["summary"]["beyond"]) is (name == "short")


@pytest.fixture(scope="module")
def runs(demo_predictor):
    """Two clips under one setting."""
    found = {}
    for name in ("smooth", "fast"):
        outcome = evaluate_clip(
            demo_predictor, made(name), [BUILTIN["paper"]], dense=BUILTIN["exact"]
        )
        found[name] = json.loads(json.dumps(outcome["paper"].as_json()))
    return found


def test_what_is_seen_of_clips_stands_in_the_profile(runs):
    looks = {name: Look(10, made=True, labelled=True) for name in runs}
    seen = seen_of(looks, runs, [0.5, 4.0])
    assert seen.frames == (10, 10) and seen.objects[0] == 1
    low, high = seen.cues["share of windows"]
    shares = [run["cues"]["share of windows"] for run in runs.values()]
    assert low < min(shares) <= max(shares) < high
    profile = promised(seen)
    assert parse_profile(profile.to_json()) == profile
    assert all(run["character"]["size"] > 0 and len(run["by_frame"]) == 9 for run in runs.values())
    assert runs["fast"]["character"]["motion"] > runs["smooth"]["character"]["motion"]
    assert told(seen) == ["seen     10 frames, 1 object"], "two clips say nothing of halves"
    several = seen.model_copy(
        update={"strata": tuple(s.model_copy(update={"videos": 3}) for s in seen.strata)}
    )
    assert any("more is lost where motion is high" in line for line in told(several))
    assert not seen.beyond(10, 1, runs["smooth"]["cues"])
    assert seen.beyond(11, 1, runs["smooth"]["cues"]) == [
        "11 frames; the promise is of videos of at most 10, and losses grow with frames"
    ]
    assert not Seen(frames=(5, 10), objects=(2, 3)).beyond(4, 1), "less is lost in fewer frames"


def test_strata_count_every_clip_once_in_each_respect():
    rng = np.random.default_rng(0)
    characters = [
        dict(zip(("size", "motion", "score"), rng.random(3), strict=True)) for _ in range(7)
    ]
    losses = rng.random(7)
    found = strata(characters, losses)
    for of in ("size", "motion", "score"):
        low, high = (one for one in found if one.of == of)
        assert low.videos + high.videos == 7 and low.high <= high.low
        assert max(low.worst, high.worst) == pytest.approx(losses.max(), abs=1e-4)
        mean = (low.videos * low.mean_loss + high.videos * high.mean_loss) / 7
        assert mean == pytest.approx(losses.mean(), abs=1e-3)


def test_what_the_worst_clip_drifted_is_what_a_watch_allows(runs):
    looks = {name: Look(10, made=True, labelled=True) for name in runs}
    seen = seen_of(looks, runs, [0.5, 4.0])
    worst = max(100 - run["quality"]["agreement"] for run in runs.values())
    assert seen.drift == pytest.approx(worst, abs=1e-3)
    assert level_of(promised(seen)) == pytest.approx(max(worst, 1.0), abs=1e-3)


def test_the_worst_clips_are_named_with_a_picture_of_the_worst_frame(folders):
    source = ClipSource(folders / "videos", folders / "masks")
    rows = {
        name: {"by_frame": [(1, 99.0), (2, agreed), (3, 98.0)]}
        for name, agreed in (("smooth", 50.0), ("fast", 80.0), ("tiny", 10.0), ("occlusion", 97.0))
    }
    worst = worst_clips(rows, [1.0, 3.0, 2.0, 0.5])
    assert [row["clip"] for row in worst] == ["fast", "tiny", "smooth"]
    assert worst[1] == {"clip": "tiny", "loss": 2.0, "frame": 2, "agreement": 10.0}
    cut = BUILTIN["paper"]
    (picture,) = pictures_of(source, SMALL, cut, worst[:1])
    assert picture.shape == (96, 320, 3) and picture.dtype == np.uint8
    plain = source.open("fast").video.frame(2)
    for half in (picture[:, :160], picture[:, 160:]):
        assert not np.array_equal(half, plain), "masks are drawn"


def test_the_next_safer_setting_is_the_cheapest_that_lost_less():
    tested = [
        Candidate(BUILTIN["paper"].model_copy(update={"name": name}), 0.5, 0.5, cost, 0.9)
        for name, cost in (("surest", 0.9), ("sure", 0.8), ("odd", 0.75), ("chosen", 0.7))
    ]
    lost = np.array([[0.1, 0.2, 0.9, 0.5]] * 6)
    choice = choose(lost, range(4), [c.cost for c in tested], 0.95, 5.0)
    assert choice.index == 3
    safer = next_safer(choice, tested)
    assert safer == tested[1].profile.model_copy(update={"name": "next safer"})
    alone = choose(lost[:, 3:], range(1), [0.7], 0.95, 5.0)
    assert alone.index == 0 and next_safer(alone, tested[3:]) is None
