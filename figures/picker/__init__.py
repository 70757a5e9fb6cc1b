"""Pointing at objects: prompts made by clicks, boxes and a brush, in a notebook (`Picker`) or in a browser.

Both need of Python its frames as pictures, the prompts held against it, and masks of a predictor (`Picking`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets
from numpy.typing import NDArray

from figures.page import Answer, AnsweringWidget, joined
from figures.paint import jpeg, shrink
from figures.style import OBJECTS
from probes.errors import InputError
from probes.files import write_text

if TYPE_CHECKING:  # they need torch
    from probes.prompts import Prompt
    from probes.video import VideoSource

WIDEST = 1600
"""Pixels of a frame's picture, at most; prompts are in pixels of the video all the same."""

Entry = Mapping[str, Any]
"""A prompt as ``prompts.json`` holds it; see `probes.prompts`."""


class Picking:
    """A video that is pointed at.

    Parameters
    ----------
    source
        The video.
    title
        Its name, for people.
    predictor
        Stock or accelerated: it makes the masks that are shown; None: prompts are shown alone.
    precision
        Makes the context that the predictor is to run in, such as ``torch.autocast``.

    Raises
    ------
    InputError
        The video is a stream.
    """

    def __init__(
        self,
        source: VideoSource,
        title: str,
        predictor: Any = None,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if source.num_frames is None:
            raise InputError(
                "a stream given to pick in; expected a video one can go back in; record some of it and give the file"
            )
        self._source, self._predictor, self._precision = source, predictor, precision
        self._state: dict[str, Any] | None = None
        self._alone = threading.Lock()
        self.meta = {
            "title": title,
            "width": source.width,
            "height": source.height,
            "frames": source.num_frames,
            "colours": list(OBJECTS),
            "masks": predictor is not None,
        }
        """What the page must know, plain JSON."""

    def frame(self, index: int) -> bytes:
        """Return a frame as JPEG, at most `WIDEST` pixels wide.

        Raises
        ------
        probes.video.EndOfVideo
            The video has no such frame.
        """
        return jpeg(shrink(self._source.frame(index), WIDEST), 90)

    def prompts(self, entries: Sequence[Entry]) -> tuple[Prompt, ...]:
        """Return prompts by frame, held against the video.

        Raises
        ------
        InputError
            There are none, they can't be tracked, or one names a file.
        """
        from probes import read_prompts

        named = [e for e in entries if isinstance(e, Mapping) and isinstance(e.get("mask"), str)]
        if named:  # whoever speaks for the page gets to see the video and nothing else
            raise InputError(
                f"mask {named[0]['mask'][:60]!r} given; expected its run-length code; read the picture in Python"
            )
        return read_prompts(entries, self._source)

    def save(self, entries: Sequence[Entry], path: str | Path) -> tuple[Prompt, ...]:
        """Write prompts as JSON, a line each, whole or not at all, and return them.

        Raises
        ------
        InputError
            There are none, or they can't be tracked; nothing is written then.
        """
        found = self.prompts(entries)
        lines = ",\n".join(f"  {json.dumps(entry, ensure_ascii=False)}" for entry in entries)
        write_text(Path(path), f"[\n{lines}\n]")
        return found

    def mask(self, entry: Entry) -> list[int]:
        """Return what the predictor makes of one prompt, as if it were the object's first: lengths of runs, as COCO's code has.

        The state is emptied before, so a mask is that of the prompt as it is now, whatever was clicked and undone.

        Raises
        ------
        InputError
            The prompt can't be tracked by itself, as it has points with label 0 alone.
        """
        from probes.tracking import begin_kept

        (prompt,) = self.prompts([entry])
        with self._alone, self._precision():
            if self._state is None:
                self._state = begin_kept(self._predictor, self._source)
            self._predictor.reset_state(self._state)
            _, _, logits = prompt.give_to(self._predictor, self._state)
            return runs((logits[0, 0] > 0).cpu().numpy())


def runs(mask: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of a mask's runs ``[H, W]`` down its columns, that of what is outside first.

    >>> runs(np.array([[False, True], [True, True]]))
    [1, 3]
    >>> runs(np.array([[True, False]]))
    [0, 1, 1]
    """
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths: list[int] = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def entries_of(prompts: Iterable[Prompt]) -> list[dict[str, Any]]:
    """Return prompts as ``prompts.json`` holds them; masks as run lengths."""
    return [_entry_of(prompt) for prompt in prompts]


def _entry_of(prompt: Prompt) -> dict[str, Any]:
    entry: dict[str, Any] = {"frame": prompt.frame, "object": prompt.object}
    if prompt.label:
        entry["label"] = prompt.label
    if prompt.points is not None:
        entry["points"] = [
            _shortest([*point, *([] if on else [0])])
            for point, on in zip(prompt.points.tolist(), prompt.labels, strict=True)
        ]
    if prompt.box is not None:
        entry["box"] = _shortest(prompt.box.tolist())
    if prompt.mask is not None:
        entry["mask"] = {"size": list(prompt.mask.shape), "counts": runs(prompt.mask)}
    if prompt.remove:
        entry["remove"] = True
    return entry


def _shortest(numbers: Sequence[float]) -> list[float]:
    """Write float32 numbers in as many digits as tell them apart, whole ones as such."""
    return [int(x) if x == int(x) else float(str(np.float32(x))) for x in numbers]


def script(last: str = "picker/notebook.js") -> str:
    """The JavaScript module; its default export is an anywidget, made in the last file, and it exports `mount`."""
    own = (f"picker/{name}.js" for name in ("runs", "marks", "picker"))
    return joined("page/elements.js", "page/kernel.js", *own, last)


def style() -> str:
    """The style sheet."""
    return joined("page/look.css", "picker/picker.css")


def page_file(name: str) -> str:
    """Text of a file of the page that ``efficient-sam2 pick`` serves, by its name; the page itself has none."""
    made = {"picker.js": script, "picker.css": style}
    return made[name]() if name in made else joined(f"picker/{name or 'page.html'}")


# ---------------------------------------------------------------------- in a notebook


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
