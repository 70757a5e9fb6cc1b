"""Figures of single data sets equal naive ones written from their definitions, and are taken where the data says so."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from skimage.morphology import disk

from probes.errors import InputError
from sparsity.clips.boxes import BoxClip, box_of
from sparsity.evaluation.quality import score_masks
from sparsity.evaluation.results import ClipQuality, ObjectQuality
from sparsity.evaluation.rules import (
    RULES,
    SEEN,
    Rules,
    Track,
    adapted_f,
    mosev2,
    object_figures,
    overall_figures,
    overlaps,
    rules_of,
    success,
)

SIZE = (120, 160)


def disc(x: float, y: float, radius: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


# ---------------------------------------------------------------------- MOSEv2


def _border(mask: np.ndarray) -> set[tuple[int, int]]:
    """Pixels one of whose neighbours right, below or right below is on the other side."""
    height, width = mask.shape
    return {
        (y, x)
        for y in range(height)
        for x in range(width)
        for ny, nx in ((y, x + 1), (y + 1, x), (y + 1, x + 1))
        if mask[y, x] != mask[min(ny, height - 1), min(nx, width - 1)]
    }


def _naive_adapted_f(found: np.ndarray, true: np.ndarray) -> float:
    """Look for a border pixel of the other mask in every pixel's surroundings."""
    most = 0.008 * np.hypot(*true.shape)
    reach = disk(min(most, np.ceil(0.1 * np.sqrt(true.sum()))))
    middle = reach.shape[0] // 2
    steps = [(y - middle, x - middle) for y, x in zip(*np.nonzero(reach), strict=True)]
    one, other = _border(found), _border(true)
    if not one or not other:
        return float(not one and not other)

    def near(pixels: set[tuple[int, int]], goal: set[tuple[int, int]]) -> float:
        hits = [any((y + dy, x + dx) in goal for dy, dx in steps) for y, x in pixels]
        return sum(hits) / len(hits)

    precision, recall = near(one, other), near(other, one)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("radius", [3, 8, 30], ids=["small", "middle", "large"])
def test_adapted_f_equals_a_naive_one(radius: float) -> None:
    true = disc(60, 60, radius)
    scores = []
    for shift in (0, 1, 2, 4):
        found = disc(60 + shift, 60, radius)
        scores.append(adapted_f(found, true))
        assert scores[-1] == pytest.approx(_naive_adapted_f(found, true), abs=1e-12)
    assert scores[0] == 1 and scores[-1] < 1
    assert adapted_f(np.zeros(SIZE, bool), true) == 0 == adapted_f(true, np.zeros(SIZE, bool))
    assert adapted_f(np.zeros(SIZE, bool), np.zeros(SIZE, bool)) == 1


def test_a_small_object_is_held_to_a_tighter_boundary() -> None:
    for radius, tighter in ((10, True), (150, False)):
        true, found = (disc(x, 200, radius, (480, 640)) for x in (200, 204))
        ((_, usual),) = score_masks([found[None]], [true[None]], [1]).values()
        assert (100 * adapted_f(found, true) < usual - 1) == tighter


def _naive_mosev2(found: list[np.ndarray], true: list[np.ndarray]) -> dict[str, list[float]]:
    """J&F of each stretch of frames that the object is gone from or back in, the first stretch apart."""
    both = []
    for one, other in zip(found, true, strict=True):
        j = (np.logical_and(one, other).sum() + 1) / (np.logical_or(one, other).sum() + 1)
        both.append((j + _naive_adapted_f(one, other)) / 2)
    stretches: dict[str, list[float]] = {"gone": [], "back": []}
    frames = groupby(range(len(true)), key=lambda t: bool(true[t].any()))
    for number, (there, of_stretch) in enumerate(frames):
        if number:
            mean = float(np.mean([both[t] for t in of_stretch]))
            stretches["back" if there else "gone"].append(mean)
    return {**stretches, "all": both}


@pytest.mark.parametrize(
    "there", [[1, 0, 0, 1, 1, 0, 1], [0, 0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1]]
)
def test_gone_and_back_equal_a_naive_implementation(there: list[int]) -> None:
    empty = np.zeros(SIZE, bool)
    true = [disc(40 + 5 * t, 60, 9) if seen else empty for t, seen in enumerate(there)]
    found = [disc(41 + 5 * t, 60, 9) if t not in (2, 3) else empty for t in range(len(there))]
    figures, naive = mosev2(found, true), _naive_mosev2(found, true)
    assert figures["J&F adapted"] == pytest.approx(100 * np.mean(naive["all"]))
    for name in ("gone", "back"):
        assert (f"J&F {name}" in figures) == bool(naive[name])
        if naive[name]:
            assert figures[f"J&F {name}"] == pytest.approx(100 * np.mean(naive[name]))
    assert mosev2(true, true)["J&F adapted"] == 100 != figures["J&F adapted"]


# ---------------------------------------------------------------------- VOST, LVOS, YouTube-VOS


def _track(frames: int = 10) -> Track:
    true = [disc(40 + 3 * t, 60, 12) for t in range(frames)]
    found = [disc(40 + 3 * t + t / 2, 60, 12) for t in range(frames)]
    return Track(found, true, 0, [f"{5 * t + 1:08d}" for t in range(frames)])


def _naive_j(track: Track, frames: list[int]) -> float:
    pairs = [(track.found[t], track.true[t]) for t in frames]
    return 100 * float(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))


def test_vost_tells_the_last_quarter_of_the_frames_that_count() -> None:
    track = _track(10)  # frames 1 to 8 count, so 7 and 8 are the last quarter
    figures = object_figures(Rules("VOST"), track, "clip", 1)
    assert figures["J"] == pytest.approx(_naive_j(track, list(range(1, 9))))
    assert figures["J last quarter"] == pytest.approx(_naive_j(track, [7, 8]))
    assert figures["J last quarter"] < figures["J"] - 1
    assert object_figures(Rules("VOST"), replace(track, start=4), "clip", 1) != figures


def test_lvos_counts_from_the_prompt_to_before_the_last_frame_of_the_object() -> None:
    track = _track(10)
    ends = {"start": "6", "end": "36", "frame_nums": 6}
    rules = Rules("LVOS", {"clip": {"1": {"frame_range": ends}}})
    figures = object_figures(rules, track, "clip", 1)
    assert figures["J"] == pytest.approx(_naive_j(track, [1, 2, 3, 4, 5, 6]))
    assert figures["J"] != pytest.approx(_naive_j(track, [2, 3, 4, 5, 6]))
    assert object_figures(rules, track, "clip", 2) == {}


def _clips() -> dict[str, ClipQuality]:
    """Two clips, three objects."""
    j = {"a": {"1": 50.0, "2": 80.0}, "b": {"1": 20.0}}
    return {
        name: ClipQuality(
            j=0,
            f=0,
            j_and_f=0,
            frames=3,
            objects={i: ObjectQuality(j=v, f=v + 10, j_and_f=v + 5) for i, v in each.items()},
        )
        for name, each in j.items()
    }


def _meta(**categories: str) -> dict[str, dict[str, dict[str, str]]]:
    found: dict[str, dict[str, dict[str, str]]] = {}
    for place, category in categories.items():
        found.setdefault(place[0], {})[place[1]] = {"category": category}
    return found


def test_g_of_youtube_vos_is_the_mean_of_seen_and_unseen() -> None:
    rules = Rules("YouTube-VOS", _meta(a1="dog", a2="sedan", b1="nyala"))
    figures = overall_figures(rules, _clips())
    assert figures == {"G": 47.5, "J seen": 65, "F seen": 75, "J unseen": 20, "F unseen": 30}
    other = overall_figures(replace(rules, seen=frozenset({"nyala", "dog"})), _clips())
    assert other["J seen"] == 35 and other["G"] != figures["G"]
    assert set(overall_figures(Rules("YouTube-VOS", _meta(a1="dog")), _clips())) == {
        "J seen",
        "F seen",
    }
    assert len(SEEN) == 65


# ---------------------------------------------------------------------- boxes


def _naive_success(found: np.ndarray, clip: BoxClip) -> float:
    """Count pixels of whole boxes, frame by frame and threshold by threshold."""

    def pixels(box: np.ndarray) -> set[tuple[int, int]]:
        x, y, w, h = (int(v) for v in box)
        return {(c, r) for c in range(x, x + w) for r in range(y, y + h)}

    rates = []
    before = clip.boxes[0]
    overlap = {}
    for t, box in enumerate(found):
        before = clip.boxes[0] if t == 0 else box if box[2] > 0 and box[3] > 0 else before
        if clip.seen[t]:
            one, other = pixels(before), pixels(clip.boxes[t])
            overlap[t] = len(one & other) / len(one | other)
    frames = len(found) if clip.flagged else len(overlap)
    for n in range(21):
        rates.append(sum(o > n / 20 for o in overlap.values()) / frames)
    return 100 * float(np.mean(rates))


@pytest.mark.parametrize("flagged", [False, True], ids=["elsewhere", "LaSOT"])
def test_success_equals_a_naive_implementation(flagged: bool) -> None:
    rng = np.random.default_rng(3)
    true = np.concatenate([rng.integers(5, 20, (12, 2)), rng.integers(6, 15, (12, 2))], 1)
    found = true + rng.integers(-3, 4, (12, 4))
    found[4] = 0
    seen = np.ones(12, bool)
    seen[[5, 6]] = False
    clip = BoxClip("c", [str(t) for t in range(12)], (50, 50), true.astype(float), seen, flagged)
    score = success(found.astype(float), clip)
    assert score == pytest.approx(_naive_success(found, clip))
    best = success(clip.boxes, clip)
    assert best == pytest.approx(100 * 20 / 21 * (10 / 12 if flagged else 1)) and score < best - 5


def test_boxes_of_masks_hold_all_their_pixels() -> None:
    mask = np.zeros((9, 9), bool)
    mask[2:5, 3:8] = True
    assert box_of(mask).tolist() == [3, 2, 5, 3]
    mask[8, 0] = True
    assert box_of(mask).tolist() == [0, 2, 8, 7]
    assert box_of(np.zeros((9, 9), bool)).tolist() == [0, 0, 0, 0]
    assert overlaps(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [0]


# ---------------------------------------------------------------------- whose rules


def _set(root: Path, meta: object = None) -> Path:
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True)
    if meta is not None:
        (root / "meta.json").write_text(json.dumps(meta))
    return root


def _videos(**entry: object) -> dict[str, object]:
    return {"videos": {"a": {"objects": {"1": entry}}}}


def test_the_data_says_whose_rules_fit(tmp_path: Path) -> None:
    assert rules_of(_set(tmp_path / "plain")).name is None
    assert rules_of(_set(tmp_path / "broken", ["nothing"])).name is None
    youtube = _set(tmp_path / "y" / "valid", _videos(category="dog", frames=["00000"]))
    assert rules_of(youtube) == Rules("YouTube-VOS", _meta_of("category", "dog"), SEEN)
    ends = {"start": "1", "end": "9"}
    assert rules_of(_set(tmp_path / "l", _videos(frame_range=ends))).name == "LVOS"
    vost = _set(tmp_path / "v")
    assert rules_of(vost).name is None
    (vost / "ImageSets").mkdir()
    (vost / "ImageSets" / "val.txt").write_text("a\n")
    assert rules_of(vost).name == "VOST"
    assert rules_of(_set(tmp_path / "MOSEv2" / "train")).name == "MOSEv2"
    assert rules_of(tmp_path / "MOSEv2").name == "MOSEv2"
    assert rules_of(tmp_path / "plain", "mosev2").name == "MOSEv2"


def _meta_of(key: str, value: object) -> dict[str, dict[str, dict[str, object]]]:
    return {"a": {"1": {key: value, "frames": ["00000"]}}}


def test_the_training_set_beside_says_what_was_seen(tmp_path: Path) -> None:
    valid = _set(tmp_path / "valid", _videos(category="dog"))
    assert "dog" in rules_of(valid).seen
    _set(tmp_path / "train", _videos(category="nyala"))
    assert rules_of(valid).seen == {"nyala"}


def test_rules_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    root = _set(tmp_path / "plain")
    with pytest.raises(InputError, match=f"rules 'coco' given; expected one of {', '.join(RULES)}"):
        rules_of(root, "coco")
    with pytest.raises(InputError, match=r"meta.json names no category of any object"):
        rules_of(root, "YouTube-VOS")
    with pytest.raises(InputError, match=r"meta.json names no frame_range"):
        rules_of(root, "LVOS")
