"""The explorer shows memory on the right frames: both directions, frames in order, several prompts, prompted frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from figures.explorer.content import explorer_content
from figures.explorer.page import write_page
from tests.figures.browser import Page, open_page
from tests.figures.made import DECODER, ENCODER, FRAMES, ITSELF, MEMORY, N, make_recording
from tests.figures.test_explorer import DATA, brightest, choose, click, slide

NOTE = "document.querySelector('.note').textContent"
LEFT = "document.querySelector('.pair figcaption').textContent"
GREYS = np.repeat(
    (20 + 25 * np.arange(FRAMES, dtype=np.uint8))[:, None, None, None], 3, axis=3
) * np.ones((1, 90, 160, 1), np.uint8)
"""Frame t is one grey level, which tells it from the others."""


def shown_frame(page: Page, canvas: str) -> int:
    """Which frame lies in a corner of a canvas, where there is no heat and no outline."""
    level = page.evaluate(
        f"document.querySelector('{canvas}').getContext('2d').getImageData(4, 4, 1, 1).data[0]"
    )
    return round((level - 20) / 25)


def at(page: Page, position: int) -> None:
    """Go to a position of the slider, and wait until it has been drawn."""
    turn = page.evaluate(f"{DATA}.ready")
    slide(page, position)
    page.wait(f"{DATA}.ready > {turn}")


@pytest.fixture(params=[(0,), (3, 5)], ids=["one prompt", "two prompts"])
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, chromium: str
) -> Iterator[tuple[Page, tuple[int, ...]]]:
    recording = make_recording(tmp_path / "clip.recording", prompted=request.param)
    content = explorer_content(recording, None, GREYS, "light")
    with open_page(write_page(content, tmp_path / "page.html").as_uri()) as page:
        page.wait("document.querySelector('.esx')?.dataset.ready")
        yield page, request.param
        assert page.complaints == []


def test_each_direction_paints_the_frame_that_its_values_lie_on(
    opened: tuple[Page, tuple[int, ...]],
) -> None:
    page, prompted = opened
    at(page, 4)
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
        at(page, position)
        found.append((int(page.evaluate(f"{DATA}.frame")), shown_frame(page, ".query")))
    assert found == [(t, t) for t in range(FRAMES)]


def test_a_prompted_frame_says_that_nothing_was_stored(
    opened: tuple[Page, tuple[int, ...]],
) -> None:
    page, prompted = opened
    for site in (ITSELF, DECODER):
        choose(page, "site", site)
        at(page, prompted[0])
        assert "nothing was stored for this frame" in page.evaluate(NOTE)
        at(page, 4)
        assert "even share" in page.evaluate(NOTE)
    choose(page, "site", MEMORY)
    for position in (*prompted, 4):
        at(page, position)
        recalls_nothing = "a prompted frame recalls nothing" in page.evaluate(NOTE)
        assert recalls_nothing == (position in prompted)


def test_the_prompted_slot_says_how_many_frames_it_stands_for(
    opened: tuple[Page, tuple[int, ...]],
) -> None:
    page, prompted = opened
    at(page, 4)
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
