"""The explorer in a real browser: a click changes the map, arrows change the frame, nothing complains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from figures.explorer.content import explorer_content
from figures.explorer.page import write_page
from probes.errors import InputError
from probes.records import Recording
from sparsity.cli import run
from tests.conftest import make_frames
from tests.figures.browser import Page, open_page
from tests.figures.made import DECODER, ENCODER, FRAMES, ITSELF, MEMORY, N, make_recording

DATA = "document.querySelector('.esx').dataset"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return make_recording(tmp_path_factory.mktemp("made") / "clip.recording")


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return make_frames(FRAMES, 90, 160)


def click(page: Page, selector: str, x: float, y: float) -> None:
    """Click at a share of an element, and wait until it has been drawn."""
    box = page.evaluate(
        f"(() => {{const b = document.querySelector({selector!r}).getBoundingClientRect();"
        " return [b.left, b.top, b.width, b.height]})()"
    )
    turn = page.evaluate(f"{DATA}.ready")
    page.click(box[0] + box[2] * x, box[1] + box[3] * y)
    page.wait(f"{DATA}.ready > {turn}")


def slide(page: Page, to: int) -> None:
    """Move the slider over frames."""
    page.evaluate(
        "(() => {const s = document.querySelector('.esx input[type=range]');"
        f" s.value = {to}; s.dispatchEvent(new Event('input'))}})()"
    )


def choose(page: Page, label: str, value: str) -> None:
    turn = page.evaluate(f"{DATA}.ready")
    page.evaluate(
        f"(() => {{const s = document.querySelector('select[aria-label=\"{label}\"]');"
        f" s.value = {value!r}; s.dispatchEvent(new Event('change'))}})()"
    )
    page.wait(f"{DATA}.ready > {turn}")


def brightest(page: Page) -> tuple[float, float]:
    """Where the map is brightest, as shares of its width and height."""
    found = page.evaluate(
        "(() => {const c = document.querySelector('.map');"
        " const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " let n = 0, x = 0, y = 0;"
        " for (let i = 0; i < p.length; i += 4) if (p[i] > 150 && p[i] - p[i + 2] > 60)"
        " {n++; x += (i / 4) % c.width; y += Math.floor(i / 4 / c.width)}"
        " return [x / n / c.width, y / n / c.height]})()"
    )
    return tuple(found)


def test_a_click_shows_what_the_pixel_attends_to(
    recording: Recording, frames: np.ndarray, tmp_path: Path, chromium: str
) -> None:
    content = explorer_content(recording, None, frames, "light")
    page_file = write_page(content, tmp_path / "page.html")
    with open_page(page_file.as_uri()) as page:
        page.wait("document.querySelector('.esx')?.dataset.ready")
        click(page, ".query", 0.2, 0.3)
        first = brightest(page)
        # the made encoder attends to the token mirrored left to right: column 1 of 8 to column 6
        assert first == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.02)
        click(page, ".query", 0.7, 0.3)
        assert brightest(page) == pytest.approx((2.5 / 8, 2.5 / 8), abs=0.02)
        choose(page, "direction", "from")
        assert brightest(page) == pytest.approx((2.5 / 8, 2.5 / 8), abs=0.02)
        assert float(page.evaluate(f"{DATA}.peak")) == pytest.approx(N, rel=0.01)

        for _ in range(9):
            page.press("ArrowRight")
        page.wait(f"{DATA}.frame === '{FRAMES - 1}'")
        page.press("ArrowLeft")
        page.wait(f"{DATA}.frame === '{FRAMES - 2}'")
        assert page.complaints == []


def test_the_film_strip_chooses_the_memory_frame(
    recording: Recording, frames: np.ndarray, tmp_path: Path, chromium: str
) -> None:
    content = explorer_content(recording, "clip", frames, "dark")
    page_file = write_page(content, tmp_path / "page.html")
    with open_page(page_file.as_uri()) as page:
        page.wait("document.querySelector('.esx')?.dataset.ready")
        slide(page, 4)
        page.wait(f"{DATA}.frame === '4'")
        note = "document.querySelector('.note').textContent"
        click(page, "figure[data-slot='5']", 0.5, 0.3)
        assert page.evaluate(f"{DATA}.site") == MEMORY
        assert "memory frame 2, 2 back" in page.evaluate(note)
        click(page, ".query", 0.2, 0.3)
        # the made memory attends to the token on the right
        assert brightest(page) == pytest.approx((2.5 / 8, 2.5 / 8), abs=0.02)
        click(page, "figure[data-slot='6']", 0.5, 0.3)
        assert "memory frame 3, 1 back" in page.evaluate(note)
        # self-attention is over the frame itself, and the strip goes on to show what memory recalls
        choose(page, "site", ITSELF)
        assert brightest(page) == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.02)
        assert float(page.evaluate(f"{DATA}.peak")) == pytest.approx(N, rel=0.01)
        click(page, "figure[data-slot='6']", 0.5, 0.3)
        assert page.evaluate(f"{DATA}.site") == MEMORY
        choose(page, "site", DECODER)
        assert "output tokens" in page.evaluate(note)
        choose(page, "site", ENCODER)
        assert brightest(page) == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.02)
        # the strip says whose it is, as the site chosen is another one
        above = "document.querySelector('.strip-note').textContent"
        assert page.evaluate(above) == f"what this pixel attends to in memory: {MEMORY}"
        choose(page, "site", MEMORY)
        choose(page, "direction", "from")
        assert MEMORY not in page.evaluate(above)
        assert page.complaints == []


def test_the_command_writes_one_offline_page(
    recording: Recording, frames: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert run(["explore", str(recording.path), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert str(out) in capsys.readouterr().out
    assert "http://" not in text and "https://" not in text
    stored = json.loads(text.split('id="rows">')[1].split("</script>")[0])
    assert set(stored) == {ENCODER, ITSELF, MEMORY, DECODER}
    assert len(stored[ENCODER]) == FRAMES


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "page.pdf"], "ends in .html"),
        (["--out", "nowhere/page.html"], "no folder"),
        (["--out", "page.html", "--clip", "other"], "clip 'other'"),
        (["--out", "page.html", "--video", "absent.mp4"], "absent.mp4"),
        (["--out", "page.html", "--video", "SHORT"], "has no frame 2, which was recorded"),
    ],
)
def test_bad_requests_leave_nothing_behind(
    recording: Recording,
    frames: np.ndarray,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    short = tmp_path_factory.mktemp("short")
    for t in range(2):
        Image.fromarray(frames[t]).save(short / f"{t}.png")
    given = [str(short) if word == "SHORT" else word for word in arguments]
    assert run(["explore", str(recording.path), *given]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["bear", "</script><b>", "<!--<script>"])
def test_any_name_leaves_the_page_whole(
    recording: Recording, tmp_path: Path, chromium: str, name: str
) -> None:
    content = explorer_content(recording, None, None, "light")
    page_file = write_page(
        replace(content, meta=content.meta | {"title": name}), tmp_path / "page.html"
    )
    with open_page(page_file.as_uri()) as page:
        page.wait("document.querySelector('.esx')?.dataset.ready", 10)
        assert page.evaluate("document.querySelector('.esx h2').textContent") == name
        assert page.complaints == []


def test_a_title_is_text_and_never_markup(recording: Recording, tmp_path: Path) -> None:
    content = explorer_content(recording, None, None, "light")
    for name, said in (("<b>R&D</b>", "&lt;b&gt;R&amp;D&lt;/b&gt;"), ("bear", "bear")):
        page = write_page(
            replace(content, meta=content.meta | {"title": name}), tmp_path / "p.html"
        )
        assert f"<title>{said}</title>" in page.read_text(encoding="utf-8")


def test_a_recording_without_rows_is_refused(tmp_path: Path) -> None:
    bare = make_recording(tmp_path / "bare.recording", rows=False)
    with pytest.raises(InputError, match="no attention rows"):
        explorer_content(bare, None, None, "light")
