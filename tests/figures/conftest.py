"""For tests that need a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.figures.browser import CHROMIUM, Browser, Page, start_browser


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


@pytest.fixture(scope="session")
def serious_faults() -> Callable[[Page, str], list[str]]:
    """What axe-core finds in a part of a page that keeps people from using it, or a named skip."""
    npm = shutil.which("npm")
    root = (
        subprocess.run([npm, "root", "--global"], capture_output=True, text=True) if npm else None
    )
    file = Path(root.stdout.strip() if root else "", "axe-core", "axe.min.js")
    if not file.is_file():
        pytest.skip("needs axe-core: npm install --global axe-core")
    program = file.read_text(encoding="utf-8")

    def faults(page: Page, selector: str) -> list[str]:
        page.evaluate(f"{program}; true")
        said = page.evaluate(f"axe.run('{selector}').then((found) => JSON.stringify(found))")
        found = json.loads(said)
        assert found["passes"], "it looked at something"
        return [f["help"] for f in found["violations"] if f["impact"] in ("serious", "critical")]

    return faults
