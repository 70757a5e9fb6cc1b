"""The explorer as an offline page; what would make it large lies beside it and is loaded when it is looked at."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from html import escape
from pathlib import Path

from jinja2 import Environment

from figures.explorer.content import Content
from figures.page import joined
from figures.style import THEMES
from probes.errors import InputError
from probes.files import write_text

INSIDE = 8_000_000
"""Bytes of attention rows that a page holds itself, at most; more lie in a folder beside it."""


def script() -> str:
    """The JavaScript module; its default export is an anywidget, and it exports `mount`."""
    own = (f"explorer/{name}.js" for name in ("rows", "canvas", "taking", "explorer"))
    return joined("page/elements.js", "page/kernel.js", *own)


def style() -> str:
    """The style sheet."""
    return joined("page/look.css", "explorer/explorer.css")


def beside(out: Path) -> Path:
    """The folder beside a page that its attention rows go to, where they are many."""
    return out.with_suffix(".data")


def write_page(content: Content, out: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Write the page, which is whole or absent and needs no network, and return its path.

    Up to `INSIDE` bytes of attention rows lie inside the page, more in `beside`, a file a site and frame, which the
    page loads when it shows them.

    Parameters
    ----------
    say
        Told, before anything is written, how large the page will be and what lies beside it.

    Raises
    ------
    InputError
        The folder beside it holds other files.
    """
    folder = beside(out)
    if folder.exists() and not _ours(folder):
        raise InputError(
            f"{folder} holds other files; expected none, or the attention rows of an earlier page; choose another "
            "name for the page"
        )
    sites = {site["name"]: content.indices(site["name"]) for site in content.meta["sites"]}
    files = sum(len(indices) for indices in sites.values())
    # the larger of a frame in the middle and the last one stands for all of a site
    about = sum(
        len(of) * max(len(_packed(content, site, of[n])) for n in (len(of) // 2, -1))
        for site, of in sites.items()
    )
    rows = None
    if about <= 2 * INSIDE:
        rows = {site: [_packed(content, site, i) for i in of] for site, of in sites.items()}
        about = sum(len(packed) for of_site in rows.values() for packed in of_site)
    inside = rows if about <= INSIDE else None
    page = Environment(autoescape=False).from_string(joined("explorer/page.html"))
    text = page.render(
        title=escape(content.meta["title"]),
        paper=THEMES[content.meta["theme"]].paper,
        meta=_safe(content.meta),
        rows=_safe(inside or {}),
        folder=_safe(None if inside else folder.name),
        script=script(),
        style=style(),
    )
    told = f"{out.name} takes {len(text) / 1e6:.1f} MB"
    if not inside:
        told += f"; its attention rows, about {about / 1e6:.1f} MB in {files} files, go beside it: keep {folder.name}/ with it"
    say(told)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        if not inside:
            for site, of in sites.items():
                (part / site).mkdir(parents=True)
                for i in of:
                    (part / site / f"{i}.js").write_text(
                        _loaded(content, site, i), encoding="ascii"
                    )
        if folder.exists():
            shutil.rmtree(folder)
        if not inside:
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    write_text(out, text)
    return out


def _packed(content: Content, site: str, index: int) -> str:
    return base64.b64encode(content.rows(site, index)).decode()


def _loaded(content: Content, site: str, index: int) -> str:
    """Rows as a script: a page that was opened as a file may load scripts, and nothing else."""
    return (
        f"exploredRows({json.dumps(site)},{index},{json.dumps(_packed(content, site, index))});\n"
    )


def _ours(folder: Path) -> bool:
    """Whether there is nothing in a folder but rows of a page."""
    return folder.is_dir() and all(
        path.is_dir() or (path.suffix == ".js" and path.stem.isdigit())
        for path in folder.rglob("*")
    )


def _safe(data: object) -> str:
    """JSON that neither ends nor changes the script element it stands in."""
    return json.dumps(data).replace("<", "\\u003c")
