"""The explorer as one offline HTML file."""

from __future__ import annotations

import base64
import json
import os
from html import escape
from pathlib import Path

from jinja2 import Environment

from figures.explorer.content import Content
from figures.explorer.sources import HERE, script, style
from figures.style import THEMES


def write_page(content: Content, out: Path) -> Path:
    """Write the page under a temporary name and rename it; it needs no network."""
    rows = {
        site["name"]: [
            base64.b64encode(content.rows(site["name"], i)).decode()
            for i in content.indices(site["name"])
        ]
        for site in content.meta["sites"]
    }
    template = Environment(autoescape=False).from_string(
        (HERE / "page.html").read_text(encoding="utf-8")
    )
    text = template.render(
        title=escape(content.meta["title"]),
        paper=THEMES[content.meta["theme"]].paper,
        meta=_safe(content.meta),
        rows=_safe(rows),
        script=script(),
        style=style(),
    )
    part = out.with_name(f".{out.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, out)
    return out


def _safe(data: object) -> str:
    """JSON that neither ends nor changes the script element it stands in."""
    return json.dumps(data).replace("<", "\\u003c")
