"""The error a user can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    Its message is one line: what was given; what is expected; what to do. The command prints it without
    a traceback and exits with status 2.
    """
