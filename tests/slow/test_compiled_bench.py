"""``bench --compile``: sam2 as it compiles itself, measured beside the others on a small model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sparsity.commands.app import run
from sparsity.evaluation.results import load_result


@pytest.mark.process
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_compiled_row_stands_beside_eager_ones(dividing_config: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    options = ["--config", str(dividing_config), "--weights", "random", "--windows", "4/16"]
    options += ["--rows", "stock", "--rows", "paper", "--frames", "1", "--compile"]
    assert run(["bench", *options, "--out", str(out)]) == 0
    result = load_result(out)
    assert [row.name for row in result.runs] == ["stock", "paper", "stock compiled"]
    assert result.environment.compiled
    assert all(row.ms_per_frame is not None and row.ratio is not None for row in result.runs)
    assert "vos_optimized" in str(result.run("stock compiled").why)
    assert result.run("stock compiled").flops is None and result.run("paper").flops
