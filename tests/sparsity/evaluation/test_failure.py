"""How likely a mask is wrong: the same from a recording and from a run, and nothing learned of the clip that is judged."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from probes.errors import InputError
from probes.estimates import interval
from probes.models import fingerprint
from probes.video import open_video
from sparsity.acceleration.report import FrameReport, ObjectReport, Report
from sparsity.clips.made import make_clip
from sparsity.clips.masks import write_mask
from sparsity.clips.sources import Clip, ClipSource, clip_of
from sparsity.evaluation.evaluate import track
from sparsity.evaluation.failure import (
    ATTENTION_FEATURES,
    Row,
    auc,
    boosted,
    fit_failure,
    judge,
    labels,
    logistic,
    out_of_clip,
    over_left_out,
    reliability,
    rows_of,
)
from sparsity.profile import Profile
from sparsity.techniques.failure import RUN_FEATURES, FailureModel, failure_model_of, load_failure
from sparsity.work.model import ModelChoice, shared_predictor, shared_stock
from sparsity.work.record import SegmentClip, segment_clips
from sparsity.work.segment import RunOptions, run_segment

ANY = "sha256:" + 64 * "0"

CHOICE = ModelChoice(image_size=128, device="cpu")


def made_rows(clips: int = 9, each: int = 40, seed: int = 0) -> list[Row]:
    """Rows whose masks are wrong by a known law of the score: probability 1 / (1 + exp(score)); and a feature of noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for c in range(clips):
        for t in range(each):
            score = float(rng.normal(1, 3))
            wrong = rng.random() < 1 / (1 + math.exp(score))
            row = {
                "clip": f"c{c}",
                "source": f"c{c}",
                "frame": t,
                "object": 1,
                "j": 0.2 if wrong else 0.9,
            }
            rows.append({**row, "score": score, "noise": float(rng.normal()), "place": float(c)})
    return rows


def every_feature() -> FailureModel:
    """A model that takes something of everything a run knows."""
    n = len(RUN_FEATURES)
    return FailureModel(
        model=fingerprint(shared_stock(CHOICE)), image_size=128, features=RUN_FEATURES, mean=(0.5,) * n,
        scale=(4.0,) * n, coefficients=tuple(0.3 + 0.1 * i for i in range(n)), intercept=-0.2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def clip() -> Clip:
    made = make_clip("fast", seed=3, frames=6, size=(96, 160), objects=2)
    return clip_of("fast", open_video(made.frames), made.masks[0], dict(enumerate(made.masks)))


@pytest.fixture(scope="module")
def rows(clip: Clip) -> list[Row]:
    return rows_of(shared_stock(CHOICE), clip)


def test_rows_hold_the_masks_that_are_tracked(clip: Clip, rows: list[Row]) -> None:
    assert [(r["object"], r["frame"]) for r in rows] == [
        (i, t) for i in (1, 2) for t in range(1, 6)
    ]
    masks = track(shared_predictor(CHOICE), clip).masks
    assert clip.truth is not None

    def iou(row: Row, shift: int = 0) -> float:
        found = masks[row["frame"]] == row["object"]
        true = clip.truth[row["frame"] - shift] == row["object"]  # type: ignore[index]
        return float((found & true).sum() / max(1, (found | true).sum()))

    # where objects overlap, a pixel of the tracked masks goes to one of them
    apart = [abs(iou(row) - row["j"]) for row in rows]
    assert max(apart) < 0.02
    assert max(abs(iou(row, 1) - row["j"]) for row in rows) > 0.1


def test_attention_features_are_shares_and_exist(rows: list[Row]) -> None:
    for row in rows:
        assert set(RUN_FEATURES) | set(ATTENTION_FEATURES) <= set(row)
        assert 0 <= row["jump"] <= 1 and 0 <= row["decoder_share"] <= 1
        assert 0 < row["prompt_share"] + row["newest_share"] + row["pointer_share"] <= 1.001
        assert row["age"] >= 1 and math.isfinite(row["entropy"])
    assert rows[0]["newest_share"] == 0 < rows[1]["newest_share"], "the prompt alone is remembered"
    assert rows[0]["age"] == 1 < rows[-1]["age"]


def test_a_run_gives_what_rows_give(clip: Clip, rows: list[Row], tmp_path: Path) -> None:
    model = every_feature()
    model.save(tmp_path / "failure.json")
    wanted = {(r["object"], r["frame"]): model.probability(r) for r in rows}
    outcome = run_segment(
        clip.video, clip.prompts, CHOICE, tmp_path / "out", profile="dense", overlay=False,
        failure=tmp_path / "failure.json",
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())["report"]
    found = {
        (int(i), frame["frame"]): said["failure"]
        for frame in report["frames"]
        for i, said in frame["objects"].items()
    }
    assert found.pop((1, 0)) is None and found.pop((2, 0)) is None, "prompted"
    assert found.keys() == wanted.keys()
    assert all(abs(found[k] - wanted[k]) < 1e-3 for k in wanted)
    assert len(set(found.values())) > 5
    likely = sorted({i for (i, _), p in found.items() if p >= 0.5})
    assert [int(i) for i in report["summary"]["look_at"]] == likely
    assert "look at  " in outcome.summary()


def test_without_a_model_nothing_is_said(clip: Clip, tmp_path: Path) -> None:
    outcome = run_segment(
        clip.video, clip.prompts, CHOICE, tmp_path / "out", profile="dense", overlay=False, max_frames=2
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())["report"]
    assert report["summary"]["look_at"] is None and "look at" not in outcome.summary()
    assert report["frames"][1]["objects"]["1"]["failure"] is None


def test_many_clips_are_judged_by_the_same_file(clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "videos" / "a").mkdir(parents=True)
    (tmp_path / "masks").mkdir()
    for t in range(3):
        Image.fromarray(clip.video.frame(t)).save(tmp_path / "videos" / "a" / f"{t:05d}.png")
    assert clip.truth is not None
    write_mask(tmp_path / "masks" / "a.png", clip.truth[0], "")
    source = ClipSource(tmp_path / "videos", tmp_path / "masks")
    every_feature().save(tmp_path / "m.json")
    options = RunOptions(CHOICE, Profile(name="dense"), overlay=False, failure=tmp_path / "m.json")
    work = SegmentClip(source, tmp_path / "out", options)
    (result,) = segment_clips(work).results.values()
    assert result["look_at"] is not None
    every_feature().model_copy(update={"image_size": 384}).save(tmp_path / "m.json")
    with pytest.raises(InputError, match="was fitted for .* at 384 pixels"):
        segment_clips(replace(work, out=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_clip_without_truth_is_refused(clip: Clip) -> None:
    with pytest.raises(InputError, match="fast has no true masks; expected"):
        rows_of(shared_stock(CHOICE), replace(clip, truth=None))


def test_the_law_is_found_and_a_file_holds_it(tmp_path: Path) -> None:
    rows, wrong = labels(made_rows())
    model = fit_failure(rows, wrong, ("score", "noise"), ANY, 128, masks=len(rows))
    for score in (-4.0, 0.0, 4.0):
        true = 1 / (1 + math.exp(score))
        assert abs(model.probability({"score": score, "noise": 0.0}) - true) < 0.1
    model.save(tmp_path / "m.json")
    assert FailureModel.model_validate_json((tmp_path / "m.json").read_text()) == model
    flipped = fit_failure(rows, [1 - y for y in wrong], ("score", "noise"), ANY, 128)
    assert flipped.probability({"score": 4.0, "noise": 0.0}) > 0.8
    unknown = model.probability({"score": 0.0, "noise": math.nan})
    assert abs(unknown - model.probability({"score": 0.0, "noise": model.mean[1]})) < 1e-12


def test_a_clip_is_judged_by_a_model_of_the_others() -> None:
    rows = made_rows()
    wrong = [int(row["clip"] in ("c0", "c3", "c5", "c8")) for row in rows]
    trees = boosted(("place",))
    inside = trees(rows, wrong)(rows)
    assert auc(wrong, inside) == 1.0, "which clip it is tells all"
    assert auc(wrong, out_of_clip(trees, rows, wrong)) < 0.9, "of others it tells little"


def test_noise_is_no_gain_and_the_score_is() -> None:
    rows, wrong = labels(made_rows())
    known = {name: out_of_clip(logistic((name,)), rows, wrong) for name in ("score", "noise")}
    assert auc(wrong, known["noise"]) < 0.6 < 0.8 < auc(wrong, known["score"])
    judged = judge(rows, wrong, known["score"], known["noise"])
    assert judged.auc.n == 9 and judged.auc.low < judged.auc.mean < judged.auc.high
    assert judged.gain.low > 0
    same = judge(rows, wrong, known["score"], known["score"])
    assert (same.gain.low, same.gain.mean, same.gain.high) == (0, 0, 0)


def test_the_interval_of_a_mean_is_that_of_its_clips() -> None:
    values = np.array([1.0, 2.0, 6.0, 4.0])
    found = over_left_out(lambda at: float(values[at].mean()), ["a", "b", "c", "d"])
    assert np.allclose((found.low, found.high), interval(values)) and found.mean == 3.25
    few = over_left_out(lambda at: float(values[at].mean()), ["a", "a", "b", "b"])
    assert math.isnan(few.low) and few.n == 2


def test_reliability_tells_overconfidence() -> None:
    rows, wrong = labels(made_rows(each=150))
    true = np.array([1 / (1 + math.exp(row["score"])) for row in rows])
    bins = reliability(rows, wrong, true)
    assert sum(one.rows for one in bins) == len(rows)
    assert all(abs(one.predicted - one.wrong.mean) < 0.1 for one in bins)
    sure = np.where(true > 0.5, 0.99, 0.01)
    assert any(abs(one.predicted - one.wrong.mean) > 0.1 for one in reliability(rows, wrong, sure))


def test_looking_ahead_takes_masks_that_are_right() -> None:
    track_of = [0.9, 0.8, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9]
    rows = [{"clip": "a", "object": 1, "frame": t, "j": j} for t, j in enumerate(track_of)]
    chosen, wrong = labels(rows, ahead=2)
    assert [row["frame"] for row in chosen] == [0, 1, 2, 3, 5]
    assert wrong == [0, 0, 1, 1, 0]
    assert labels(rows)[1] == [0, 0, 0, 0, 1, 0, 0, 0]


def test_stretches_to_look_at() -> None:
    def frame(t: int, failure: float | None) -> FrameReport:
        said = {1: ObjectReport(1.0, failure=failure), 2: ObjectReport(1.0, failure=0.1)}
        return FrameReport(t, False, 1, 1, None, "dense", objects=said)

    likely = (3, 4, 6, 12, 16)
    report = Report("dense", False, [frame(t, 0.9 if t in likely else 0.2) for t in range(1, 20)])
    assert report.look_at == {1: [(3, 6), (12, 12), (16, 16)]}
    assert json.loads(report.to_json())["summary"]["look_at"] == {"1": [[3, 6], [12, 12], [16, 16]]}
    assert Report("dense", False, [frame(1, 0.2)]).look_at == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size": 384}, "was fitted for .* at 384 pixels; expected .* at 128; fit one"),
        ({"model": ANY}, "was fitted for sha256:0000000… at 128 pixels; expected"),
        ({"features": ("score",)}, "need one number a feature; fit it anew"),
        ({"features": (*RUN_FEATURES[:-1], "entropy")}, "needs entropy; expected what every run"),
        ({"scale": (0.0,) * len(RUN_FEATURES)}, "greater than 0"),
    ],
)
def test_a_model_that_can_not_be_used_is_refused(
    change: dict[str, Any], said: str, clip: Clip, tmp_path: Path
) -> None:
    good = every_feature().model_dump(mode="json", by_alias=True)
    (tmp_path / "m.json").write_text(json.dumps({**good, **change}))
    with pytest.raises(InputError, match=said):
        run_segment(clip.video, clip.prompts, CHOICE, tmp_path / "out", failure=tmp_path / "m.json")
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_refused_and_all_right_masks_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be used .* expected a failure model"):
        load_failure(tmp_path / "none.json", ANY, 128)
    rows = made_rows()
    with pytest.raises(InputError, match="0 clips have masks that are wrong; expected 2 at least"):
        fit_failure(rows, [0] * len(rows), ("score",), ANY, 128)


def test_the_shipped_model_is_the_demo_model_s() -> None:
    shipped = failure_model_of(fingerprint(shared_stock(ModelChoice())), 384)
    assert shipped is not None and shipped.features == RUN_FEATURES
    assert failure_model_of(shipped.model, 128) is None and failure_model_of(ANY, 384) is None
    well = dict.fromkeys(RUN_FEATURES, 0.0) | {"score": 9.0, "lowest_score": 9.0}
    well |= {"iou": 0.95, "lowest_iou": 0.95}
    lost = {**well, "score": -5.0, "lowest_score": -5.0, "iou": 0.1, "lowest_iou": 0.1, "jump": 0.8}
    assert shipped.probability(well) < 0.2 < 0.5 < shipped.probability(lost)
