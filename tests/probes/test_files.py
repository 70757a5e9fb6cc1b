"""Tests of files that are whole or absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from probes.files import sweep, whole


@pytest.mark.process
def test_what_a_killed_process_left_is_swept_and_what_another_writes_is_not(tmp_path: Path) -> None:
    code = "import os; from pathlib import Path; from probes.files import whole\n"
    code += (
        f"with whole(Path({str(tmp_path / 'in' / 'a.png')!r})) as part: part.touch(); os._exit(9)"
    )
    (tmp_path / "in").mkdir()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    (left,) = (tmp_path / "in").iterdir()
    assert left.suffix == ".png"
    others = (tmp_path / ".hidden.part.png", tmp_path / ".b.part", tmp_path / "a.1.part.png")
    for other in others:
        other.touch()
    with whole(tmp_path / "b.json") as part:
        part.touch()
        assert part.name == f".b.{os.getpid()}.part.json"
        sweep(tmp_path)
        assert part.exists() and not left.exists()
    assert all(other.exists() for other in others)
