"""The gallery: the page shows the pictures that are there, they are small, and their figures can be drawn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from figures.gallery.__main__ import BUDGET, HERE
from figures.gallery.speed import demo_results, speed

ROOT = HERE.parents[1]


def shown(page: str) -> set[str]:
    """Names of the gallery's pictures in a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return set(re.findall(r"!\[[^]]+\]\([./]*figures/gallery/([\w-]+)\.png\)", text))


def test_the_pages_show_every_picture_and_no_other() -> None:
    there = {path.stem for path in HERE.glob("*.png")}
    unmeasured = set() if demo_results() else {"speed-accuracy"}
    assert shown("README.md") | shown("docs/gallery.md") == there | unmeasured
    assert shown("README.md") != shown("docs/gallery.md")


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
    assert {"times", "scaling"} <= drawn.keys()
    for name in ("times", "scaling"):
        (caption,) = [
            note.text for note in drawn[name].layout.annotations if note.name == "caption"
        ]
        assert "Random weights" in caption and re.search(r"bfloat16|float32", caption)
