"""Make every picture of the gallery anew: made clips, the demo model."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from figures.export import save
from figures.style import ThemeName

HERE = Path(__file__).parent


def main() -> None:
    """Make all pictures; needs the demo model's weights and a Chrome or Chromium."""
    from figures.gallery.attention import attention
    from figures.gallery.hero import hero

    print(_slim(save(hero(), HERE / "hero.png", scale=1.5)))
    themes: tuple[ThemeName, ...] = ("light", "dark")
    for theme in themes:
        for name, figure in attention(theme).items():
            print(_slim(save(figure, HERE / f"{name}-{theme}.png", scale=1.2)))


def _slim(path: Path) -> Path:
    """Reduce a PNG to 256 colours, a third of its bytes."""
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


if __name__ == "__main__":
    main()
