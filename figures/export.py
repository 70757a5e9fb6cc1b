"""What leaves this package: a figure as HTML, PNG, SVG or PDF, and several on one page with their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from probes.errors import InputError
from probes.files import check_folder_of, whole, write_text

PICTURES = (".png", ".svg", ".pdf")

PLAIN = {"displaylogo": False}
"""How plotly shows a figure in a page."""


def save(figure: go.Figure, path: Path | str, *, scale: float = 2) -> Path:
    """Write a figure to a file, which is whole or absent; the suffix says in which form.

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
    check_name(path)
    suffix = path.suffix.lower()
    if suffix == ".html":
        page: str = figure.to_html(include_plotlyjs=True, auto_play=False, config=PLAIN)
        content = page.encode()
    else:
        content = _picture(figure, suffix[1:], scale)
    with whole(path) as part:
        part.write_bytes(content)
    return path


def check_name(path: Path) -> None:
    """Refuse a name that `save` can't write to.

    Raises
    ------
    InputError
        It has another suffix, or there is no such folder.
    """
    suffix = path.suffix.lower()
    if suffix != ".html" and suffix not in PICTURES:
        raise InputError(
            f"{path.name} given; expected a name that ends in .html, .png, .svg or .pdf; change its suffix"
        )
    check_folder_of(path)


def _picture(figure: go.Figure, kind: str, scale: float) -> bytes:
    try:
        # without a player's frames, which would all be sent to the browser
        still = go.Figure(figure.data, figure.layout)
        content: bytes = still.to_image(format=kind, scale=scale)
    except RuntimeError as error:  # what plotly makes of kaleido's complaint
        if "chrome" not in str(error).lower():
            raise
        raise InputError(
            f"a .{kind} picture needs Chrome or Chromium and none was found; expected one on the PATH; "
            "install it (apt-get install chromium), or save as .html"
        ) from error
    return content


def save_page(path: Path, template: str, **fields: Any) -> None:
    """Write a page, which is whole or absent and opens offline.

    Parameters
    ----------
    template
        Name of a file in ``figures/templates``. In it ``{{ figure|plot }}`` stands for a figure; all else is text
        and never markup.
    fields
        What the template names.
    """
    pages = Environment(loader=PackageLoader("figures"), autoescape=True)
    pages.filters["plot"] = _plot
    text = pages.get_template(template).render(plotly=Markup(get_plotlyjs()), **fields)
    write_text(path, text)


def _plot(figure: go.Figure) -> Markup:
    return Markup(
        figure.to_html(full_html=False, include_plotlyjs=False, auto_play=False, config=PLAIN)
    )
