"""The explorer: what it shows, its command, and the widget's answers; no browser is needed for that."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from figures import explore
from figures.explorer import page
from figures.explorer.content import explorer_content
from figures.explorer.page import beside, write_page
from figures.explorer.widget import Explorer
from probes import build_predictor, open_video
from probes.errors import InputError
from probes.records import Recording
from sparsity.commands.app import run
from tests.conftest import make_frames, make_mask
from tests.figures.made import DECODER, ENCODER, FRAMES, GREYS, ITSELF, MEMORY, make_recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return make_recording(tmp_path_factory.mktemp("made") / "clip.recording")


def test_the_command_writes_one_offline_page(
    recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert run(["explore", str(recording.path), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert str(out) in capsys.readouterr().out
    assert "http://" not in text and "https://" not in text
    stored = json.loads(text.split('id="rows">')[1].split("</script>")[0])
    assert set(stored) == {ENCODER, ITSELF, MEMORY, DECODER}
    assert len(stored[ENCODER]) == FRAMES


def test_many_rows_lie_beside_the_page_which_says_so_before(
    recording: Recording,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "page.html"
    assert run(["explore", str(recording.path), "--out", str(out)]) == 0
    assert not beside(out).exists() and "beside it" not in capsys.readouterr().err
    monkeypatch.setattr(page, "INSIDE", 1000)
    for _ in range(2):  # over an earlier one too
        assert run(["explore", str(recording.path), "--out", str(out)]) == 0
        said = capsys.readouterr().err
        assert f"in {4 * FRAMES} files, go beside it: keep page.data/ with it" in said
        text = out.read_text(encoding="utf-8")
        assert text.split('id="rows">')[1].startswith("{}<")
        files = [path for path in beside(out).rglob("*") if path.is_file()]
        assert len(files) == 4 * FRAMES and sorted(tmp_path.iterdir()) == [beside(out), out]
    monkeypatch.undo()
    assert run(["explore", str(recording.path), "--out", str(out)]) == 0
    assert list(tmp_path.iterdir()) == [out]
    beside(out).mkdir()
    (beside(out) / "mine.txt").write_text("kept")
    before = out.read_bytes()
    capsys.readouterr()
    assert run(["explore", str(recording.path), "--out", str(out), "--dark"]) == 2
    said = capsys.readouterr().err
    assert "holds other files" in said and len(said.splitlines()) == 1
    assert out.read_bytes() == before and (beside(out) / "mine.txt").exists()


def test_a_saved_notebook_keeps_a_picture(recording: Recording) -> None:
    import nbformat

    from notebooks.refresh import WIDGET, slim

    pictures = []
    for theme in ("light", "dark"):
        data, metadata = explore(recording, GREYS, theme=theme)._repr_mimebundle_()
        output = nbformat.v4.new_output("display_data", data, metadata=metadata)
        cells = [nbformat.v4.new_code_cell("", outputs=[output])]
        stored = slim(nbformat.v4.new_notebook(cells=cells)).cells[0].outputs
        assert WIDGET in data and list(stored[0]["data"]) == ["image/jpeg"]
        with Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"]))) as picture:
            pictures.append(np.asarray(picture.convert("RGB")).astype(int))
    assert (pictures[0][2, 2] > 200).all() and (pictures[1][2, 2] < 60).all()
    # the made memory attends to the token on the right of the query: cell 4 of 8, over frame 4
    below, at = 38 + round(225 * 3.5 / 8), 420 + round(400 * 4.5 / 8)
    red, _, blue = pictures[0][below, at]
    assert red > 150 and red - blue > 60
    red, _, blue = pictures[0][below, at - 100]
    assert abs(red - blue) < 20
    empty = nbformat.v4.new_output("display_data", {WIDGET: {"model_id": "a"}})
    cells = [nbformat.v4.new_code_cell("", outputs=[empty])]
    assert slim(nbformat.v4.new_notebook(cells=cells)).cells[0].outputs == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "page.pdf"], "ends in .html"),
        (["--out", "nowhere/page.html"], "no folder"),
        (["--out", "page.html", "--clip", "other"], "clip 'other'"),
        (["--out", "page.html", "--video", "absent.mp4"], "absent.mp4"),
        (["--out", "page.html", "--video", "SHORT"], "has no frame 2, which was recorded"),
        (["--out", "page.html", "--video", "OTHER"], "other pictures than those recorded"),
    ],
)
def test_bad_requests_leave_nothing_behind(
    recording: Recording,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {word: tmp_path_factory.mktemp("video") for word in ("SHORT", "OTHER")}
    for t, frame in enumerate(make_frames(FRAMES, 90, 160)):
        for word, folder in folders.items():
            if t < 2 or word == "OTHER":
                Image.fromarray(frame).save(folder / f"{t}.png")
    given = [str(folders.get(word, word)) for word in arguments]
    assert run(["explore", str(recording.path), *given]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prompted", [(0,), (3, 5)])
def test_another_video_is_refused(tmp_path: Path, prompted: tuple[int, ...]) -> None:
    """Also one that differs in a single frame, or in the order of its frames."""
    recording = make_recording(tmp_path / "clip.recording", prompted=prompted)
    meta = explore(recording, GREYS).meta
    assert meta["frames"] != explore(recording).meta["frames"]
    as_video = explore(recording, open_video(GREYS)).meta
    assert as_video == meta and explore(str(recording.path), list(GREYS)).meta == meta
    one = GREYS.copy()
    one[4, 0, 0, 0] += 1
    for other, words in (
        (one, "other pictures than those recorded"),
        (GREYS[::-1], "other pictures"),
        (GREYS[:, :80], r"shape \(80, 160, 3\), where 160 x 90 pixels were recorded"),
        (GREYS[:4], "has no frame [45], which was recorded"),
    ):
        with pytest.raises(InputError, match=words + ".*clip 'clip'"):
            explore(recording, other)


def test_a_title_is_text_and_never_markup(recording: Recording, tmp_path: Path) -> None:
    content = explorer_content(recording, None, None, "light")
    for name, said in (("<b>R&D</b>", "&lt;b&gt;R&amp;D&lt;/b&gt;"), ("bear", "bear")):
        named = replace(content, meta=content.meta | {"title": name})
        written = write_page(named, tmp_path / "p.html")
        assert f"<title>{said}</title>" in written.read_text(encoding="utf-8")


def test_a_recording_without_rows_is_refused(tmp_path: Path) -> None:
    bare = make_recording(tmp_path / "bare.recording", rows=False)
    with pytest.raises(InputError, match="no attention rows"):
        explorer_content(bare, None, None, "light")


def test_a_predictor_is_shown_under_its_name_and_its_evidence(
    clip_frames: np.ndarray, dividing_predictor: Any
) -> None:
    demo = build_predictor("demo", image_size=128, device="cpu")
    for predictor, name, words in (
        (demo, "demo", "Demo model"),
        (dividing_predictor, "random", "Random weights"),
    ):
        meta = explore(predictor, clip_frames, {1: make_mask()}, max_frames=2).meta
        assert meta["title"].endswith(name) and words in meta["caption"]
        assert [frame["index"] for frame in meta["frames"]] == [0, 1]


def test_an_answer_that_fails_is_told(recording: Recording) -> None:
    content = explorer_content(recording, None, None, "light")
    broken = replace(content.clip, rows={**content.clip.rows, ENCODER: []})
    said: list[tuple[dict[str, Any], Any]] = []
    for clip in (content.clip, broken):
        shown = Explorer(replace(content, clip=clip))
        shown.send = lambda message, buffers=None: said.append((message, buffers))
        request = {"kind": "rows", "given": {"site": ENCODER, "index": 0}, "key": "a"}
        shown._handle_custom_msg(request, [])
    (good, buffers), (bad, none) = said
    assert good == {"key": "a"} and len(buffers) == 1
    assert bad["key"] == "a" and "IndexError" in bad["failed"] and not none
