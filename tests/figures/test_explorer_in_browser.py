"""The explorer in a real browser: a click changes the map, arrows change the frame, memory lies on the right frames.

Shown are recordings of known attention, tracked in both directions and with several prompts. What fails is said
instead of awaited, and nothing complains.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from figures.explorer import page as pages
from figures.explorer.content import explorer_content
from figures.explorer.page import script, style
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
from tests.figures.made import (
    DECODER,
    ENCODER,
    FRAMES,
    GREYS,
    GRID,
    ITSELF,
    MEMORY,
    N,
    make_recording,
)

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
        choose(page, "site", ENCODER)
        click(page, ".query", 0.2, 0.3)
        # the made encoder attends to the token mirrored left to right: column 1 of 8 to column 6
        assert brightest(page) == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.02)
        click(page, ".query", 0.7, 0.3)
        assert brightest(page) == pytest.approx((2.5 / 8, 2.5 / 8), abs=0.02)
        choose(page, "direction", "from")
        assert brightest(page) == pytest.approx((2.5 / 8, 2.5 / 8), abs=0.02)
        assert float(page.evaluate(f"{DATA}.peak")) == pytest.approx(N, rel=0.01)

        for _ in range(9):
            page.press(".")
        page.wait(f"{DATA}.frame === '{FRAMES - 1}'")
        page.press(",")
        page.wait(f"{DATA}.frame === '{FRAMES - 2}'")


def test_the_film_strip_chooses_the_memory_frame(
    recording: Recording, frames: np.ndarray, tmp_path: Path, browser: Browser
) -> None:
    content = explorer_content(recording, "clip", frames, "dark")
    with explored(browser, content, tmp_path) as page:
        slide(page, 4)
        page.wait(f"{DATA}.frame === '4'")
        click(page, "button[data-slot='5']", 0.5, 0.3)
        assert page.evaluate(f"{DATA}.site") == MEMORY
        assert "memory frame 2, 2 back" in page.evaluate(NOTE)
        click(page, ".query", 0.2, 0.3)
        # the made memory attends to the token on the right
        assert brightest(page) == pytest.approx((2.5 / 8, 2.5 / 8), abs=0.02)
        click(page, "button[data-slot='6']", 0.5, 0.3)
        assert "memory frame 3, 1 back" in page.evaluate(NOTE)
        # self-attention is over the frame itself, and the strip goes on to show what memory recalls
        choose(page, "site", ITSELF)
        assert brightest(page) == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.02)
        assert float(page.evaluate(f"{DATA}.peak")) == pytest.approx(N, rel=0.01)
        click(page, "button[data-slot='6']", 0.5, 0.3)
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
    click(page, "button[data-slot='6']", 0.5, 0.3)
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
    click(page, "button[data-slot='0']", 0.5, 0.3)
    tile = page.evaluate("document.querySelector('button[data-slot=\"0\"] span').textContent")
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


STRIP = (
    "[...document.querySelectorAll('.strip button')].filter((b) => b.style.visibility !== 'hidden')"
)


def captions(page: Page) -> list[str]:
    """What stands below the memory frames, from left to right."""
    return page.evaluate(f"{STRIP}.map((b) => b.querySelector('span').textContent)")


def test_it_opens_on_the_object_where_memory_is_read(opened: tuple[Page, tuple[int, ...]]) -> None:
    page, prompted = opened
    data = page.evaluate(f"({{...{DATA}}})")
    assert data["site"] == MEMORY and int(data["frame"]) not in prompted
    # the made object lies on rows 12 to 19 and columns 8 to 17 of 32
    assert 11.5 / 32 < float(data["x"]) < 14.5 / 32 and 14.5 / 32 < float(data["y"]) < 17.5 / 32
    assert float(data["peak"]) > 1 and "1 back" in page.evaluate(NOTE)


def test_memory_frames_stand_in_their_order_with_cs_beside_chance(
    opened: tuple[Page, tuple[int, ...]],
) -> None:
    page, prompted = opened
    slide(page, 4)
    shown = captions(page)
    first, *others = shown
    assert [other.split(" back")[0] for other in others] == ["4", "3", "2", "1"]
    assert all(" (chance 0." in other for other in others[:-1])
    # the newest is what it will be compared with, and a mean over prompts is compared with nothing
    assert others[-1] == "1 back"
    assert first.startswith("prompt" if len(prompted) == 1 else "2 prompts")
    assert ("CS" in first) == (len(prompted) == 1)
    if len(prompted) == 1:
        slide(page, 1)
        assert captions(page)[0] == "prompt"


def test_everything_can_be_done_with_keys(opened: tuple[Page, tuple[int, ...]]) -> None:
    page, _ = opened
    slide(page, 4)
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(22):
        page.press("Tab")
        reached.append(
            page.evaluate(
                "(() => {const e = document.activeElement; return e.dataset.slot ?? (e.className "
                "|| e.getAttribute('aria-label') || e.textContent)})()"
            )
        )
    assert reached[:13] == [
        *("site", "direction", "query", "Play", "frame", "scale up to", "PNG", "CSV"),
        *("query", "map", "0", "3", "4"),
    ]
    labels = page.evaluate(
        "[...document.querySelectorAll('.esx :is(.query, .map, .scale, .strip button)')]"
        ".filter((e) => e.style.visibility !== 'hidden').map((e) => e.getAttribute('aria-label'))"
    )
    assert all(labels) and len(labels) == 8
    assert labels[-3].startswith("2 back CS 0.") and "memory frame 2, peak" in labels[-3]

    def do(focus: str, *keys: str) -> None:
        page.evaluate(f'document.querySelector("{focus}").focus()')
        for key in keys:
            turn = page.evaluate(f"{DATA}.ready")
            page.press(key)
            page.wait(f"{DATA}.ready > {turn}")

    x, y = (float(page.evaluate(f"{DATA}.{name}")) for name in "xy")
    do(".query", "ArrowRight", "ArrowDown")
    moved = [float(page.evaluate(f"{DATA}.{name}")) for name in "xy"]
    assert moved == pytest.approx([x + 1 / GRID, y + 1 / GRID], abs=0.002)
    do("button[data-slot='5']", " ")
    assert page.evaluate(f"{DATA}.slot") == "5"
    do(".query", ",")
    assert page.evaluate(f"{DATA}.frame") == "3"
    do(".query", ".")
    # on the map they move the place whose value is read: two to the right of the query is one beside the peak
    do(".map", "ArrowRight")
    words = "document.querySelector('.readout').textContent"
    value = float(page.evaluate(words).split("): ")[1].split()[0])
    assert value == pytest.approx(float(page.evaluate(f"{DATA}.peak")), abs=0.06) and value > 1
    do(".map", "ArrowRight")
    assert page.evaluate(words).endswith("): 0 × even share")
    do(".query", " ")
    page.wait(f"{DATA}.frame === '{FRAMES - 1}'")


def test_the_object_is_the_query(opened: tuple[Page, tuple[int, ...]]) -> None:
    page, _ = opened
    slide(page, 4)
    choose(page, "site", ENCODER)
    choose(page, "query", "object")
    # rows 3 and 4 and columns 2 to 3 of 8, mirrored; column 4 is half covered, which is not for the most part
    assert brightest(page) == pytest.approx((5 / 8, 4 / 8), abs=0.02)
    assert float(page.evaluate(f"{DATA}.peak")) == pytest.approx(N / 4, rel=0.01)
    assert "4 stored queries on object 1" in page.evaluate(LEFT)
    assert "what the pixels of object 1 attend to" in page.evaluate(NOTE)
    choose(page, "direction", "from")
    assert brightest(page) == pytest.approx((5 / 8, 4 / 8), abs=0.02)
    click(page, ".query", 0.2, 0.3)
    assert brightest(page) == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.02)


def test_a_head_is_chosen(recording: Recording, tmp_path: Path, browser: Browser) -> None:
    content = explorer_content(recording, None, GREYS, "light")
    clip = content.clip
    both, scales = dict(clip.rows), dict(clip.row_scale)
    # the second head attends to the same place, the first one to the mirrored one
    itself = np.eye(N, dtype=np.uint8).reshape(1, N, GRID, GRID).repeat(FRAMES, 0) * 255
    both[ENCODER] = np.stack([both[ENCODER], itself], 1)
    scales[ENCODER] = np.stack([scales[ENCODER]] * 2, 1)
    changed = replace(clip, rows=both, row_scale=scales)
    sites = [s | ({"heads": 2} if s["name"] == ENCODER else {}) for s in content.meta["sites"]]
    content = replace(content, clip=changed, meta=content.meta | {"sites": sites})
    with explored(browser, content, tmp_path) as page:
        choose(page, "site", ENCODER)
        click(page, ".query", 0.2, 0.3)
        found = [float(page.evaluate(f"{DATA}.peak"))]
        for head in "01":
            choose(page, "head", head)
            found.append(float(page.evaluate(f"{DATA}.peak")))
            mirrored = (6.5 if head == "0" else 1.5) / 8
            assert brightest(page) == pytest.approx((mirrored, 2.5 / 8), abs=0.04)
        assert found == pytest.approx([N / 2, N, N], rel=0.01)
        choose(page, "site", MEMORY)
        disabled = "document.querySelector('select[aria-label=head]').disabled"
        assert page.evaluate(disabled), "only the mean was stored"


def test_the_scale_says_what_lies_above_it_and_is_what_is_painted(
    opened: tuple[Page, tuple[int, ...]],
) -> None:
    page, _ = opened
    choose(page, "site", ENCODER)
    slide(page, 5)
    above = "document.querySelector('.above').textContent"
    for top, over in (("10", True), ("100", False), ("peak", False), ("1000", False)):
        choose(page, "scale up to", top)
        assert (float(page.evaluate(f"{DATA}.above")) > 0) == over
        assert ("% of the cells shown lie above the scale" in page.evaluate(above)) == over
    choose(page, "scale up to", "100")
    # 64 times the even share, on a frame as dim as what the bar lies on
    place = (np.log10(N) + 1) / 3
    bar, cell = page.evaluate(
        "(() => {const at = (name, x, y) => {const c = document.querySelector(name);"
        " return [...c.getContext('2d').getImageData(x * c.width, y * c.height, 1, 1).data]};"
        f" return [at('canvas.scale', {place}, 0), at('.map', {1 - 3.5 / 8}, 3.8 / 8)]}})()"
    )
    assert bar[:3] == pytest.approx(cell[:3], abs=12) and bar[0] - bar[2] > 100


def test_what_is_shown_is_taken_home(opened: tuple[Page, tuple[int, ...]]) -> None:
    page, _ = opened
    slide(page, 4)
    click(page, ".query", 0.2, 0.3)
    size, table = page.evaluate(
        """(async () => {
          const made = [];
          const old = URL.createObjectURL;
          URL.createObjectURL = (blob) => { made.push(blob); return old.call(URL, blob); };
          for (const name of ["CSV", "PNG"])
            [...document.querySelectorAll(".esx button")].find((b) => b.textContent === name).click();
          while (made.length < 2) await new Promise((done) => setTimeout(done, 20));
          const picture = await createImageBitmap(made[1]);
          return [[picture.width, picture.height], await made[0].text()];
        })()"""
    )
    assert size[0] == 1320 and size[1] > 500
    rows = list(csv.DictReader(table.splitlines()))
    tiles = 5  # memory frames
    assert len(rows) == (1 + tiles) * N
    mine = [row for row in rows[:N] if float(row["even_shares"]) > 1]
    assert [(row["column"], row["row"]) for row in mine] == [("2", "2")]
    assert [int(mine[0][f"query_{axis}"]) for axis in "xy"] == pytest.approx([32, 27], abs=1)
    assert mine[0]["site"] == MEMORY and mine[0]["map_frame"] == "3" and mine[0]["head"] == "mean"
    assert {row["slot"] for row in rows} == {"0", "3", "4", "5", "6"}


def test_rows_beside_the_page_are_loaded_when_they_are_shown(
    recording: Recording, tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "INSIDE", 0)
    content = explorer_content(recording, None, GREYS, "light")
    with explored(browser, content, tmp_path) as page:
        choose(page, "site", ENCODER)
        slide(page, 4)
        click(page, ".query", 0.2, 0.3)
        assert brightest(page) == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.02)
        shutil.rmtree(pages.beside(tmp_path / "page.html"))
        click(page, ".query", 0.7, 0.3)
        assert brightest(page) == pytest.approx((2.5 / 8, 2.5 / 8), abs=0.02)
        slide(page, 2)
        said = f"page.data/{ENCODER}/2.js is missing: keep the folder page.data beside this page"
        assert page.evaluate(NOTE) == said
        page.complaints.clear()  # of the browser itself: a file that is not there


def test_everybody_can_use_it(
    recording: Recording,
    tmp_path: Path,
    browser: Browser,
    serious_faults: Callable[[Page, str], list[str]],
) -> None:
    for theme in ("light", "dark"):
        content = explorer_content(recording, None, GREYS, theme)
        with explored(browser, content, tmp_path) as page:
            choose(page, "scale up to", "10")
            assert serious_faults(page, ".esx") == []
            page.evaluate("document.querySelector('.esx input[type=range]').ariaLabel = null")
            page.evaluate("document.querySelector('.strip button:last-child').ariaLabel = null")
            page.evaluate(
                "document.querySelector('.esx input[type=range]').parentElement.replaceWith("
                "document.querySelector('.esx input[type=range]'))"
            )
            assert serious_faults(page, ".esx") != []
