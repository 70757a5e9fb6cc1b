"""``efficient-sam2 fetch``, ``sites`` and ``profile``: checkpoints, a model's attention calls, and profiles."""

from __future__ import annotations

from pathlib import Path
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
    found = find_sites(built, only or "*")
    print(f"{'site':36}heads  tokens   window")
    for site in found:
        window = f"{site.window} x {site.window}" if site.window else "all"
        print(f"{site.name:36}{site.heads:5}  {f'{site.grid} x {site.grid}':9}{window}")


profiles = typer.Typer(help="Look at profiles.", no_args_is_help=True, rich_markup_mode=None)


@profiles.command("show", epilog="Example: efficient-sam2 profile show paper")
def show(
    profile: Annotated[str, typer.Argument(help="a built-in profile's name or a JSON file")],
) -> None:
    """Print a profile as JSON, every setting spelled out."""
    from sparsity.profile import load_profile

    print(load_profile(profile).to_json())


@profiles.command("list", epilog="Example: efficient-sam2 profile list")
def list_() -> None:
    """Name the built-in profiles, and what each promises."""
    from sparsity.profile import BUILTIN, CALIBRATED, load_profile

    for name in (*BUILTIN, *CALIBRATED):
        loaded = load_profile(name)
        promise = loaded.promise.text() if loaded.promise else "promises nothing"
        print(
            f"{name:11} for {'any model' if loaded.model is None else loaded.model[:19] + '…'}: {promise}"
        )


@profiles.command("check", epilog="Example: efficient-sam2 profile check mine.json")
def check(
    profile: Annotated[str, typer.Argument(help="a built-in profile's name or a JSON file")],
) -> None:
    """Say whether a profile is valid, for which model it was made, and what it promises."""
    from sparsity.profile import load_profile

    loaded = load_profile(profile)
    print(f"{loaded.name}: valid, for {loaded.model or 'any model'}")
    print(loaded.promise.text() if loaded.promise else "promises nothing: nobody calibrated it")
