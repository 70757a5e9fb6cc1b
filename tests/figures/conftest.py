"""For tests that need a real browser."""

from __future__ import annotations

import pytest

from tests.figures.browser import CHROMIUM


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium, or a named skip."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    return CHROMIUM
