"""``efficient-sam2 demo``, ``explore`` and ``compare``: pages that open offline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from figures.style import ThemeName
from probes.errors import InputError
from sparsity.commands.options import check_out


def demo(
    out: Annotated[
        Path, typer.Option("--out", help="folder for the page, the overlay and the report")
    ] = Path("demo-output"),
    clips: Annotated[int, typer.Option("--clips", min=5, help="made clips to calibrate on")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Probe, calibrate and track made clips; a table and a page of figures."""
    from sparsity.commands.story import run_demo

    found = run_demo(out, clips)
    print(found.json() if as_json else found.text())


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
    from figures.explorer.content import explorer_content, frames_of
    from figures.explorer.page import write_page
    from probes.records import load_recording

    check_out(out, ".html")
    theme: ThemeName = "dark" if dark else "light"
    content = explorer_content(load_recording(recording), clip, frames_of(video), theme)
    print(write_page(content, out, lambda line: print(line, file=sys.stderr)))


def compare(
    first: Annotated[
        Path, typer.Argument(help="a recording made by probe, or a folder written by segment")
    ],
    second: Annotated[Path, typer.Argument(help="the other one, of the same video")],
    out: Annotated[Path, typer.Option("--out", help="the page, .html; or .png, .svg, .pdf")],
    video: Annotated[
        str | None,
        typer.Option("--video", help="the video; without it, small thumbnails are shown"),
    ] = None,
    clip: Annotated[
        str | None, typer.Option("--clip", help="which clip, of recordings that hold several")
    ] = None,
    site: Annotated[
        str | None,
        typer.Option("--site", help="whose attention is shown; default: the first in both"),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", help="X,Y of the pixel that attends; default: on the object"),
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="dark theme")] = False,
) -> None:
    """Lay two runs side by side: masks, agreement, attention of the same pixel, key mass, times."""
    from figures.comparison import compare as draw
    from figures.export import check_name, save

    check_name(out)
    figure = draw(
        first,
        second,
        video,
        clip=clip,
        site=site,
        query_xy=_pixel(at),
        theme="dark" if dark else "light",
    )
    print(save(figure, out))


def _pixel(at: str | None) -> tuple[float, float] | None:
    if at is None:
        return None
    try:
        x, y = map(float, at.split(","))
    except ValueError:
        raise InputError(f"--at {at} given; expected X,Y in pixels; write such as 120,80") from None
    return x, y
