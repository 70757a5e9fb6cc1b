"""``efficient-sam2 explore``: a recording as one offline page to click through."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from figures.style import ThemeName
from probes.errors import InputError


def explore(
    recording: Annotated[
        Path, typer.Argument(help="recording with attention rows: made by probe with --rows")
    ],
    out: Annotated[Path, typer.Option("--out", help="the page, ending in .html")],
    video: Annotated[
        str | None,
        typer.Option("--video", help="the recorded video; without it, small thumbnails are shown"),
    ] = None,
    clip: Annotated[
        str | None, typer.Option("--clip", help="which clip, where the recording holds several")
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="dark theme")] = False,
) -> None:
    """Write the explorer as a page that needs no network: click on a pixel, see what it attends to.

    It is one file while its attention rows take up to 8 MB; more lie in a folder beside it, which it tells beforehand.
    """
    from figures.explorer.content import explorer_content
    from figures.explorer.page import write_page
    from figures.explorer.widget import frames_of
    from probes.records import load_recording

    if out.suffix.lower() != ".html":
        raise InputError(f"--out is {out}; expected a name that ends in .html; change it")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is no folder; expected one to write into; make it first")
    theme: ThemeName = "dark" if dark else "light"
    content = explorer_content(load_recording(recording), clip, frames_of(video), theme)
    print(write_page(content, out, lambda line: print(line, file=sys.stderr)))
