"""The table of a recording: each number that was recorded is in one row, under its name, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import probes
from probes import tables
from probes.errors import InputError
from probes.records import Recording
from probes.tables import COLUMNS, check_tables, place_of, write_table
from tests.figures.made import DECODER, ENCODER, FRAMES, make_recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Prompted on frames 3 and 5, and tracked back from there."""
    return make_recording(tmp_path_factory.mktemp("made") / "clip.recording", prompted=(3, 5))


@pytest.fixture(scope="module")
def table(recording: Recording) -> Any:
    return recording.to_frame()


def value(table: Any, **where: Any) -> float:
    """The one number under some columns."""
    for name, wanted in where.items():
        table = table[table[name] == wanted]
    assert len(table) == 1
    return float(table["value"].iloc[0])


def test_each_number_stands_under_its_name(recording: Recording, table: Any) -> None:
    clip, settings = recording["clip"], recording.header.settings
    assert tuple(table.columns) == COLUMNS and set(table["clip"]) == {"clip"}
    i, t = clip.row(4, 1), clip.frame.tolist().index(4)
    at = {"frame": 4, "object": 1}
    assert value(table, **at, statistic="score") == pytest.approx(float(clip.score[i]))
    for name in ("entropy", "gini", "lift"):
        k = settings.statistics.index(name)
        found = value(table, frame=4, statistic=name, site=DECODER, head=1)
        assert found == pytest.approx(float(clip.object_statistics[i, 1, 1, k]))
        seen = table[(table["site"] == ENCODER) & table["object"].isna()]
        found = value(seen, frame=4, statistic=name, head=0, block=5, stage=3)
        assert found == pytest.approx(float(clip.encoder_statistics[t, 0, 0, k]))
        assert found != value(seen, frame=4, statistic=name, head=1)
    memory = {**at, "layer": 1, "site": "memory.layer1.cross"}
    slot = 6  # frame 3, one back
    assert clip.ages()[i, slot] == 1
    share = settings.keep_shares.index(0.05)
    for name, of in (
        ("recall_0.05", clip.recall[..., share]),
        ("best_recall_0.05", clip.oracle_recall[..., share]),
        ("share", clip.slot_share),
    ):
        newest, prompt = (
            value(table, **memory, statistic=name, age=1, slot=s) for s in ("6", "prompt")
        )
        assert newest == pytest.approx(float(of[i, 1, slot]))
        assert prompt == pytest.approx(float(of[i, 1, 0])) != newest
    assert value(table, **memory, statistic="cs", age=2) == pytest.approx(
        float(clip.similarity[i, 1, 5, 0])
    )
    found = value(table, **memory, statistic="share", slot="pointer")
    assert found == pytest.approx(float(clip.slot_share[i, 1, -1]))


def test_what_does_not_exist_has_no_row(recording: Recording, table: Any) -> None:
    clip = recording["clip"]
    assert not table["value"].isna().any()
    scores = table[table["statistic"] == "score"]
    assert len(scores) == FRAMES
    assert scores["prompted"].tolist() == clip.conditioning.tolist()
    assert scores["reverse"].tolist() == clip.reverse.tolist() and clip.reverse.any()
    assert scores["site"].isna().all() and scores["head"].isna().all()
    there = int((clip.memory_frame >= 0).sum()) + FRAMES  # and the pointers
    layers = recording.header.model.layers
    assert len(table[table["statistic"] == "share"]) == there * layers
    assert set(table[table["frame"] == 5]["age"].dropna()) == set()  # prompted: recalls nothing
    assert place_of("decoder.final.token_to_image") == {"site": "decoder.final.token_to_image"}


def test_a_table_is_kept_as_parquet(table: Any, tmp_path: Path) -> None:
    out = tmp_path / "table.parquet"
    check_tables(out)
    write_table(table, out)
    pd.testing.assert_frame_equal(pd.read_parquet(out), table)
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]
    for bad, words in (("table.csv", "ends in .parquet"), ("none/t.parquet", "is no folder")):
        with pytest.raises(InputError, match=words):
            check_tables(tmp_path / bad)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "find_spec", lambda name: None if name == "pyarrow" else name)
    check_tables()
    with pytest.raises(
        InputError, match=r"pyarrow not installed; .*'efficient-sam2\[tables\]'"
    ) as caught:
        check_tables(tmp_path / "a.parquet")
    assert "\n" not in str(caught.value)


def test_a_recording_is_shown_in_a_line_and_read_by_name(recording: Recording) -> None:
    for said in (repr(recording), repr(recording["clip"])):
        assert len(said) < 200 and "\n" not in said and f"{FRAMES} frames" in said
    shown = recording._repr_html_()
    assert len(shown) < 2000 and "<td>clip</td>" in shown
    assert list(recording.clips) == recording.names == ["clip"]
    assert recording.clips["clip"].frames == FRAMES
    opened = probes.load_recording(recording.path)
    assert np.array_equal(opened["clip"].frame, recording.clip("clip").frame)
    with pytest.raises(InputError, match="clip 'other' was asked for; .* holds clip"):
        recording["other"]
    named = recording.header.clips[0].model_copy(update={"name": "<b>"})
    header = recording.header.model_copy(update={"clips": (named,) * 30})
    many = Recording(recording.path, header)._repr_html_()
    assert "<b>" not in many and "and 10 more" in many
