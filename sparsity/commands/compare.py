"""``efficient-sam2 compare``: two runs side by side, as one offline page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probes.errors import InputError


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
