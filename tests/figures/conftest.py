"""For tests that need a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.figures.browser import CHROMIUM, Browser, start_browser


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium, or a named skip."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    return CHROMIUM


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    """One Chromium for all tests; each opens tabs of its own."""
    with start_browser() as running:
        yield running
