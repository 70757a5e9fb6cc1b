"""One progress bar: sam2's own is left out where it is asked for, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
from sam2 import sam2_video_predictor

from probes.tracking import begin_video, without_bar
from probes.video import open_video
from tests.conftest import make_frames, make_mask


def test_sam2_shows_its_bar_where_nobody_hides_it(padded_predictor: Any, capsys: Any) -> None:
    said = {}
    for hide in (True, False):
        state = begin_video(padded_predictor, open_video(make_frames(2)))
        padded_predictor.add_new_mask(state, 0, 1, make_mask())
        frames = padded_predictor.propagate_in_video(state)
        assert [t for t, *_ in (without_bar(frames) if hide else frames)] == [0, 1]
        said[hide] = capsys.readouterr().err
    assert "propagate in video" in said[False] and said[True] == ""


def test_other_threads_keep_theirs_and_sam2_is_left_as_it_was() -> None:
    before, disabled = sam2_video_predictor.tqdm, []

    def note() -> None:
        with sam2_video_predictor.tqdm(range(1)) as bar:
            disabled.append(bar.disable)

    def beginning() -> Iterator[int]:
        note()
        other = Thread(target=note)
        other.start()
        other.join()
        yield 1
        assert sam2_video_predictor.tqdm is before, "a loop that has begun needs nothing"
        raise ValueError

    with pytest.raises(ValueError):
        list(without_bar(beginning()))
    assert disabled == [True, False]
    assert sam2_video_predictor.tqdm is before
