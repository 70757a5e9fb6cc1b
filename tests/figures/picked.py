"""The picker in a browser, as a user drives it; the tracker too, which is one with a player."""

from __future__ import annotations

from typing import Any

from tests.figures.browser import Page

STATUS = "document.querySelector('.pick .status').textContent"
READY = "document.querySelector('.pick')?.dataset.frame === '0'"


def at(page: Page, x: float, y: float, root: str = ".pick") -> tuple[float, float]:
    """Place of a share of the frame in the window, in whole pixels."""
    left, top, width, height = page.evaluate(
        f"(() => {{const b = document.querySelector('{root} canvas').getBoundingClientRect();"
        " return [b.left, b.top, b.width, b.height]})()"
    )
    return left + round(width * x), top + round(height * y)


def button(page: Page, words: str, root: str = ".pick") -> None:
    """Press a button by its words or label."""
    page.evaluate(
        f"[...document.querySelectorAll('{root} button')]"
        f".find((b) => [b.textContent, b.ariaLabel].includes({words!r})).click()"
    )


def expect(page: Page, root: str = ".pick", **data: Any) -> None:
    """Wait until the picker shows so many prompts or masks, such a frame or object."""
    for name, value in data.items():
        page.wait(f"document.querySelector('{root}').dataset.{name} === '{value}'")
