"""The error a user can mend, and the warning of what is left out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

NAMED = 3
"""Names that a line gives of many."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    Its message is one line: what was given; what is expected; what to do. The command prints it without
    a traceback and exits with status 2.
    """


class LeftOut(UserWarning):
    """Something of what the user gave is not used; the rest is. Commands print it as one line on stderr."""


class BeyondPromise(UserWarning):
    """A video is not like those that a profile's promise is of: longer, or of more objects."""


def tell_left_out(notes: Iterable[str], strict: bool = False) -> None:
    """Warn of what is left out, one `LeftOut` a note; or refuse it where nothing may be.

    Raises
    ------
    InputError
        There is something, and `strict` is set.
    """
    for note in notes:
        if strict:
            raise InputError(
                f"{note}; expected that nothing is left out (strict); mend it, or ask without strict"
            )
        warnings.warn(note, LeftOut, stacklevel=3)


def some_of(names: Sequence[str]) -> str:
    """Name a few of many.

    >>> some_of(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
