"""The command ``efficient-sam2``: one function a subcommand; the work is done in the packages.

Bad input ends with one line on stderr and status 2, an interrupt or SIGTERM with status 130.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

import typer
from pydantic import ValidationError

from probes.errors import BeyondPromise, InputError, LeftOut
from sparsity.commands.bench import bench
from sparsity.commands.calibrate import calibrate, recheck
from sparsity.commands.evaluate import card, evaluate, score
from sparsity.commands.models import fetch, profiles, sites
from sparsity.commands.pages import compare, demo, explore
from sparsity.commands.pick import pick
from sparsity.commands.probe import probe
from sparsity.commands.segment import segment

UsageError: Any = typer.BadParameter.__base__
"""What typer raises for a command line it can't parse; newer versions carry a click of their own."""

INTERRUPTED = 130

NO_EXTENSION = "cannot import name '_C' from 'sam2'"
"""How sam2's warning begins, on every frame, where its CUDA extension is absent."""

EXAMPLES: dict[Callable[..., None], str] = {
    segment: "clip.mp4 --box 40,60,200,220 --profile exact --out result",
    calibrate: "--made 30 --max-drop 1.0 --out mine.json --report mine.html",
    pick: "clip.mp4 --out prompts.json",
    recheck: "mine.json --videos new --prompts masks --out mine-again.json",
    explore: "clip.recording --video clip.mp4 --out page.html",
    compare: "stock.recording fast.recording --video clip.mp4 --out page.html",
    probe: "clip.mp4 --box 40,60,200,220 --out clip.recording",
    bench: "--model demo --out bench.json",
    sites: 'sam2.1-tiny --sites "memory.*"',
    fetch: "sam2.1-tiny",
    demo: "--out demo-output",
    evaluate: "DAVIS --model demo --profile paper --out result.json",
    card: "DAVIS --model sam2.1-large --out card",
    score: "masks other-tool DAVIS --out scores.json",
}
"""What each subcommand's help ends with."""

app = typer.Typer(
    name="efficient-sam2",
    help="SAM 2 video tracking with sparse attention: observe, calibrate, accelerate. Independent of the "
    "paper's authors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command, words in EXAMPLES.items():
    name = command.__name__
    app.command(name, epilog=f"Example: efficient-sam2 {name} {words}")(command)
app.add_typer(profiles, name="profile")


def run(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    # sam2 draws a progress bar of its own and warns on every frame where its CUDA extension is absent; what Pillow warns
    # of is read, or refused in a line
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", message=NO_EXTENSION)
    os.environ.setdefault("PYTHONWARNINGS", f"ignore:{NO_EXTENSION}")  # of worker processes
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with _notes_in_lines():
            status: Any = app(arguments, prog_name="efficient-sam2", standalone_mode=False)
    except InputError as error:
        return _refuse(str(error))
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return 2
        return _refuse(_misused(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _refuse(
                f"{error}; expected room for the results; make some, and the same command goes on, or choose another --out"
            )
        return _refuse(f"{error}; expected a file or folder that can be used; choose another")
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    if status == INTERRUPTED:  # some versions of typer return it, others raise
        print("interrupted; the same command goes on with what is not finished", file=sys.stderr)
    return status if isinstance(status, int) else 0


@contextmanager
def _notes_in_lines() -> Iterator[None]:
    """Say on stderr what is left out, and what is beyond a promise, a line each, once."""
    said = set[str]()
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, LeftOut | BeyondPromise):
            usual(message, category, *where, **more)
        elif str(message) not in said:
            said.add(str(message))
            print(f"efficient-sam2: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        for kind in (LeftOut, BeyondPromise):
            warnings.simplefilter("always", kind)
        warnings.showwarning = show
        yield


def _misused(error: Any) -> str:
    """Say what a command line has that can't be parsed, and whose help says what is expected."""
    said = error.format_message().rstrip(".")
    if isinstance(
        error.__cause__, ValidationError
    ):  # newer versions of typer leave out what was given
        given = error.__cause__.errors()[0]["input"]
        said = said.replace("Invalid value for", f"{given!r} given for").replace(
            "Value error, ", ""
        )
    command = error.ctx.command_path if error.ctx else "efficient-sam2"
    return f"{said}; see {command} --help"


def _refuse(message: str) -> int:
    print(f"efficient-sam2: {' '.join(message.split())}", file=sys.stderr)
    return 2


def main() -> None:
    """Entry point of the console script."""
    if isinstance(sys.stdout, TextIOWrapper):  # stderr already spells out what its encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # workers are ended and temporary files removed, too
    sys.exit(run())


if __name__ == "__main__":
    main()
