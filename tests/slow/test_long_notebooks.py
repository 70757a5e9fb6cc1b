"""Notebooks that take minutes, checked as the others are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebooks.test_notebooks import LONG, check


@pytest.mark.process
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LONG)
def test_a_long_notebook_runs_and_gives_its_number(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check(name, monkeypatch, tmp_path)
