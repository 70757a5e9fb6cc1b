"""Evaluation of annotated clips: figures equal naive ones, runs are compared with dense, bad input is refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt

from probes.errors import InputError
from probes.estimates import interval
from sparsity.acceleration.build import accelerate
from sparsity.clips.made import make_clip
from sparsity.clips.masks import write_mask
from sparsity.clips.sources import Clip, ClipSource
from sparsity.commands import app as cli
from sparsity.evaluation.evaluate import evaluate, evaluate_clip, track
from sparsity.evaluation.quality import agreement, clip_quality, overall, score_masks
from sparsity.evaluation.results import load_result
from sparsity.evaluation.tables import HEADS, table, three_means
from sparsity.profile import BUILTIN, EXACT, Profile, Promise, save_profile
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import Routing
from sparsity.work.model import ModelChoice

CLIPS = {"one": ("smooth", 5), "two": ("distractors", 4), "three": ("static_camera", 4)}
SMALL = ModelChoice(image_size=192, device="cpu")
"""The demo model at a size at which it takes a quarter of the time."""

RANDOM = replace(SMALL, weights="random")
HARSH = Profile(
    name="harsh", routing=Routing(unit="cell", margin_px=0.0), retrieval=Retrieval(keep=0.01)
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short clips in DAVIS layout."""
    root = tmp_path_factory.mktemp("davis")
    for name, (kind, length) in CLIPS.items():
        clip = make_clip(kind, 1, length, (96, 128))
        for folder in ("JPEGImages", "Annotations"):
            (root / folder / "480p" / name).mkdir(parents=True)
        for t in range(length):
            Image.fromarray(clip.frames[t]).save(root / f"JPEGImages/480p/{name}/{t:05d}.jpg")
            write_mask(root / f"Annotations/480p/{name}/{t:05d}.png", clip.masks[t], "")
    return root


@pytest.fixture(scope="module")
def demo():
    return accelerate(SMALL.build(), "dense")


def open_clip(root: Path, name: str) -> Clip:
    return ClipSource(dataset=root).open(name)


def _ids(seed: int) -> np.ndarray:
    """Return two blobs that move with the seed, uint8 [60, 80]; the second one is absent for seed 3."""
    y, x = np.mgrid[:60, :80]
    ids = np.where((y - 20 - seed) ** 2 + (x - 25) ** 2 < 150, 1, 0)
    if seed != 3:
        ids = np.where(((y - 40) / 2) ** 2 + (x - 55 + 3 * seed) ** 2 < 60, 2, ids)
    return ids.astype(np.uint8)


def _border(mask: np.ndarray) -> np.ndarray:
    """Return the pixels whose right, lower or lower right neighbour is on the other side."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    edge = mask ^ padded[:-1, 1:] | mask ^ padded[1:, :-1] | mask ^ padded[1:, 1:]
    edge[-1, -1] = False
    edge[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    edge[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return edge


def _naive_j(found: np.ndarray, true: np.ndarray) -> float:
    union = (found | true).sum()
    return 1.0 if union == 0 else (found & true).sum() / union


def _naive_f(found: np.ndarray, true: np.ndarray) -> float:
    """Match border pixels that lie within 0.008 of the diagonal, rounded up, of the other border."""
    reach = np.ceil(0.008 * np.hypot(*found.shape))
    one, other = _border(found), _border(true)
    if not one.any() and not other.any():
        return 1.0
    if not one.any() or not other.any():
        return 0.0
    precision = (distance_transform_edt(~other)[one] <= reach).mean()
    recall = (distance_transform_edt(~one)[other] <= reach).mean()
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def test_j_and_f_equal_a_naive_implementation():
    truth = [_ids(seed) for seed in range(5)]
    found = [np.roll(_ids(seed), 1, axis=1) for seed in (0, 1, 1, 3, 3)]
    scores = score_masks(found, truth, [1, 2])
    for i in (1, 2):
        pairs = [(f == i, t == i) for f, t in zip(found, truth, strict=True)]
        assert scores[i][0] == pytest.approx(100 * np.mean([_naive_j(*p) for p in pairs]), abs=1e-6)
        assert scores[i][1] == pytest.approx(100 * np.mean([_naive_f(*p) for p in pairs]), abs=1e-6)
    assert score_masks(truth, truth, [1, 2]) == {1: (100, 100), 2: (100, 100)}
    assert score_masks(found[::-1], truth, [1, 2]) != scores


def test_an_object_counts_on_every_frame_even_where_it_is_not_seen_first():
    empty, blob = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    blob[5:15, 5:15] = 1
    # absent and called absent, then missed: a half, not nothing
    assert score_masks([empty, empty], [empty, blob], [1]) == {1: (50, 50)}


def test_first_and_last_frame_are_left_out():
    truth = [_ids(seed) for seed in (0, 1, 2, 4)]
    wrong_ends = [np.zeros_like(truth[0]), *truth[1:3], np.zeros_like(truth[0])]
    assert clip_quality(wrong_ends, truth, [1, 2]).j_and_f == 100
    wrong_middle = [truth[0], np.zeros_like(truth[0]), *truth[2:]]
    assert clip_quality(wrong_middle, truth, [1, 2]).j_and_f == 50
    assert agreement(wrong_middle, truth, [1]) == {1: 75}


def test_clips_weigh_alike_and_so_do_objects_over_all():
    one = clip_quality([_ids(0)] * 3, [_ids(0)] * 3, [1])
    two = clip_quality([_ids(3)] * 3, [_ids(0)] * 3, [1, 2])  # 2 is missed, 1 is off by some pixels
    both = overall({"one": one, "two": two})
    assert both.j == pytest.approx((one.j + two.j) / 2)
    three = [one.objects["1"], two.objects["1"], two.objects["2"]]
    assert both.over_objects.j == pytest.approx(np.mean([item.j for item in three]))
    assert both.over_objects.j != both.j
    assert both.intervals == {}, "two are too few"
    three = overall({"one": one, "two": two, "three": one})
    low, high = interval([one.j, two.j, one.j])
    assert high > 100, "of few clips it may"
    assert three.intervals["j"] == (max(low, 0), 100), "an interval ends where values do"
    assert three.loss is None and "loss" not in three.intervals
    columns = dict(zip(2 * HEADS.split(), three_means(both).split(), strict=True))
    assert columns["J"] == f"{both.j:.1f}", "the second of a name is over clips"
    assert three_means(both).split()[1] == f"{both.over_objects.j:.1f}" != columns["J"]


def test_a_profile_is_compared_with_the_dense_run(root, demo):
    found = evaluate_clip(demo, open_clip(root, "two"), [BUILTIN["exact"], HARSH])
    assert list(found) == ["dense", "exact", "harsh"]
    dense, exact, harsh = (outcome.quality for outcome in found.values())
    assert [outcome.loss for outcome in found.values()] == [
        dense.j_and_f - quality.j_and_f for quality in (dense, exact, harsh)
    ]
    assert dense.agreement is None and dense.frames == 2 and set(dense.objects) == {"1", "2"}
    assert exact.agreement > 99 and exact.keys_kept == 1
    assert harsh.agreement < exact.agreement and harsh.keys_kept < 0.9
    assert harsh.prunable_keys_kept < harsh.keys_kept and harsh.windows_kept < 1
    losses = overall({"two": harsh}, {"two": dense})
    assert losses.loss == pytest.approx(dense.j_and_f - harsh.j_and_f)


def test_the_dense_run_is_stock_sam2(root, demo):
    clip = open_clip(root, "one")
    stock = SMALL.build()
    state = stock.init_state(str(root / "JPEGImages/480p/one"))
    clip.give_to(stock, state)
    with torch.inference_mode():
        theirs = [logits[0, 0] > 0 for _, _, logits in stock.propagate_in_video(state)]
    ours = track(demo, clip).masks.values()
    assert all((one.numpy() == (other == 1)).all() for one, other in zip(theirs, ours, strict=True))
    with demo.use(HARSH):
        other = track(demo, clip).masks.values()
    assert any((one != two).any() for one, two in zip(ours, other, strict=True))


def test_an_evaluation_goes_on_where_it_stopped(root, tmp_path, capsys):
    out, profile = tmp_path / "result.json", tmp_path / "harsh.json"
    profile.write_text(HARSH.to_json())
    words = ["evaluate", str(root), "--profile", str(profile), "--out", str(out)]
    words += ["--device", "cpu", "--image-size", str(SMALL.image_size)]
    broken = root / "JPEGImages/480p/two/00002.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    try:
        assert cli.run(words) == 2
    finally:
        broken.write_bytes(whole)
    assert "1 of 3 clips failed, first two" in capsys.readouterr().err
    assert not out.exists()
    marked, _ = sorted((tmp_path / "result.json.clips").iterdir())
    marked.write_text(marked.read_text().replace('"windows_kept": 1.0', '"windows_kept": 0.125'))

    assert cli.run(words) == 0
    said = capsys.readouterr().out
    assert "dense" in said and "harsh" in said
    result = load_result(out)
    kept = {name: clip.windows_kept for name, clip in result.runs[0].quality.clips.items()}
    assert kept == {"one": 0.125, "three": 1, "two": 1}, "what was done is not done again"
    assert [run.name for run in result.runs] == ["dense", "harsh"]
    assert list(result.runs[0].quality.clips) == sorted(CLIPS)
    assert result.runs[0].frames == 7 and result.runs[0].objects == 4
    assert result.runs[0].quality.j > 60 and result.runs[1].quality.loss > 0
    assert not (tmp_path / "result.json.clips").exists()

    before = out.read_bytes()
    assert cli.run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(before) and out.read_bytes() == before
    assert cli.run([*words, "--profile", "exact"]) == 2
    assert "--force" in capsys.readouterr().err and out.read_bytes() == before


def test_a_clip_that_was_changed_is_not_told_the_old_result(root, tmp_path, capsys):
    mine, out = tmp_path / "set", tmp_path / "result.json"
    shutil.copytree(root, mine)
    before = evaluate(mine, RANDOM, out, only=["three"])
    assert evaluate(mine, RANDOM, out, only=["three"]) == before
    annotation = mine / "Annotations/480p/three/00002.png"
    write_mask(annotation, np.ones((96, 128), np.uint8), "")
    os.utime(annotation, ns=(0, out.stat().st_mtime_ns + 10**9))
    with pytest.raises(InputError, match=r"is older than .*00002.png of clip three; .* --force"):
        evaluate(mine, RANDOM, out, only=["three"])
    assert evaluate(mine, RANDOM, out, only=["three"], force=True) != before


def test_random_weights_are_called_random(root, tmp_path):
    result = evaluate(root, RANDOM, tmp_path / "r.json", only=["one"])
    assert result.data.clips == ["one"] and not result.model.trained
    heads, names, *_ = table(result).splitlines()
    assert heads.split() == ["over", "objects", "over", "clips"] and names.count("J&F") == 2
    assert "RANDOM" in table(result) and result.runs[0].quality.intervals == {}


def _spoilt(root: Path, tmp: Path, what: str) -> list[str]:
    """Return a command line with one thing wrong."""
    listed = tmp / "list.txt"
    listed.write_text("one\n")
    words = [str(root), "--clips", str(listed), "--device", "cpu", "--out", str(tmp / "out.json")]
    if what == "layout":
        words[0] = str(tmp)
    elif what == "list":
        words[2] = str(tmp / "nothing.txt")
    elif what == "clip":
        listed.write_text("one\nthre\n")
    elif what == "empty list":
        listed.write_text("\n")
    elif what == "profile":
        words += ["--profile", "nonsense"]
    elif what == "named dense":
        (tmp / "mine.json").write_text(HARSH.model_copy(update={"name": "dense"}).to_json())
        words += ["--profile", str(tmp / "mine.json")]
    elif what == "twice":
        words += ["--profile", "paper", "--profile", "paper"]
    else:
        copy = tmp / "copy"
        for folder in ("JPEGImages", "Annotations"):
            (copy / folder / "480p" / "one").mkdir(parents=True)
            for path in (root / folder / "480p/one").iterdir():
                (copy / folder / "480p/one" / path.name).write_bytes(path.read_bytes())
        words[0] = str(copy)
        second = copy / "Annotations/480p/one/00001.png"
        if what == "missing":
            second.unlink()
        elif what == "size":
            write_mask(second, np.zeros((10, 12), np.uint8), "")
        elif what == "no object":
            write_mask(second.with_name("00000.png"), np.zeros((96, 128), np.uint8), "")
        elif what == "no picture":
            second.write_bytes(b"no picture")
        elif what == "short":
            for t in (2, 3, 4):
                (copy / f"JPEGImages/480p/one/{t:05d}.jpg").unlink()
    return words


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (
            "layout",
            "is of no known layout; expected the folders of one of them (DAVIS: JPEGImages/480p",
        ),
        ("list", "nothing.txt can't be read"),
        ("clip", "clip 'thre' listed; "),
        ("empty list", "names no clip"),
        ("profile", "neither a file nor a built-in"),
        ("twice", "2 profiles of the name 'paper' given"),
        ("named dense", "a profile of the name 'dense' given that isn't the built-in one"),
        ("missing", "00001.png is missing, one of 1 annotations of clip one"),
        ("size", "00001.png is 12x10; its video is 128x96"),
        ("no object", "00000.png is empty"),
        ("no picture", "can't be read as a picture"),
        ("short", "clip one has 2 frames; expected 3 or more"),
    ],
)
def test_bad_input_ends_with_one_line(what, said, root, tmp_path, capsys):
    assert cli.run(["evaluate", *_spoilt(root, tmp_path, what)]) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown and "\n" not in shown
    assert not (tmp_path / "out.json").exists()


def test_a_result_of_another_form_is_refused(tmp_path):
    (tmp_path / "r.json").write_text('{"schema": "efficient-sam2/result/1", "runs": []}')
    with pytest.raises(InputError, match="environment: .*expected efficient-sam2/result/1"):
        load_result(tmp_path / "r.json")
    with pytest.raises(InputError, match="can't be read"):
        load_result(tmp_path / "nothing.json")


@pytest.fixture
def first_masks(root: Path, tmp_path: Path) -> Path:
    """The same clips with their first masks alone."""
    shutil.copytree(root, tmp_path / "bare")
    for name in CLIPS:
        for mask in sorted((tmp_path / "bare/Annotations/480p" / name).iterdir())[1:]:
            mask.unlink()
    return tmp_path / "bare"


def promising(risk: str, path: Path) -> Path:
    """A profile that promises five points of one risk; of loss it was calibrated on the first clip."""
    promise = Promise(
        mean_loss=1.0,
        upper_bound=5.0,
        confidence=0.95,
        method=EXACT,
        clips=5,
        share=0.45,
        over=5.0,
        risk=risk,
    )
    made_by = {"clips": [next(iter(CLIPS)), "another"]} if risk == "loss" else None
    told = {"promise": promise, "name": f"of {risk}", "made_by": made_by}
    save_profile(HARSH.model_copy(update=told), path)
    return path


def test_what_was_promised_stands_beside_what_is_seen(
    root: Path, first_masks: Path, tmp_path: Path
):
    profiles = [promising(risk, tmp_path / f"{risk}.json") for risk in ("loss", "drift")]
    only = [next(iter(CLIPS))]
    result = evaluate(root, SMALL, tmp_path / "whole.json", profiles=profiles, only=only)
    told = table(result)
    assert "of loss promises at 95%, at most 45% of videos like these lose more than 5.00" in told
    (seen,) = [line for line in told.splitlines() if line.startswith("of loss seen")]
    lost = result.runs[1].quality.loss
    assert f"mean loss {lost:+.2f} over 1 clips" in seen and "First masks alone" not in told
    assert seen.endswith("; 1 of these clips, by their names, are the calibration's own")
    bare = evaluate(first_masks, SMALL, tmp_path / "bare.json", profiles=profiles, only=only)
    told = table(bare)
    assert "First masks alone were given" in told and bare.data.settings["truth"].startswith("none")
    of_loss, of_drift = (
        next(line for line in told.splitlines() if line.startswith(f"of {risk} seen"))
        for risk in ("loss", "drift")
    )
    assert "nothing of it: it is of J&F against true masks" in of_loss
    agreed = bare.runs[2].quality.agreement
    assert (
        f"mean loss {100 - agreed:+.2f} over 1 clips" in of_drift
        and "promised at most 45%" in of_drift
    )
    assert "calibration's own" not in of_drift
    # all frames count here, and those between the first and the last with true masks
    assert bare.runs[0].quality.j_and_f == 100 != result.runs[0].quality.j_and_f


def test_clips_with_and_without_truth_are_not_averaged(
    root: Path, first_masks: Path, tmp_path: Path
):
    name = next(iter(CLIPS))
    shutil.rmtree(first_masks / "Annotations/480p" / name)
    shutil.copytree(root / "Annotations/480p" / name, first_masks / "Annotations/480p" / name)
    with pytest.raises(InputError, match="2 of 3 clips have a first mask alone") as caught:
        evaluate(first_masks, SMALL, tmp_path / "mixed.json")
    assert "\n" not in str(caught.value) and not (tmp_path / "mixed.json").exists()
