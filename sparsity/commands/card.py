"""``efficient-sam2 card``: what a model does on a data set, in one file and one page that can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsity.commands.options import ClipList, Force, Jobs, Scheduler, names_in, with_model

if TYPE_CHECKING:
    from sparsity.work.model import ModelChoice


@with_model
def card(
    root: Annotated[
        Path, typer.Argument(help="data set in the layout of DAVIS, YouTube-VOS, MOSE or SA-V")
    ],
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
