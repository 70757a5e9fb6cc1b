"""What all widgets and pages share: elements, style, and how a widget in a browser asks the kernel.

Scripts and style sheets lie as files beside the code that uses them; `kernel.js` is the other side of `AnsweringWidget`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anywidget

from probes.errors import InputError

FIGURES = Path(__file__).parent.parent

Answer = tuple[dict[str, Any], list[bytes]]
"""What is said, plain JSON, and buffers."""

Answers = Mapping[str, Callable[[Any], Answer]]
"""By kind of question: from what was given with it to the answer."""


class AnsweringWidget(anywidget.AnyWidget):
    """A widget that answers questions; an exception is an answer too, as the browser waits for one.

    Parameters
    ----------
    answers
        See `Answers`.
    """

    def __init__(self, answers: Answers, **traits: Any) -> None:
        super().__init__(**traits)
        self._answers = answers
        self.on_msg(self._answer)

    def _answer(self, _widget: Any, message: dict[str, Any], _buffers: Any) -> None:
        find = self._answers.get(message.get("kind", ""))
        if find is None:
            return
        key = {"key": message.get("key")}
        try:
            said, buffers = find(message.get("given"))
        except Exception as error:  # whatever went wrong
            self.send({**key, "failed": line_of(error)})
        else:
            self.send({**key, **said}, buffers=buffers)


def line_of(error: Exception) -> str:
    """What went wrong, for people, in one line."""
    words = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return " ".join(words.split())


def joined(*names: str) -> str:
    """Text of files, by their paths in this package, one after the other."""
    return "\n".join((FIGURES / name).read_text(encoding="utf-8") for name in names)
