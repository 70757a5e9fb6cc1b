"""``efficient-sam2 sites`` names what the other commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from probes.sites import attention_sites
from sparsity.commands.app import run


def test_sites_are_listed_in_their_order(
    padded_config: Path, padded_predictor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sites", "--config", str(padded_config)]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        s.name for s in attention_sites(padded_predictor)
    ]
    windowed = next(line for line in lines if line.startswith("encoder.stage3.block4.window"))
    assert windowed.endswith("16 x 16  14 x 14")
    assert run(["sites", "--config", str(padded_config), "--sites", "memory.*.cross"]) == 0
    _, *fewer = capsys.readouterr().out.splitlines()
    assert fewer == [line for line in lines if line.startswith("memory") and ".cross" in line]
    assert 0 < len(fewer) < len(lines)


def test_a_pattern_that_matches_nothing_is_refused(
    padded_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sites", "--config", str(padded_config), "--sites", "nosuch"]) == 2
    said = capsys.readouterr()
    assert "no attention site matches 'nosuch'" in said.err
    assert not said.out
