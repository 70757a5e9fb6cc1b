"""Questions of the same clips are counted, and their level is divided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.errors import InputError
from sparsity.calibration.ledger import FILE, LATER, ask, level_of
from sparsity.clips.sources import ClipSource


@given(st.floats(0.5, 0.999), st.integers(2, 200))
def test_all_questions_together_err_a_fifth_more_than_one(confidence, count):
    levels = [1 - level_of(number, confidence) for number in range(1, count + 1)]
    assert levels[0] == pytest.approx(1 - confidence) and levels == sorted(levels, reverse=True)
    assert levels[1] < levels[0]
    assert sum(levels) < (1 + LATER) * (1 - confidence) * 1.0001


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in "abcd":
        (folder / f"{name}.mp4").write_bytes(name.encode())
        (folder / f"{name}.png").write_bytes(name.encode())
    return ClipSource(folder, folder)


def test_a_question_is_counted_once_whoever_asks_it_from_wherever(source, tmp_path):
    asked = [ask(source, "ab", {"max_drop": drop}, tmp_path / "x") for drop in (1, 2, 1, 2, 3)]
    assert asked == [1, 2, 1, 2, 3]
    assert ask(source, "bc", {"max_drop": 1}, tmp_path / "y") == 4, "one clip is the same"
    assert ask(source, "d", {"max_drop": 1}, tmp_path / "y") == 1, "none is"
    assert (source.videos / FILE).is_file() and not (tmp_path / "x" / FILE).exists()
    (source.videos / "a.mp4").write_bytes(b"another")
    assert ask(source, "a", {"max_drop": 1}, tmp_path) == 1


def test_made_clips_are_counted_beside_the_result(tmp_path):
    names, tmp_path = ["made-smooth-1"], tmp_path / "new"
    assert [ask(ClipSource(), names, question, tmp_path) for question in (1, 2, 1)] == [1, 2, 1]
    assert (tmp_path / FILE).is_file()


def test_a_damaged_ledger_is_refused(source, tmp_path):
    (source.videos / FILE).write_text('{"a": 1}')
    with pytest.raises(InputError, match="questions.json can't be read"):
        ask(source, "ab", {}, tmp_path)
