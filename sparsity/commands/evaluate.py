"""``efficient-sam2 evaluate``, ``score`` and ``card``: how good masks are on annotated clips.

A model's with profiles, those that any tool wrote, and a model's on one card that can be compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsity.commands.options import ClipList, Force, Jobs, Scheduler, names_in, with_model

if TYPE_CHECKING:
    from sparsity.work.model import ModelChoice

DataSet = Annotated[
    Path, typer.Argument(help="data set in the layout of DAVIS, YouTube-VOS, MOSE or SA-V")
]


@with_model
def evaluate(
    root: DataSet,
    out: Annotated[Path, typer.Option("--out", help="JSON file for the result")],
    clips: ClipList = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", help="folder with NAME.json for each clip, in place of its first masks"
        ),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", help="built-in name or JSON file, beside the dense run; repeat"),
    ] = None,
    *,
    choice: ModelChoice,
    jobs: Jobs = 0,
    scheduler: Scheduler = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    force: Force = False,
) -> None:
    """Track annotated clips densely and with profiles; J, F and the loss against dense, with intervals."""
    from sparsity.evaluation.evaluate import evaluate as run
    from sparsity.evaluation.tables import table
    from sparsity.work.spread import Spread

    spread = Spread(jobs, scheduler, gpu=choice.may_take_a_gpu)
    result = run(
        root,
        choice,
        out,
        prompts=prompts,
        profiles=profile or (),
        only=names_in(clips),
        spread=spread,
        force=force,
    )
    print(result.to_json() if as_json else table(result))


def score(
    predictions: Annotated[
        list[Path],
        typer.Argument(
            help="folders of masks: CLIP/NAME.png, CLIP/masks/NAME.png or CLIP/OBJECT/NAME.png; or CLIP.csv"
        ),
    ],
    truth: Annotated[
        Path,
        typer.Argument(
            help="data set: DAVIS, YouTube-VOS, MOSE, LVOS, VOST or SA-V; with true boxes LaSOT, GOT-10k or OTB"
        ),
    ],
    clips: ClipList = None,
    rules: Annotated[
        str | None,
        typer.Option(
            "--rules",
            help="YouTube-VOS, MOSEv2, VOST or LVOS: its own figures too; default: what the data says",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for the scores")] = None,
    jobs: Jobs = 0,
    scheduler: Scheduler = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the scores as JSON")] = False,
    force: Annotated[bool, typer.Option("--force", help="overwrite scores")] = False,
) -> None:
    """Score folders of masks or boxes, whichever tool made them, by the same rules as evaluate."""
    from sparsity.evaluation.score import score as run
    from sparsity.evaluation.score import table
    from sparsity.work.spread import Spread

    scores = run(
        predictions,
        truth,
        only=names_in(clips),
        rules=rules,
        out=out,
        spread=Spread(jobs, scheduler),
        force=force,
    )
    print(scores.to_json() if as_json else table(scores))


@with_model
def card(
    root: DataSet,
    out: Annotated[Path, typer.Option("--out", help="folder for card.json and card.html")],
    clips: ClipList = None,
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", help="a row more: built-in name or JSON file; repeat"),
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", help="of a clip; the card says so")
    ] = None,
    attention_frames: Annotated[
        int,
        typer.Option("--attention-frames", min=0, help="of a clip, whose attention is observed"),
    ] = 24,
    speed_frames: Annotated[
        int, typer.Option("--speed-frames", min=0, help="that count when speed is measured; 0: not")
    ] = 10,
    note: Annotated[
        list[str] | None,
        typer.Option("--note", help="put on the card, such as what else the machine did; repeat"),
    ] = None,
    *,
    choice: ModelChoice,
    jobs: Jobs = 0,
    scheduler: Scheduler = None,
    force: Force = False,
) -> None:
    """Fetch a model, run stock and accelerated on a data set; quality, attention and speed on one card.

    Stopped, the same command goes on where it was, and gives the same card.
    """
    from figures.card import write_card_page
    from sparsity.evaluation.card import card_table
    from sparsity.evaluation.evidence import CardRequest, make_card
    from sparsity.work.spread import Spread

    listed = names_in(clips)
    request = CardRequest(
        root, tuple(profile or ()), None if listed is None else tuple(listed), max_frames,
        attention_frames, speed_frames, tuple(note or ()),
    )  # fmt: skip
    spread = Spread(jobs, scheduler, gpu=choice.may_take_a_gpu)
    made = make_card(request, choice, out, spread=spread, force=force)
    write_card_page(made, out / "card.html")
    print(card_table(made))
