"""Pointing at objects in a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import traitlets

from figures.page import Answer, AnsweringWidget
from figures.picker.picking import Picking, entries_of, script, style

if TYPE_CHECKING:  # they need torch
    from probes.prompts import Prompt


class Picker(AnsweringWidget):
    """The widget; frames and masks are sent when the browser asks for them.

    Attributes
    ----------
    entries
        The prompts as the browser has them now, in the form of ``prompts.json``.
    """

    _esm = script()
    _css = style()
    meta = traitlets.Dict().tag(sync=True)
    entries: Any = traitlets.List().tag(sync=True)

    def __init__(self, picking: Picking, **traits: Any) -> None:
        def frame(index: Any) -> Answer:
            return {}, [picking.frame(index)]

        def mask(entry: Any) -> Answer:
            return {"runs": picking.mask(entry)}, []

        super().__init__({"frame": frame, "mask": mask}, meta=picking.meta, **traits)
        self._picking = picking

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


def pick(video: Any, predictor: Any = None, prompts: Any = None) -> Picker:
    """Point at objects in a notebook: click on them, draw boxes around them, or paint them.

    Parameters
    ----------
    video
        Anything `probes.open_video` takes whose end is known.
    predictor
        Stock or accelerated; it makes the mask that is shown after each click, on the frame alone: without memory of
        others. None: the prompts are shown alone.
    prompts
        Prompts to go on from, as `probes.record` takes them, but for a function: a list, a file of them, or masks.

    Returns
    -------
    Picker
        Its `prompts` are what was pointed at so far; `save` writes them.

    Raises
    ------
    InputError
        The video can't be opened, or is a stream, or a prompt doesn't fit it.
    """
    from probes import open_video
    from probes.tracking import prompts_of

    source = open_video(video)
    picking = Picking(source, title_of(video), predictor)
    return Picker(
        picking, entries=[] if prompts is None else entries_of(prompts_of(prompts, source))
    )


def title_of(video: Any) -> str:
    """What people call a video."""
    return Path(video).resolve().name if isinstance(video, (str, Path)) else "video"
