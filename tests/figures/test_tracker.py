"""What tracking in a notebook needs of Python: what the browser is told and gets, and what people call."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import figures
from figures.picker import runs
from figures.tracker import Tracker
from probes import InputError, build_predictor, open_video, read_prompts
from sparsity import accelerate
from tests.conftest import FRAMES, HEIGHT, WIDTH

POINT = {"frame": 2, "object": 1, "label": "disc", "points": [[50, 48]]}
BESIDE = {"frame": 3, "object": 1, "points": [[5.5, 5, 0]]}


@pytest.fixture(scope="module")
def stock() -> Any:
    return build_predictor("demo", image_size=128, device="cpu")


@pytest.fixture(scope="module")
def fast(stock: Any) -> Any:
    return accelerate(stock, "paper")


class Said(list[tuple[dict[str, Any], Any]]):
    """What a session says to its browser."""

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return messages of a kind, once all threads have said theirs."""
        for thread in threading.enumerate():
            if thread.name == "track":
                thread.join()
        return [message for message, _ in self if message.get("kind") == kind]


@pytest.fixture
def listened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Said]:
    """All that sessions say."""
    said = Said()
    monkeypatch.setattr(
        Tracker, "send", lambda self, message, buffers=None: said.append((message, buffers))
    )
    yield said


def test_a_session_tracks_and_is_corrected(
    fast: Any, clip_frames: np.ndarray, listened: Said, tmp_path: Path
) -> None:
    session = figures.track(fast, clip_frames, [POINT])
    session.wait()
    first = {t: masks[1] for t, masks in session.masks.items()}
    assert list(first) == list(range(FRAMES)) and first[2].shape == (HEIGHT, WIDTH)
    assert [told["frame"] for told in listened.of("tracked")] == [2, 3, 4, 5, 6, 7, 1, 0]
    assert listened.of("phase")[-1] == {**listened.of("phase")[-1], "phase": "done", "error": None}
    listened.clear()
    session._handle_custom_msg({"kind": "give", "key": "a", "given": [POINT, BESIDE]}, [])
    session.wait()
    assert [told["kept"] for told in listened.of("back")] == [[2]]
    assert [told["frame"] for told in listened.of("tracked")] == [3, 4, 5, 6, 7, 1, 0]
    second = {t: masks[1] for t, masks in session.masks.items()}
    assert (first[2] == second[2]).all() and (first[3] != second[3]).any()
    assert [(p.frame, p.label) for p in session.prompts] == [(2, "disc"), (3, "")]
    session.save(tmp_path / "prompts.json")
    assert json.loads((tmp_path / "prompts.json").read_text()) == [POINT, BESIDE]


def test_the_report_is_of_each_frame_once(
    fast: Any, clip_frames: np.ndarray, listened: Said
) -> None:
    session = figures.track(fast, clip_frames, [POINT])
    session.wait()
    session.give([POINT, BESIDE])
    session.wait()
    report = session.report
    assert [frame.frame for frame in report.frames] == list(range(FRAMES))
    assert report.reasons["prompt"] == 2 and report.profile == "paper"
    session.give([POINT])
    session.wait()
    assert session.report.reasons["prompt"] == 1 and len(session.report.frames) == FRAMES
    told = listened.of("tracked")[-1]
    assert told["total"] == told["side"] ** 2 and told["reason"] == session.report.frames[0].reason
    assert 0 < session.meta["window"] <= 1


def test_what_the_browser_asks_for(fast: Any, clip_frames: np.ndarray, listened: Said) -> None:
    session = figures.track(fast, clip_frames, [POINT])
    session.wait()
    listened.clear()
    for kind, asked in {"begin": None, "frame": 3, "masks": 3, "nothing": 0}.items():
        session._handle_custom_msg({"kind": kind, "key": kind, "given": asked}, [])
    (begun, _), (_, (picture,)), (masks, _) = listened
    assert begun["entries"] == [POINT] and begun["phase"] == "done"
    assert {fact["frame"] for fact in begun["frames"]} == set(range(FRAMES))
    assert picture[:2] == b"\xff\xd8" and masks["runs"] == {1: runs(session.masks[3][1])}
    json.dumps(begun)
    listened.clear()
    wrong = [{"frame": 99, "object": 1, "points": [[1, 1]]}]
    session._handle_custom_msg({"kind": "give", "key": "a", "given": wrong}, [])
    assert "the video has frames 0 to 7" in listened[0][0]["failed"]
    assert [p.frame for p in session.prompts] == [2], "it stays as it was"
    session._handle_custom_msg({"kind": "give", "key": "b", "given": []}, [])
    session._run.stop()
    assert session.prompts == () and len(session.masks) == 0
    with pytest.raises(InputError, match="no prompts were given"):
        session.wait()


def test_a_stock_predictor_has_no_report(
    stock: Any, fast: Any, clip_frames: np.ndarray, listened: Said
) -> None:
    session = figures.track(stock, clip_frames, [POINT])
    session.wait()
    assert session.meta["window"] is None and "reason" not in listened.of("tracked")[0]
    with pytest.raises(InputError, match="a stock predictor's run"):
        _ = session.report
    with fast.use("dense"):  # what is in force here is in force in the thread
        dense = figures.track(fast, clip_frames, [POINT])
    routed = figures.track(fast, clip_frames, [POINT])
    for other in (dense, routed):
        other.wait()
    assert dense.report.profile == "dense" and routed.report.profile == "paper"
    for t, masks in session.masks.items():
        assert (masks[1] == dense.masks[t][1]).all()
    assert any((routed.masks[t][1] != dense.masks[t][1]).any() for t in dense.masks)


def test_it_stops_and_goes_on(fast: Any, clip_frames: np.ndarray, listened: Said) -> None:
    session = figures.track(fast, clip_frames)
    told = session._run.tell

    def stopping(what: str, frame: int) -> None:
        told(what, frame)
        if (what, frame) == ("frame", 4):
            session._run._stopped = True  # as stop() sets it, which waits for this thread

    session._run.tell = stopping
    session.give([POINT])
    session._run.stop()
    partly = dict(session.masks)
    assert set(partly) <= {2, 3, 4} and session._run.phase == "stopped"
    session._run.tell = told
    session.wait()
    assert session._run.phase == "done" and len(session.masks) == FRAMES
    straight = figures.track(fast, clip_frames, [POINT])
    straight.wait()
    for t, masks in session.masks.items():
        assert (masks[1] == straight.masks[t][1]).all()


def test_what_fails_in_the_thread_is_raised_and_told(
    fast: Any, clip_frames: np.ndarray, listened: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = figures.track(fast, clip_frames)
    source, whole = session._run._source, session._run._state["images"]
    session._run._state["images"] = None  # as if the video had gone away
    session.give([POINT])
    with pytest.raises(TypeError):
        session.wait()
    told = listened.of("phase")[-1]
    assert told["phase"] == "failed" and told["error"].startswith("TypeError: ")
    assert "\n" not in told["error"]
    session._run._state["images"] = whole
    session.go_on()
    session.wait()
    assert len(session.masks) == source.num_frames


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"video": iter([])}, "a stream given to track and correct"),
        ({"prompts": [{"frame": 8, "points": [[1, 1]]}]}, "the video has frames 0 to 7"),
        ({"prompts": lambda predictor, state: None}, "a function given as prompts"),
    ],
)
def test_what_cannot_be_tracked_is_refused(
    stock: Any, clip_frames: np.ndarray, given: dict[str, Any], words: str
) -> None:
    video = given.get("video")
    if video is not None:
        video = iter(clip_frames)
    with pytest.raises(InputError, match=words):
        figures.track(stock, clip_frames if video is None else video, given.get("prompts"))


def test_prompts_that_are_there_are_gone_on_from(clip_frames: np.ndarray, tmp_path: Path) -> None:
    mask = clip_frames[0].max(-1) > 200
    removed = {"frame": 5, "object": 1, "remove": True}
    box = {"frame": 0, "object": 2, "box": [10, 20.5, 80, 90]}
    (tmp_path / "p.json").write_text(json.dumps([box, POINT, BESIDE, removed]))
    picker = figures.pick(clip_frames, prompts=tmp_path / "p.json")
    assert picker.entries == [box, POINT, BESIDE, removed]
    painted = figures.pick(clip_frames, prompts={3: mask})
    assert (painted.prompts[0].mask == mask).all() and painted.prompts[0].object == 3
    source = open_video(clip_frames)
    given = read_prompts(tmp_path / "p.json", source)
    assert [p.digest() for p in picker.prompts] == [p.digest() for p in given]
    with pytest.raises(InputError, match="can't be read"):
        figures.pick(clip_frames, prompts=tmp_path / "none.json")
