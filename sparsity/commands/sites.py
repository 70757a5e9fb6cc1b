"""``efficient-sam2 sites``: the attention calls of a model, by the names that ``probe`` and ``observe`` take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sites(
    model: Annotated[
        str, typer.Argument(help="demo, sam2.1-tiny, -small, -base-plus or -large")
    ] = "demo",
    only: Annotated[
        list[str] | None, typer.Option("--sites", help='only these, such as "memory.*"; repeat')
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="any sam2 configuration in yaml, instead of MODEL"),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="side of the model's input in pixels")
    ] = None,
) -> None:
    """List a model's attention sites in the order in which they run; needs no checkpoint."""
    from probes.models import build_predictor
    from probes.sites import find_sites

    built = build_predictor(
        None if config else model,
        config=config,
        image_size=image_size,
        weights="random",
        device="cpu",
    )
    print(f"{'site':36}heads  tokens   window")
    for site in find_sites(built, only or "*"):
        window = f"{site.window} x {site.window}" if site.window else "all"
        print(f"{site.name:36}{site.heads:5}  {f'{site.grid} x {site.grid}':9}{window}")
