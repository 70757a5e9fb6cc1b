"""Write a figure as HTML, PNG, SVG or PDF; the suffix says which."""

from __future__ import annotations

import os
from pathlib import Path

import plotly.graph_objects as go

from probes.errors import InputError

PICTURES = (".png", ".svg", ".pdf")


def save(figure: go.Figure, path: Path | str, *, scale: float = 2) -> Path:
    """Write a figure under a temporary name and rename it.

    Parameters
    ----------
    path
        ``.html`` holds everything and opens offline; ``.png``, ``.svg`` and ``.pdf`` are drawn by a
        Chrome or Chromium.
    scale
        Pixels of the PNG per pixel of the figure.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    InputError
        Another suffix, no such folder, or no browser for a picture.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix != ".html" and suffix not in PICTURES:
        raise InputError(
            f"{path.name} given; expected a name that ends in .html, .png, .svg or .pdf; change its suffix"
        )
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder; expected one to write into; make it first")
    if suffix == ".html":
        page: str = figure.to_html(
            include_plotlyjs=True, auto_play=False, config={"displaylogo": False}
        )
        content = page.encode()
    else:
        content = _picture(figure, suffix[1:], scale)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
    return path


def _picture(figure: go.Figure, kind: str, scale: float) -> bytes:
    try:
        content: bytes = figure.to_image(format=kind, scale=scale)
    except RuntimeError as error:  # what plotly makes of kaleido's complaint
        if "chrome" not in str(error).lower():
            raise
        raise InputError(
            f"a .{kind} picture needs Chrome or Chromium and none was found; expected one on the PATH; "
            "install it (apt-get install chromium), or save as .html"
        ) from error
    return content
