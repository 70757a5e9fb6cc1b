"""``efficient-sam2 fetch``: an official checkpoint onto this machine."""

from __future__ import annotations

from typing import Annotated

import typer


def fetch(
    name: Annotated[str, typer.Argument(help="sam2.1-tiny, -small, -base-plus or -large")],
) -> None:
    """Fetch an official checkpoint once, verified; later commands find it by the model's name."""
    from probes.checkpoints import fetch_checkpoint

    print(fetch_checkpoint(name, progress=True))
