"""Every notebook runs in a real kernel on the demo model, and its number is a number with n and an interval."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from probes.estimates import FEWEST

HERE = Path(__file__).parents[2] / "notebooks"
CLIPS = {
    "01_what_the_encoder_sees": (2, 5),
    "02_what_the_decoder_sees": (2, 5),
    "03_what_memory_recalls": (2, 5),
    "04_is_low_attention_low_effect": (2, 5),
    "05_calibrate_your_videos": (3, 5),
    "06_speed_and_accuracy": (2, 6),
    "07_which_heads_carry_identity": (2, 6),
    "08_can_attention_tell_failure": (10, 10),
}
"""By notebook: clips behind its number when the tests run it, and when it is stored."""

NUMBERS = {"04_is_low_attention_low_effect": 2}
"""How many numbers a notebook gives, where not one."""

LONG = ("05_calibrate_your_videos",)
"""Take minutes: tests/slow runs them."""
RESULT = re.compile(
    r"^RESULT (.+?) (-?[\d.e+-]+) \((?:95 % interval (-?[\d.e+-]+) to (-?[\d.e+-]+)|too few for an interval), "
    r"n = (\d+) clips\)$",
    re.M,
)


def results(notebook: dict[str, Any]) -> list[tuple[float, float, float, int]]:
    """The numbers of a notebook, the ends of their intervals, which are infinite of too few clips, and n."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    said = "".join("".join(output.get("text", "")) for output in outputs)
    found = RESULT.findall(said)
    return [
        (float(value), float(low or -math.inf), float(high or math.inf), int(n))
        for _, value, low, high, n in found
    ]


# what the kernel's own packages warn of is not ours
@pytest.mark.filterwarnings("ignore")
@pytest.mark.process
@pytest.mark.parametrize("name", [name for name in CLIPS if name not in LONG])
def test_a_notebook_runs_and_gives_its_number(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check(name, monkeypatch, tmp_path)


def check(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run a notebook on few clips, and look at its number and its figures."""
    # takes two seconds, which those spare who run no notebook
    from notebooks.refresh import FIGURE, execute

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = execute(HERE / f"{name}.ipynb", quick=True)
    numbers = results(notebook)
    assert len(numbers) == NUMBERS.get(name, 1)
    for value, low, high, n in numbers:
        assert n == CLIPS[name][0] and low <= value <= high and math.isfinite(value)
        assert math.isinf(low) == math.isinf(high) == (n < FEWEST)
    drawn = [
        output.data[FIGURE]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if FIGURE in output.get("data", {})
    ]
    assert drawn
    captions = [note for figure in drawn for note in figure["layout"]["annotations"]]
    assert "illustrates the method" in str(captions).replace("<br>", " ")
    if name.startswith("02"):
        assert numbers[0][0] > 2, (
            "on the demo model the decoder looks at the object more than the encoder"
        )


@pytest.mark.parametrize("name", CLIPS)
def test_a_notebook_is_small_and_what_it_stores_is_complete(name: str) -> None:
    path = HERE / f"{name}.ipynb"
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert path.stat().st_size < 350_000 and len(notebook["cells"]) <= 14
    assert "/tmp" not in text
    if any(cell.get("outputs") for cell in notebook["cells"]):
        assert {n for *_, n in results(notebook)} == {CLIPS[name][1]}
        assert "image/jpeg" in text


def test_every_notebook_is_run() -> None:
    assert sorted(CLIPS) == [path.stem for path in sorted(HERE.glob("*.ipynb"))]


def test_the_map_names_every_notebook() -> None:
    said = (HERE / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in HERE.glob("*.ipynb") if path.name not in said] == []
