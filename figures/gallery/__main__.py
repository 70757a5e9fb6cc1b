"""Make every picture of the gallery anew: made clips, the demo model, committed measurements."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from figures.export import save
from figures.style import ThemeName

HERE = Path(__file__).parent

BUDGET = 150_000
"""Bytes of a picture."""


def make(folder: Path, theme: ThemeName) -> list[Path]:
    """Make all pictures; needs the demo model's weights and a Chrome or Chromium."""
    from figures.gallery.attention import attention, recorded
    from figures.gallery.routing import routing, tracked
    from figures.gallery.speed import speed

    with TemporaryDirectory() as work:
        drawn = attention(recorded(Path(work) / "made.recording"), theme)
        drawn |= routing(tracked(), theme)
        drawn |= speed(theme)
        return [
            _slim(save(figure, Path(work) / f"{name}.png", scale=2), folder / f"{name}.png")
            for name, figure in drawn.items()
        ]


def _slim(large: Path, path: Path) -> Path:
    """Write a PNG again with 256 colours, at the largest size that keeps it within `BUDGET`, and return its path."""
    with Image.open(large) as opened:
        picture = opened.convert("RGB")
    for share in (0.63, 0.58, 0.54, 0.5, 0.46, 0.42):
        size = round(share * picture.width), round(share * picture.height)
        small = picture.resize(size, Image.Resampling.LANCZOS)
        small.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= BUDGET:
            break
    return path


if __name__ == "__main__":
    for path in make(HERE, "light"):
        print(path.name, path.stat().st_size // 1000, "kB")
