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
from figures.page.assets import joined
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
    packed = {
        site["name"]: [
            base64.b64encode(content.rows(site["name"], i)).decode()
            for i in content.indices(site["name"])
        ]
        for site in content.meta["sites"]
    }
    files = sum(len(rows) for rows in packed.values())
    size = sum(len(rows) for of_site in packed.values() for rows in of_site)
    inside = size <= INSIDE
    page = Environment(autoescape=False).from_string(joined("explorer/page.html"))
    text = page.render(
        title=escape(content.meta["title"]),
        paper=THEMES[content.meta["theme"]].paper,
        meta=_safe(content.meta),
        rows=_safe(packed if inside else {}),
        folder=_safe(None if inside else folder.name),
        script=script(),
        style=style(),
    )
    told = f"{out.name} takes {len(text) / 1e6:.1f} MB"
    if not inside:
        told += f"; its attention rows, {size / 1e6:.1f} MB in {files} files, go beside it: keep {folder.name}/ with it"
    say(told)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        if not inside:
            _write_rows(packed, part)
        if folder.exists():
            shutil.rmtree(folder)
        if not inside:
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    write_text(out, text)
    return out


def _write_rows(packed: dict[str, list[str]], folder: Path) -> None:
    """Write a script a site and frame: pages that are opened as files may load scripts, and nothing else."""
    for site, of_site in packed.items():
        (folder / site).mkdir(parents=True)
        for i, rows in enumerate(of_site):
            line = f"exploredRows({json.dumps(site)},{i},{json.dumps(rows)});\n"
            (folder / site / f"{i}.js").write_text(line, encoding="ascii")


def _ours(folder: Path) -> bool:
    """Whether there is nothing in a folder but rows of a page."""
    return folder.is_dir() and all(
        path.is_dir() or (path.suffix == ".js" and path.stem.isdigit())
        for path in folder.rglob("*")
    )


def _safe(data: object) -> str:
    """JSON that neither ends nor changes the script element it stands in."""
    return json.dumps(data).replace("<", "\\u003c")
