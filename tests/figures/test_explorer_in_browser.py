"""The explorer in a real browser: a click changes the map, arrows change the frame, memory lies on the right frames.

Shown are recordings of known attention, tracked in both directions and with several prompts. What fails is said
instead of awaited, and nothing complains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from figures.explorer.content import explorer_content, script, style
from probes.records import Recording
from tests.figures.browser import Browser, Page
from tests.figures.explored import (
    DATA,
    NOTE,
    READY,
    brightest,
    choose,
    click,
    explored,
    shown_frame,
    slide,
)
from tests.figures.made import DECODER, ENCODER, FRAMES, GREYS, ITSELF, MEMORY, N, make_recording

pytestmark = pytest.mark.process

LEFT = "document.querySelector('.pair figcaption').textContent"

NOTEBOOK = """<!doctype html><meta charset="utf-8"><style>{style}</style><main></main>
<script type="module">
const later = setTimeout;
window.setTimeout = (call, ms) => later(call, ms / 1000);
let heard;
const answers = {answers};
const model = {{
  get: () => ({meta}),
  on: (_, call) => {{ heard = call; }},
  off: () => {{}},
  send: (message) => {{
    const answer = answers.shift();
    if (answer) later(() => heard({{ kind: "rows", key: message.key, ...answer }}, []), 5);
  }},
}};
{script}
widget.render({{ model, el: document.querySelector("main") }});
</script>"""
"""The widget with a kernel that answers what it is told to, and then no more; time runs a thousand times as fast."""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return make_recording(tmp_path_factory.mktemp("made") / "clip.recording")


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return GREYS


def test_a_click_shows_what_the_pixel_attends_to(
    recording: Recording, frames: np.ndarray, tmp_path: Path, browser: Browser
) -> None:
    content = explorer_content(recording, None, frames, "light")
    with explored(browser, content, tmp_path) as page:
        click(page, ".query", 0.2, 0.3)
        # the made encoder attends to the token mirrored left to right: column 1 of 8 to column 6
        assert brightest(page) == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.02)
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


def test_the_film_strip_chooses_the_memory_frame(
    recording: Recording, frames: np.ndarray, tmp_path: Path, browser: Browser
) -> None:
    content = explorer_content(recording, "clip", frames, "dark")
    with explored(browser, content, tmp_path) as page:
        slide(page, 4)
        page.wait(f"{DATA}.frame === '4'")
        click(page, "figure[data-slot='5']", 0.5, 0.3)
        assert page.evaluate(f"{DATA}.site") == MEMORY
        assert "memory frame 2, 2 back" in page.evaluate(NOTE)
        click(page, ".query", 0.2, 0.3)
        # the made memory attends to the token on the right
        assert brightest(page) == pytest.approx((2.5 / 8, 2.5 / 8), abs=0.02)
        click(page, "figure[data-slot='6']", 0.5, 0.3)
        assert "memory frame 3, 1 back" in page.evaluate(NOTE)
        # self-attention is over the frame itself, and the strip goes on to show what memory recalls
        choose(page, "site", ITSELF)
        assert brightest(page) == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.02)
        assert float(page.evaluate(f"{DATA}.peak")) == pytest.approx(N, rel=0.01)
        click(page, "figure[data-slot='6']", 0.5, 0.3)
        assert page.evaluate(f"{DATA}.site") == MEMORY
        choose(page, "site", DECODER)
        assert "output tokens" in page.evaluate(NOTE)
        choose(page, "site", ENCODER)
        assert brightest(page) == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.02)
        # the strip says whose it is, as the site chosen is another one
        above = "document.querySelector('.strip-note').textContent"
        assert page.evaluate(above) == f"what this pixel attends to in memory: {MEMORY}"
        choose(page, "site", MEMORY)
        choose(page, "direction", "from")
        assert MEMORY not in page.evaluate(above)


@pytest.mark.parametrize("name", ["bear", "</script><b>", "<!--<script>"])
def test_any_name_leaves_the_page_whole(
    recording: Recording, tmp_path: Path, browser: Browser, name: str
) -> None:
    content = explorer_content(recording, None, None, "light")
    named = replace(content, meta=content.meta | {"title": name})
    with explored(browser, named, tmp_path) as page:
        assert page.evaluate("document.querySelector('.esx h2').textContent") == name


@pytest.fixture(params=[(0,), (3, 5)], ids=["one prompt", "two prompts"])
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, browser: Browser
) -> Iterator[tuple[Page, tuple[int, ...]]]:
    """A page of grey frames, and the frames with a prompt."""
    recording = make_recording(tmp_path / "clip.recording", prompted=request.param)
    with explored(browser, explorer_content(recording, None, GREYS, "light"), tmp_path) as page:
        yield page, request.param


def test_each_direction_paints_the_frame_that_its_values_lie_on(
    opened: tuple[Page, tuple[int, ...]],
) -> None:
    page, _ = opened
    slide(page, 4)
    choose(page, "site", MEMORY)
    newest = 3
    assert (shown_frame(page, ".query"), shown_frame(page, ".map")) == (4, newest)
    click(page, ".query", 0.2, 0.3)
    # the made memory attends to the token on the right
    assert brightest(page) == pytest.approx((2.5 / 8, 2.5 / 8), abs=0.02)
    choose(page, "direction", "from")
    # now the pixel lies on the memory frame, and those who attend to it on this one
    assert (shown_frame(page, ".query"), shown_frame(page, ".map")) == (newest, 4)
    assert brightest(page) == pytest.approx((0.5 / 8, 2.5 / 8), abs=0.02)
    assert "who attends to this pixel, on frame 4" in page.evaluate(NOTE)
    assert "memory frame 3, 1 back: click" in page.evaluate(LEFT)
    choose(page, "site", ENCODER)
    assert (shown_frame(page, ".query"), shown_frame(page, ".map")) == (4, 4)
    assert page.evaluate(LEFT).startswith("frame 4: click")


def test_frames_run_by_index(opened: tuple[Page, tuple[int, ...]]) -> None:
    page, _ = opened
    found = []
    for position in range(FRAMES):
        slide(page, position)
        found.append((int(page.evaluate(f"{DATA}.frame")), shown_frame(page, ".query")))
    assert found == [(t, t) for t in range(FRAMES)]


def test_a_prompted_frame_says_that_nothing_was_stored(
    opened: tuple[Page, tuple[int, ...]],
) -> None:
    page, prompted = opened
    for site in (ITSELF, DECODER):
        choose(page, "site", site)
        slide(page, prompted[0])
        assert "nothing was stored for this frame" in page.evaluate(NOTE)
        slide(page, 4)
        assert "even share" in page.evaluate(NOTE)
    choose(page, "site", MEMORY)
    for position in (*prompted, 4):
        slide(page, position)
        recalls_nothing = "a prompted frame recalls nothing" in page.evaluate(NOTE)
        assert recalls_nothing == (position in prompted)


def test_the_prompted_slot_says_how_many_frames_it_stands_for(
    opened: tuple[Page, tuple[int, ...]],
) -> None:
    page, prompted = opened
    slide(page, 4)
    click(page, "figure[data-slot='0']", 0.5, 0.3)
    tile = page.evaluate("document.querySelector('figure[data-slot=\"0\"] figcaption').textContent")
    slots = 5  # the prompted one, and frames 0 to 3
    peak = float(page.evaluate(f"{DATA}.peak"))
    if len(prompted) == 1:
        assert "in memory frame 0, 4 back" in page.evaluate(NOTE) and tile.startswith("prompt")
        assert peak == pytest.approx(N * slots / 7, rel=0.02)
    else:
        assert "in the mean of 2 prompted frames (3, 5), drawn over frame 3" in page.evaluate(NOTE)
        assert tile.startswith("2 prompts")
        # the mean of two frames, over the even share of one frame more
        assert peak == pytest.approx(N * (slots + 1) / 7 / 2, rel=0.02)


@pytest.mark.parametrize(
    ("answers", "words"),
    [([{"failed": "no such rows"}], "no such rows"), ([], "the kernel did not answer in 300 s")],
)
def test_what_fails_is_said(
    recording: Recording,
    tmp_path: Path,
    browser: Browser,
    answers: list[dict[str, str]],
    words: str,
) -> None:
    content = explorer_content(recording, None, None, "light")
    program = script().replace("export default {", "const widget = {")
    text = NOTEBOOK.format(
        style=style(), script=program, meta=json.dumps(content.meta), answers=json.dumps(answers)
    )
    (tmp_path / "page.html").write_text(text, "utf-8")
    with browser.open((tmp_path / "page.html").as_uri()) as page:
        page.wait(READY, 20)
        assert words in page.evaluate(NOTE)
        # another pixel asks anew
        page.evaluate(
            "document.querySelector('.query').dispatchEvent(new MouseEvent('click', {clientX: 9, clientY: 9}))"
        )
        page.wait(f"{DATA}.ready > 1", 20)
        assert "the kernel did not answer in 300 s" in page.evaluate(NOTE)
        assert page.complaints == []
