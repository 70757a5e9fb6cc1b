"""``efficient-sam2 fetch``: a checkpoint onto this machine."""

from __future__ import annotations

from typing import Annotated

import typer


def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="sam2.1-tiny, -small, -base-plus or -large, or a Hugging Face name: facebook/sam2.1-hiera-large"
        ),
    ],
) -> None:
    """Fetch a checkpoint once, verified; later commands find it by the same name."""
    from probes.checkpoints import fetch_checkpoint
    from probes.hub import fetch_from_hub, is_hub_name

    bring = fetch_from_hub if is_hub_name(name) else fetch_checkpoint
    print(bring(name, progress=True))
