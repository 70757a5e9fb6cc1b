"""``efficient-sam2 recheck``: does a profile's promise hold on fresh clips? Nothing is searched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsity.commands.calibrate import Bound, Groups, MaxDrift, MaxDrop, Prompts
from sparsity.commands.options import ClipList, Force, Jobs, Scheduler, names_in, with_model

if TYPE_CHECKING:
    from sparsity.work.model import ModelChoice

BROKEN = 3
"""Exit status where the profile doesn't hold."""


@with_model
def recheck(
    profile: Annotated[str, typer.Argument(help="a built-in profile's name or a JSON file")],
    out: Annotated[
        Path, typer.Option("--out", help="JSON file for the profile with its new promise")
    ],
    videos: Annotated[
        Path | None, typer.Option("--videos", help="folder of videos it has not seen")
    ] = None,
    prompts: Prompts = None,
    clips: ClipList = None,
    made: Annotated[int, typer.Option("--made", min=0, help="add so many made clips")] = 0,
    max_drop: MaxDrop = None,
    max_drift: MaxDrift = None,
    confidence: Annotated[float, typer.Option("--confidence", help="of the bound")] = 0.95,
    bound: Annotated[Bound | None, typer.Option("--bound", help="its kind")] = None,
    groups: Groups = None,
    jobs: Jobs = 0,
    scheduler: Scheduler = None,
    *,
    choice: ModelChoice,
    force: Force = False,
) -> None:
    """Test one profile on fresh clips, also with other weights; status 3 where it doesn't hold."""
    from sparsity.calibration.recheck import recheck as run
    from sparsity.calibration.request import Request
    from sparsity.clips.sources import ClipSource
    from sparsity.profile import load_profile, save_profile
    from sparsity.work.spread import Spread
    from sparsity.work.store import check_new_file

    check_new_file(out, force)
    source = ClipSource(videos, prompts)
    request = Request(
        source,
        tuple(source.names(made, names_in(clips))),
        choice,
        max_drop,
        confidence=confidence,
        bound=None if bound is None else bound.value,
        max_drift=max_drift,
        groups=groups,
    )
    spread = Spread(jobs, scheduler, gpu=choice.may_take_a_gpu)
    found = run(load_profile(profile), request, out.with_name(f"{out.name}.clips"), spread)
    print(found.text())
    if found.profile is None:
        raise typer.Exit(BROKEN)
    save_profile(found.profile, out)
