"""The explorer's program and style for the browser: one file a subject, joined to one module."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def script() -> str:
    """The JavaScript module; its default export is an anywidget, and it exports `mount`."""
    return "\n".join(
        (HERE / name).read_text(encoding="utf-8")
        for name in ("rows.js", "canvas.js", "explorer.js")
    )


def style() -> str:
    """The style sheet."""
    return (HERE / "explorer.css").read_text(encoding="utf-8")
