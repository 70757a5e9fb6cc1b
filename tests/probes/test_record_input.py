"""What `record` is given: prompts of every kind, streams, names, samples; what differs is told apart or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from figures import readings
from probes.errors import InputError, LeftOut
from probes.recording import record, recorded_clips
from probes.records import ClipRecord


def test_what_a_function_prompts_is_told_apart(
    tmp_path: Path, small_stock: Any, clip_frames: np.ndarray
) -> None:
    def prompt(object_id: int, x: float, frame: int = 0) -> Any:
        return lambda predictor, state: predictor.add_new_points_or_box(
            state, frame, object_id, points=[[x, 48.0]], labels=[1]
        )

    options: dict[str, Any] = {"out": tmp_path / "r", "statistics": "decoder.final.*"}
    few = clip_frames[:2]
    record(small_stock, few, prompt(1, 51), **options)
    stamp = (tmp_path / "r" / "clip.safetensors").stat().st_mtime_ns
    record(small_stock, few, prompt(1, 51), **options)
    assert (tmp_path / "r" / "clip.safetensors").stat().st_mtime_ns == stamp
    for other in (prompt(7, 51), prompt(1, 80), prompt(1, 51, frame=1)):
        with pytest.raises(InputError, match="'clip' is in .* with another prompt"):
            record(small_stock, few, other, **options)


def test_another_sample_is_another_recording(
    tmp_path: Path, small_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    options: dict[str, Any] = {"out": tmp_path / "r", "statistics": "decoder.final.*"}
    record(small_stock, clip_frames[:2], {1: clip_mask}, seed=3, **options)
    record(small_stock, clip_frames[:2], {1: clip_mask}, seed=3, **options)
    assert recorded_clips(small_stock, seed=3, **options) == ["clip"]
    with pytest.raises(InputError, match="another settings"):
        record(small_stock, clip_frames[:2], {1: clip_mask}, seed=4, **options)


def test_a_stream_is_recorded_to_its_end(
    tmp_path: Path, small_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    def streamed(frames: np.ndarray, out: str = "s", most: int | None = None) -> ClipRecord:
        return record(
            small_stock, iter(frames), {1: clip_mask}, out=tmp_path / out, max_frames=most,
            statistics="decoder.final.*",
        ).clip("clip")  # fmt: skip

    known = streamed(clip_frames[:6], "cut", most=4)
    for clip in (streamed(clip_frames[:4]), streamed(clip_frames[:4], "longer", most=9)):
        assert clip.frame.tolist() == [0, 1, 2, 3]
        assert np.array_equal(clip.score, known.score)
    assert not np.array_equal(streamed(clip_frames[1:5], "other").score, known.score)
    for most in (None, 4, 9):
        assert np.array_equal(streamed(clip_frames[:4], most=most).score, known.score)
    for frames, most in ((clip_frames[:5], None), (clip_frames[:3], None), (clip_frames[:4], 3)):
        with pytest.raises(InputError, match="'clip' is in"):
            streamed(frames, most=most)
    assert streamed(clip_frames[:5], most=4).frame.tolist() == [0, 1, 2, 3]


def test_a_stream_is_not_tracked_back(
    tmp_path: Path, small_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    def give(predictor: Any, state: Any) -> None:
        predictor.add_new_mask(state, 2, 1, clip_mask)

    clip = record(
        small_stock, iter(clip_frames[:4]), give, out=tmp_path / "r", statistics="decoder.final.*"
    ).clip("clip")
    assert clip.frame.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "seq/01"}, "'seq/01' was given; expected a file name"),
        ({"name": "x" * 300}, "expected a file name"),
        ({"prompts": {}}, "no prompts were given"),
        ({"prompts": lambda predictor, state: None}, "no prompts were given"),
        ({"prompts": {3: np.zeros((96, 128), bool)}}, "object 3 on frame 0: the mask is empty"),
        ({"rows": "memory.*.cross", "row_side": 0}, "row_side 0 given; .* up to 8"),
        (
            {"prompts": {3: np.ones((48, 64), bool)}},
            r"object 3 on frame 0: a mask of shape \[48, 64\] given; expected \[96, 128\]",
        ),
    ],
    ids=["folder", "long", "none", "nothing", "empty", "queries", "size"],
)
def test_what_cannot_be_recorded_is_refused_first(
    tmp_path: Path,
    small_stock: Any,
    clip_frames: np.ndarray,
    clip_mask: np.ndarray,
    change: dict[str, Any],
    message: str,
) -> None:
    given = {"prompts": {1: clip_mask}, "name": "seq-01"} | change
    with pytest.raises(InputError, match=message) as caught:
        record(small_stock, clip_frames[:2], out=tmp_path / "r", **given)
    assert "\n" not in str(caught.value) and not (tmp_path / "r").exists()


def test_the_model_is_called_by_its_name(
    tmp_path: Path,
    small_stock: Any,
    dividing_predictor: Any,
    clip_frames: np.ndarray,
    clip_mask: np.ndarray,
) -> None:
    def name(predictor: Any, **options: str) -> str:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        return record(
            predictor,
            clip_frames[:1],
            {1: clip_mask},
            out=out,
            statistics="decoder.final.*",
            **options,
        ).header.model.name

    assert name(small_stock) == "demo"
    assert name(dividing_predictor) == "random"
    assert name(small_stock, model="mine") == "mine"


def test_an_object_that_comes_later_is_recorded_from_its_prompt_on(
    tmp_path: Path, small_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    """Stock sam2 can't track it before, in float32; the other object is as without it, and it as without the other."""

    def prompt(*wanted: int) -> Any:
        def give(predictor: Any, state: Any) -> None:
            if 1 in wanted:
                predictor.add_new_mask(state, 0, 1, clip_mask)
            if 2 in wanted:
                predictor.add_new_points_or_box(state, 2, 2, points=[[51.0, 48.0]], labels=[1])

        return give

    options: dict[str, Any] = {"out": tmp_path / "r", "statistics": "decoder.final.*"}
    clips = {
        name: record(small_stock, clip_frames[:5], prompt(*wanted), name=name, **options).clip(name)
        for name, wanted in {"both": (1, 2), "one": (1,), "two": (2,)}.items()
    }
    both = clips["both"]
    rows = list(zip(both.row_frame.tolist(), both.row_object.tolist(), strict=True))
    assert rows == [(0, 1), (1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2)]
    for name, i in (("one", 1), ("two", 2)):
        alone = clips[name]
        forward = ~alone.reverse
        assert np.array_equal(both.score[both.row_object == i], alone.score[forward])
    assert not np.array_equal(
        both.score[both.row_object == 1][2:], both.score[both.row_object == 2]
    )
    with pytest.warns(
        LeftOut, match="objects 2 come after the last frame that is tracked, left out"
    ):
        cut = record(
            small_stock, clip_frames[:5], prompt(1, 2), name="cut", max_frames=2, **options
        )
    assert cut.clip("cut").row_object.tolist() == [1, 1]
    with pytest.raises(InputError, match="object 1 on frame 4 .* it on frames 0 to 1"):
        cut["cut"].row(4, 1)
    with pytest.raises(InputError, match=r"object 2 on frame 1 .* objects \[1\]"):
        cut["cut"].row(1, 2)


@pytest.mark.parametrize("given", [{"max_frames": 0}, {"max_frames": -1}, {"query_rows": 0}])
def test_numbers_below_one_are_refused(
    given: dict[str, int], tmp_path: Path, small_stock: Any, clip_frames: np.ndarray
) -> None:
    with pytest.raises(InputError, match="expected 1 or more of each"):
        record(
            small_stock, clip_frames, {1: clip_frames[0, ..., 0] > 0}, out=tmp_path / "r", **given
        )
    assert not (tmp_path / "r").exists()


def test_more_queries_can_be_asked_for_where_an_object_is_small(
    tmp_path: Path, demo_stock: Any, clip_frames: np.ndarray
) -> None:
    small = np.zeros(clip_frames.shape[1:3], bool)
    small[42:48, 48:56] = True  # one of 16 x 16 tokens
    site = "encoder.stage3.block9.global"
    for side, there in ((4, False), (16, True), (99, True)):
        recording = record(
            demo_stock, clip_frames[:1], {1: small}, out=tmp_path / str(side), statistics="decoder.final.*",
            rows=site, row_side=side,
        )  # fmt: skip
        queries = recording.header.settings.row_queries
        assert len(queries) == min(side, 16) ** 2
        if there:
            assert readings.object_map(recording.clip("clip"), queries, site, 0).sum() > 0.9
        else:
            with pytest.raises(InputError, match=r"16 of 256 are; .*row_side=16"):
                readings.object_map(recording.clip("clip"), queries, site, 0)
