"""File in, masks out: what is measured, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from probes.errors import InputError
from sparsity.commands.app import run
from sparsity.evaluation.end_to_end import run_end_to_end, table
from sparsity.evaluation.results import EndToEnd
from sparsity.work.model import ModelChoice


def test_the_model_alone_stands_beside_what_the_user_waits_for() -> None:
    choice = ModelChoice(image_size=128, device="cpu")
    result = run_end_to_end(["exact"], choice, frames=2, sizes=["720p"], rounds=1)
    assert [(row.size, row.profile) for row in result.rows] == [
        ("720p", "dense"),
        ("720p", "exact"),
    ]
    for row in result.rows:
        assert 0 < row.model_ms < row.masks_ms and 0 < row.model_cpu_ms < row.overlay_cpu_ms
        assert {"model", "frames", "masks", "overlay", "end", "all"} <= set(row.stages)
    said = table(result).splitlines()
    assert said[2].split()[:2] == ["720p", "dense"] and said[2].split()[-3:] == ["1.00"] * 3
    assert EndToEnd.model_validate_json(result.to_json()) == result


def test_other_rows_and_sizes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="size '8K' given; expected 720p, 1080p, 4K"):
        run_end_to_end([], ModelChoice(), sizes=["8K"])
    out = tmp_path / "out.json"
    for option in (["--windows", "4/16"], ["--compile"], ["--objects", "2"], ["--prompt", "a.png"]):
        words = ["bench", "--end-to-end", *option, "--out", str(out)]
        assert run(words) == 2 and not out.exists()
        assert f"--end-to-end and {option[0]} given" in capsys.readouterr().err
    assert run(["bench", "--size", "720p", "--out", str(out)]) == 2 and not out.exists()
    assert "--size 720p given without --end-to-end" in capsys.readouterr().err
