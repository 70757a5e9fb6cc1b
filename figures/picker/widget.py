"""Pointing at objects in a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from figures.picker.picking import Picking, asset, script

if TYPE_CHECKING:  # they need torch
    from probes.prompts import Prompt


class Picker(anywidget.AnyWidget):
    """The widget; frames and masks are sent when the browser asks for them.

    Attributes
    ----------
    entries
        The prompts as the browser has them now, in the form of ``prompts.json``.
    """

    _esm = script()
    _css = asset("picker.css")
    meta = traitlets.Dict().tag(sync=True)
    entries: Any = traitlets.List().tag(sync=True)

    def __init__(self, picking: Picking, **traits: Any) -> None:
        super().__init__(meta=picking.meta, **traits)
        self._picking = picking
        self.on_msg(self._answer)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """What was pointed at, by frame: what `probes.record`, `figures.explore` and `sparsity.run_segment` take.

        Raises
        ------
        InputError
            Nothing was, or it can't be tracked.
        """
        return self._picking.prompts(self.entries)

    def save(self, path: str | Path) -> None:
        """Write the prompts as JSON, which ``efficient-sam2 segment --prompts`` takes; whole or not at all.

        Raises
        ------
        InputError
            There are none, or they can't be tracked.
        """
        self._picking.save(self.entries, path)

    def _answer(self, _widget: Any, message: dict[str, Any], _buffers: Any) -> None:
        answer = {"key": message.get("key")}
        try:
            if message.get("kind") == "frame":
                self.send(answer, buffers=[self._picking.frame(message["given"])])
            elif message.get("kind") == "mask":
                self.send({**answer, "runs": self._picking.mask(message["given"])})
        except Exception as error:  # the browser waits for an answer, whatever went wrong
            self.send({**answer, "failed": str(error) or type(error).__name__})


def pick(video: Any, predictor: Any = None) -> Picker:
    """Point at objects in a notebook: click on them, draw boxes around them, or paint them.

    Parameters
    ----------
    video
        Anything `probes.open_video` takes whose end is known.
    predictor
        Stock or accelerated; it makes the mask that is shown after each click, on the frame alone: without memory of
        others. None: the prompts are shown alone.

    Returns
    -------
    Picker
        Its `prompts` are what was pointed at so far; `save` writes them.

    Raises
    ------
    InputError
        The video can't be opened, or is a stream.
    """
    from probes import open_video

    name = Path(video).resolve().name if isinstance(video, (str, Path)) else "video"
    return Picker(Picking(open_video(video), name, predictor))
