"""``efficient-sam2 profile``: show, list and check profiles."""

from __future__ import annotations

from typing import Annotated

import typer

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
