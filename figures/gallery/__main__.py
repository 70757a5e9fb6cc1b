"""Make every picture of the gallery anew: made clips, the demo model, committed measurements."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from figures.export import save
from figures.style import ThemeName

HERE = Path(__file__).parent


def make(folder: Path, theme: ThemeName) -> list[Path]:
    """Make all pictures; needs the demo model's weights and a Chrome or Chromium."""
    from figures.gallery.attention import attention, recorded
    from figures.gallery.routing import routing, tracked
    from figures.gallery.speed import speed

    with TemporaryDirectory() as work:
        drawn = attention(recorded(Path(work) / "made.recording"), theme)
    drawn |= routing(tracked(), theme)
    drawn |= speed(theme)
    return [_slim(save(figure, folder / f"{name}.png", scale=1.25)) for name, figure in drawn.items()]


def _slim(path: Path) -> Path:
    """Reduce a PNG to 256 colours, a third of its bytes."""
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    return path


if __name__ == "__main__":
    for path in make(HERE, "light"):
        print(path.name, path.stat().st_size // 1000, "kB")
