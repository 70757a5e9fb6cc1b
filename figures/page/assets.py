"""Scripts and style sheets, which lie as files beside the code that uses them."""

from __future__ import annotations

from pathlib import Path

FIGURES = Path(__file__).parent.parent


def joined(*names: str) -> str:
    """Text of files, by their paths in this package, one after the other."""
    return "\n".join((FIGURES / name).read_text(encoding="utf-8") for name in names)
