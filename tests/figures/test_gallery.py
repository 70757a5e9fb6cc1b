"""The gallery: the page shows the pictures that are there, they are small, and their figures can be drawn."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import figures
from figures.gallery.__main__ import BUDGET, HERE
from figures.gallery.speed import TRADE_OFFS, speed
from probes import build_predictor, record
from sparsity.overlay import write_video
from tests.conftest import make_frames, make_mask

ROOT = HERE.parents[1]


def shown(page: str) -> set[str]:
    """Names of the gallery's pictures in a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return set(re.findall(r"!\[[^]]+\]\([./]*figures/gallery/([\w-]+)\.png\)", text))


def test_the_pages_show_every_picture_and_no_other() -> None:
    there = {path.stem for path in HERE.glob("*.png")}
    assert shown("README.md") | shown("docs/gallery.md") == there
    assert shown("README.md") != shown("docs/gallery.md")


def test_the_lines_of_the_page_draw_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    first, *blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    frames, mask = make_frames(10), make_mask()
    windows = np.eye(4, dtype=bool)
    names = {
        "mask": mask,
        "frame": frames[8],
        "frames": frames,
        "shown": [figures.RoutedFrame(frames[0], mask, windows, "routed")],
        "window_share": 0.25,
        "build_predictor": lambda _: build_predictor("demo", image_size=256, device="cpu"),
        "record": record,
    }
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "clip.mp4", frames, None)
    shutil.copyfile(TRADE_OFFS, "speed.json")
    exec(re.sub("from probes import .*", "", first), names)
    for block in blocks:
        if "trade_offs_of" not in block:  # of a measurement with quality, which notebook 06 makes
            exec(block, names)
    assert len(blocks) >= 8


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in HERE.glob("*.png")}
    assert {name: size for name, size in sizes.items() if size > BUDGET} == {}
    assert 0 < sum(sizes.values()) <= 1_200_000


@pytest.mark.parametrize("path", sorted(HERE.glob("*.png")), ids=lambda path: path.stem)
def test_pictures_are_wide_enough_to_read(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.width >= 700


def test_measured_figures_say_what_they_are_of() -> None:
    drawn = speed("light")
    assert drawn.keys() == {"times", "scaling", "speed-accuracy"}
    points = {trace.name for trace in drawn["speed-accuracy"].data}
    assert {"stock", "SWR", "SMR", "paper", "recommended"} <= points
    for name in ("times", "scaling"):
        (caption,) = [
            note.text for note in drawn[name].layout.annotations if note.name == "caption"
        ]
        assert "Random weights" in caption and re.search(r"bfloat16|float32", caption)
