"""The explorer in a browser, as a user drives it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from figures.explorer.content import Content
from figures.explorer.page import write_page
from tests.figures.browser import Browser, Page

DATA = "document.querySelector('.esx').dataset"
READY = "document.querySelector('.esx')?.dataset.ready"
NOTE = "document.querySelector('.note').textContent"


@contextmanager
def explored(browser: Browser, content: Content, folder: Path) -> Iterator[Page]:
    """Open a page of the explorer and wait until it has been drawn; in the end nothing may have been complained about."""
    with browser.open(write_page(content, folder / "page.html").as_uri()) as page:
        page.wait(READY)
        yield page
        assert page.complaints == []


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
    """Move the slider over frames, and wait until it has been drawn."""
    turn = page.evaluate(f"{DATA}.ready")
    page.evaluate(
        "(() => {const s = document.querySelector('.esx input[type=range]');"
        f" s.value = {to}; s.dispatchEvent(new Event('input'))}})()"
    )
    page.wait(f"{DATA}.ready > {turn}")


def choose(page: Page, label: str, value: str) -> None:
    """Choose from a list, and wait until it has been drawn."""
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


def shown_frame(page: Page, canvas: str) -> int:
    """Which frame lies in a corner of a canvas, where there is no heat and no outline; of `GREYS`."""
    level = page.evaluate(
        f"document.querySelector('{canvas}').getContext('2d').getImageData(4, 4, 1, 1).data[0]"
    )
    return round((level - 20) / 12)
