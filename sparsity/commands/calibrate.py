"""``efficient-sam2 calibrate`` and ``recheck``: videos in, a profile that keeps a promise out; and whether it holds on others."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probes.errors import InputError
from probes.files import whole, write_text
from sparsity.commands.options import ClipList, Force, Jobs, Scheduler, names_in, with_model

if TYPE_CHECKING:
    from sparsity.work.model import ModelChoice


class Bound(str, Enum):
    """Kinds of bound, as `sparsity.calibration.bounds.BoundKind` names them."""

    certain = "certain"
    share = "share"
    approximate = "approximate"


Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts", help="folder with NAME.json, NAME.png, or NAME/ with a mask for each frame"
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop", help="loss accepted, in points of J&F against true masks [default: 1]"
    ),
]
MaxDrift = Annotated[
    float | None,
    typer.Option(
        "--max-drift",
        help="instead: in points of agreement with the dense run; no true masks needed [default without them: 5]",
    ),
]
Groups = Annotated[
    Path | None,
    typer.Option(
        "--groups",
        help="file with lines clip,source; clips of one source count as one; default: by names such as yard-part2",
    ),
]

SECONDS = {"s": 1, "min": 60, "h": 3600}


@with_model
def calibrate(
    out: Annotated[Path, typer.Option("--out", help="JSON file for the profile")],
    recordings: Annotated[
        list[Path] | None,
        typer.Argument(help="recordings of some of the videos, which are then not watched again"),
    ] = None,
    videos: Annotated[
        Path | None, typer.Option("--videos", help="folder of videos, or of folders of frames")
    ] = None,
    prompts: Prompts = None,
    clips: Annotated[
        Path | None, typer.Option("--clips", help="file with the names to take, one a line")
    ] = None,
    made: Annotated[
        int, typer.Option("--made", min=0, help="add so many made clips with known masks")
    ] = 0,
    max_drop: MaxDrop = None,
    max_drift: MaxDrift = None,
    target_speedup: Annotated[
        float | None,
        typer.Option("--target-speedup", help="instead: the surest setting so much cheaper"),
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="of the bound")] = 0.95,
    bound: Annotated[
        Bound | None,
        typer.Option("--bound", help="its kind; certain where the clips suffice, else share"),
    ] = None,
    groups: Groups = None,
    adapter: Annotated[
        str,
        typer.Option(
            "--adapter", help="of windows not computed: identity, ridge, bottleneck or cached"
        ),
    ] = "cached",
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="paper, or recommended: windows not computed reuse what they gave before; default: both are tried",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="time to spend, such as 20min; decides how many are tried"),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="HTML file that shows what was found")
    ] = None,
    split_seed: Annotated[
        int, typer.Option("--split-seed", min=0, help="of the split of the clips")
    ] = 0,
    jobs: Jobs = 0,
    scheduler: Scheduler = None,
    *,
    choice: ModelChoice,
    force: Force = False,
) -> None:
    """Find the fastest setting that keeps a promise on videos like these, and write it as a profile."""
    from figures.calibration import write_report
    from figures.style import evidence
    from sparsity.calibration.calibrate import calibrate as run
    from sparsity.calibration.request import Request
    from sparsity.calibration.seen import pictures_of
    from sparsity.clips.sources import ClipSource
    from sparsity.profile import save_profile
    from sparsity.work.spread import Spread
    from sparsity.work.store import check_different, check_new_file

    details = out.with_name(f"{out.stem}.calibration.json")
    for file in filter(None, (out, report)):
        check_new_file(file, force)
    check_different(*filter(None, (out, details, report)))
    if report is not None and not report.parent.is_dir():
        raise InputError(f"{report} given; {report.parent} is no folder; make it first")
    seconds = None if budget is None else seconds_of_budget(budget)
    source = ClipSource(videos, prompts)
    spread = Spread(jobs, scheduler, gpu=choice.may_take_a_gpu)
    request = Request(
        source,
        tuple(source.names(made, names_in(clips))),
        choice,
        max_drop,
        target_speedup,
        confidence,
        split_seed,
        seconds,
        tuple(recordings or ()),
        None if bound is None else bound.value,
        adapter,
        base,
        max_drift,
        groups,
    )
    found = run(request, out.with_name(f"{out.name}.clips"), spread)
    write_text(details, json.dumps(found.report, separators=(",", ":")))
    with nullcontext() if report is None else whole(report) as part:
        if part is not None:
            said = evidence(choice.model if choice.trained else "random")
            pictures = pictures_of(source, choice, found.profile, found.report["worst"])
            write_report(found.report, part, said, pictures)
        save_profile(found.profile, out)
    print(found.text())


def seconds_of_budget(text: str) -> float:
    """Read a time such as ``90s``, ``20min`` or ``1.5h``.

    Raises
    ------
    InputError
        It is no such time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h)", text.strip())
    if match is None or float(match[1]) == 0:
        raise InputError(
            f"budget {text!r} given; expected a time such as 90s, 20min or 1h; change it"
        )
    return float(match[1]) * SECONDS[match[2]]


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
