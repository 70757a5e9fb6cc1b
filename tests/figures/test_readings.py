"""Readings of recordings: what is asked for is what is given, and what is approximate is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import figures
from figures import readings
from figures.attention import lift
from figures.explorer.content import explorer_content
from probes.errors import InputError
from probes.records import Recording
from tests.figures.made import DECODER, ENCODER, GRID, MEMORY, N, make_recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return make_recording(tmp_path_factory.mktemp("made") / "clip.recording")


def test_recall_is_of_the_share_that_was_asked_for(recording: Recording) -> None:
    clip, shares = recording.clip("clip"), recording.header.settings.keep_shares
    for keep in (0.05, 0.06):
        curve = readings.recall_curves(recording, keep)["layer 0"]
        newest = clip.memory_frame[:, 6] > 0  # frame 0 was prompted
        recorded = clip.recall[newest, 0, 6, shares.index(keep)].astype(float).mean()
        assert curve.recall[0] == pytest.approx(recorded, abs=1e-6)
    with pytest.raises(InputError, match=r"share 0.07 .* 0.06, 0.08"):
        readings.recall_curves(recording, 0.07)


def test_lifts_are_means_over_the_frames_that_are_not_prompted(recording: Recording) -> None:
    clip = recording.clip("clip")
    each = [
        lift(clip.encoder_mass[t, 0].astype(float), clip.masks()[t])
        for t in range(6)
        if not clip.conditioning[t]
    ]
    found = readings.lifts(recording, ENCODER)
    assert len(each) == 5 and found == {"clip": pytest.approx(np.mean(each))}
    assert readings.lifts(recording, "decoder") != found
    with pytest.raises(
        InputError, match="memory.layer1.cross.* holds encoder.stage3.block5.global"
    ):
        readings.lifts(recording, MEMORY)


def test_a_pixel_has_the_map_of_its_token(recording: Recording) -> None:
    for x, column in ((5.0, 7), (155.0, 0)):  # the made encoder mirrors left to right
        found = readings.pixel_map(recording, "clip", ENCODER, 2, (x, 50.0))
        assert np.unravel_index(found.argmax(), found.shape) == (50 * GRID // 90, column)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"xy": (160, 50)}, r"pixel \(160, 50\) .* 160 x 90"),
        ({"xy": (10, -1)}, r"pixel \(10, -1\)"),
        ({"site": MEMORY}, "memory.layer1.cross.* encoder"),
        ({"site": "encoder.stage3.block1.window"}, "block1.window.*block5.global"),
        ({"frame": 6}, "frame 6 .* 0 to 5"),
    ],
)
def test_a_pixel_map_that_was_not_recorded_is_refused(
    recording: Recording, changed: dict[str, Any], words: str
) -> None:
    given = {"name": "clip", "site": ENCODER, "frame": 2, "xy": (10, 50)}
    assert readings.pixel_map(recording, **given).sum() == pytest.approx(1)
    with pytest.raises(InputError, match=words):
        readings.pixel_map(recording, **{**given, **changed})


def test_an_object_map_is_of_an_encoder_site(recording: Recording) -> None:
    clip, queries = recording.clip("clip"), recording.header.settings.row_queries
    assert readings.object_map(clip, queries, ENCODER, 2).sum() == pytest.approx(1)
    with pytest.raises(InputError, match="memory.layer1.cross.* encoder"):
        readings.object_map(clip, queries, MEMORY, 2)


@pytest.mark.parametrize(("side", "words"), [(0, "covers 0 %"), (2, "covers 0.39 %")])
def test_an_object_without_a_stored_query_is_said_to_be_small(
    recording: Recording, side: int, words: str
) -> None:
    """Visible objects too can be smaller than the distance between stored queries."""
    mask = np.zeros((4 * GRID, 4 * GRID), bool)
    mask[13 : 13 + side, 9 : 9 + side] = True
    clip = replace(recording.clip("clip"), best=np.tile(np.packbits(mask), (6, 1)))
    with pytest.raises(InputError, match=rf"object 1 on frame 2, which {words} .* {N} of {N}"):
        readings.object_map(clip, recording.header.settings.row_queries, ENCODER, 2)


def test_what_memory_recalls_is_asked_of_cross_attention(recording: Recording) -> None:
    for read in (
        lambda: readings.key_mass(recording, ENCODER),
        lambda: readings.recollections(recording.clip("clip"), 1, [2], ENCODER),
    ):
        with pytest.raises(InputError, match="expected memory cross-attention"):
            read()


def changed_clip(recording: Recording, change: Callable[[Any], Any]) -> Any:
    """A recording in which clips are changed when they are read."""

    class Changed(Recording):
        def clip(self, name: str) -> Any:
            return change(super().clip(name))

    return Changed(recording.path, recording.header)


def test_the_middle_of_a_block_lies_between_its_quartiles(recording: Recording) -> None:
    def skew(clip: Any) -> Any:
        table = np.zeros((6, 1, 1, 8), np.float32)
        table[0] = 1.0  # five values of 0 and one of 1: their mean lies above the upper quartile
        return replace(clip, encoder_statistics=table)

    for source, middle in ((recording, None), (changed_clip(recording, skew), 0.0)):
        (block,) = readings.breadths(source)
        assert middle is None or block.support == middle
        figure = figures.draw_breadth([block], "my clip")
        bars = [
            side
            for trace in figure.data
            for side in (trace.error_y.array, trace.error_y.arrayminus)
        ]
        assert len(bars) == 4 and all(min(bar) >= 0 for bar in bars)
    assert figure.data[0].y != figures.draw_breadth(readings.breadths(recording), "").data[0].y


def test_the_sampling_of_stored_rows_is_said(recording: Recording) -> None:
    assert readings.row_sampling(recording) == "64 of 64 query rows, 1 x 1 tokens a key, 8 bits"
    few = recording.header.settings.model_copy(update={"row_queries": (3, 9), "row_grid": 4})
    header = recording.header.model_copy(update={"settings": few})
    said = readings.row_sampling(Recording(recording.path, header))
    assert said == "2 of 64 query rows, 2 x 2 tokens a key, 8 bits"


def test_prompted_frames_share_their_slot(tmp_path: Path) -> None:
    """The prompted slot holds all prompted frames that memory held; the film strip shows their mean."""
    for prompted in ((0,), (3, 5)):
        recording = make_recording(tmp_path / f"{len(prompted)}.recording", prompted=prompted)
        clip = recording.clip("clip")
        assert clip.prompt_frames[clip.row(4, 1)].tolist() == list(prompted)
        told = readings.recollections(clip, 1, [4], MEMORY)
        at_prompt = next(item for item in told if item.age == 0)
        assert at_prompt.remembered == prompted[0]
        assert np.sum(at_prompt.mass) == pytest.approx(1 / 7 / len(prompted), rel=1e-5)
    assert N == GRID**2


def test_prompted_frames_are_counted_from_the_bank(tmp_path: Path) -> None:
    """Not from recorded rows: one may be given later, or lie behind the frames that were recorded."""
    recording = make_recording(tmp_path / "clip.recording", prompted=(3, 5))
    for held, share in (([3, -1], 1.0), ([3, 5], 0.5)):

        def hold(clip: Any, held: list[int] = held) -> Any:
            return replace(clip, prompt_frames=np.tile(np.array(held, np.int32), (6, 1)))

        changed = changed_clip(recording, hold)
        told = readings.recollections(changed.clip("clip"), 1, [4], MEMORY)
        at_prompt = next(item for item in told if item.age == 0)
        assert np.sum(at_prompt.mass) == pytest.approx(share / 7, rel=1e-5)
        row = explorer_content(changed, None, None, "light").meta["rows"]["4:1"]
        assert row["prompts"] == [t for t in held if t >= 0] and not row["prompted"]


def test_ages_are_frames_whatever_slot_they_lie_in(recording: Recording) -> None:
    """Four memory frames three apart lie in slots 1 to 3, and are not one to three frames old."""

    def spread(clip: Any) -> Any:
        frames = np.full_like(clip.memory_frame, -1)
        for i, t in enumerate(clip.row_frame.tolist()):
            frames[i, :4] = [0, t - 7, t - 4, t - 1]
        frames[frames < 0] = -1
        late = clip.row_frame + 20
        return replace(
            clip, memory_frame=np.where(frames < 0, -1, frames + 20), row_frame=late, frame=late
        )

    changed = changed_clip(recording, spread)
    clip = changed.clip("clip")
    assert clip.ages()[5].tolist() == [5, -1, 4, 1, -1, -1, -1]
    curve = readings.recall_curves(changed, 0.05)["layer 1"]
    assert list(curve.ages) == [0, 3]
    at = changed.header.settings.keep_shares.index(0.05)
    rows = np.flatnonzero(clip.ages()[:, 2] == 4)
    # what was prompted is not recalled first when it is newest
    rows = rows[clip.memory_frame[rows, 2] != 20]
    expected = clip.recall[rows, 1, 2, at].astype(float).mean()
    assert curve.recall[1] == pytest.approx(expected, rel=1e-3)
    assert readings.similarity(changed, 1, 3) != readings.similarity(changed, 1, 0)
    assert list(readings.recall_curves(recording, 0.05)["layer 1"].ages) == [0, 1, 2, 3]
    told = readings.recollections(clip, 1, [25], MEMORY)
    assert sorted(item.age for item in told) == [0, 1, 4]
    compared = {item.age: item.similarity is not None for item in told}
    assert compared == {0: True, 1: False, 4: True}
    # the prompted frame is compared with itself where it is recalled first
    first = readings.recollections(clip, 1, [21], MEMORY)
    assert all(item.similarity is None for item in first if item.remembered == 20)


def test_concentration_is_of_memory_with_as_many_keys(recording: Recording) -> None:
    clip = recording.clip("clip")
    found = readings.key_mass(recording, MEMORY)
    most = int((clip.memory_frame >= 0).sum(1).max())
    assert found.shape == (int(((clip.memory_frame >= 0).sum(1) == most).sum()), most * N)

    def two(clip: Any) -> Any:
        return replace(clip, prompt_frames=np.tile(np.int32([0, 9]), (6, 1)))

    with pytest.raises(InputError, match="one prompted frame"):
        readings.key_mass(changed_clip(recording, two), MEMORY)


def test_every_statistic_is_read_head_by_head(recording: Recording) -> None:
    clip, settings = recording.clip("clip"), recording.header.settings
    for k, name in enumerate(settings.statistics):
        found = readings.by_head(recording, name, "decoder.*")
        assert list(found) == [DECODER] and len(found[DECODER]) == 2
        expected = clip.object_statistics[:, 1, :, k].astype(float).mean(0)
        assert [one.mean for one in found[DECODER]] == pytest.approx(expected.tolist())
        assert [one.n for one in found[DECODER]] == [1, 1]
    both = readings.by_head(recording, "gini")
    assert both != readings.by_head(recording, "entropy") and list(both) == [ENCODER, DECODER]
    drawn = figures.draw_statistic(both, "gini", "one clip")
    assert [len(trace.y) for trace in drawn.data] == [2, 2]
    for name, sites, words in (
        ("mass", "*", "statistic 'mass' .* entropy, support"),
        ("gini", "memory.*", r"gini of sites 'memory\.\*' .* encoder"),
    ):
        with pytest.raises(InputError, match=words):
            readings.by_head(recording, name, sites)
