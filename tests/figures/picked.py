"""The picker in a browser, as a user drives it."""

from __future__ import annotations

from typing import Any

from tests.figures.browser import Page

DATA = "document.querySelector('.pick').dataset"
STATUS = "document.querySelector('.pick .status').textContent"
READY = "document.querySelector('.pick')?.dataset.frame === '0'"


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """Place of a share of the frame in the window, in whole pixels."""
    left, top, width, height = page.evaluate(
        "(() => {const b = document.querySelector('.pick canvas').getBoundingClientRect();"
        " return [b.left, b.top, b.width, b.height]})()"
    )
    return left + round(width * x), top + round(height * y)


def button(page: Page, words: str) -> None:
    """Press a button by its words or label."""
    page.evaluate(
        "[...document.querySelectorAll('.pick button')]"
        f".find((b) => [b.textContent, b.ariaLabel].includes({words!r})).click()"
    )


def expect(page: Page, **data: Any) -> None:
    """Wait until the picker shows so many prompts or masks, such a frame or object."""
    for name, value in data.items():
        page.wait(f"{DATA}.{name} === '{value}'")
