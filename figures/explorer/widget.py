"""The explorer in a notebook."""

from __future__ import annotations

import base64
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import traitlets

from figures.explorer.content import Content, explorer_content, frames_of
from figures.explorer.page import script, style
from figures.explorer.still import still
from figures.page import Answer, AnsweringWidget
from figures.style import ThemeName
from probes.errors import InputError
from probes.records import Recording, load_recording

ROWS = ("encoder.stage3.*.global", "memory.*.cross", "decoder.final.token_to_image")
"""Sites whose rows are kept when a predictor is explored."""


class Explorer(AnsweringWidget):
    """The widget; rows are sent when the browser asks for them."""

    _esm = script()
    _css = style()
    meta = traitlets.Dict().tag(sync=True)

    def __init__(self, content: Content, **traits: Any) -> None:
        def rows(asked: Any) -> Answer:
            return {}, [content.rows(asked["site"], asked["index"])]

        super().__init__({"rows": rows}, meta=content.meta, **traits)
        self._content = content

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and the view that it opens on as a picture, for where no kernel runs."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:  # ipywidgets is told to show nothing
            return None
        data, metadata = bundle
        picture = base64.b64encode(still(self._content)).decode()
        return {**data, "image/jpeg": picture}, metadata


def explore(
    source: Any,
    video: Any = None,
    prompts: Any = None,
    *,
    clip: str | None = None,
    max_frames: int | None = None,
    theme: ThemeName = "light",
) -> Explorer:
    """Show a clip in a notebook; a click on a pixel shows what it attends to.

    It opens on the centre of the object on a tracked frame. A saved notebook keeps that view as a picture.

    Parameters
    ----------
    source
        A `Recording` with attention rows, the path of one, or a predictor, which then tracks the video. The
        title names it as `probes.name_of` does, and the caption says what its weights are evidence of.
    video
        Anything `probes.open_video` takes; for a recording None shows its 16 x 16 thumbnails.
    prompts
        For a predictor: bool masks ``[H, W]`` on frame 0 by object id, or what else `probes.record` takes.
    clip
        Name of the clip, where the recording holds several.
    max_frames
        For a predictor: frames to track at most. Attention rows lie in memory, some MB a frame.

    Raises
    ------
    InputError
        No attention rows, no such clip; a predictor without a video or prompts.
    """
    if isinstance(source, (str, Path)):
        source = load_recording(source)
    if isinstance(source, Recording):
        return Explorer(explorer_content(source, clip, frames_of(video), theme))
    if video is None or prompts is None:
        raise InputError(
            f"a {type(source).__name__} without a video or prompts given; expected both beside a predictor; pass "
            "explore(predictor, video, {1: mask})"
        )
    from probes import record

    with TemporaryDirectory() as folder:
        made = record(
            source, video, prompts, out=Path(folder) / "clip.recording", rows=ROWS, row_heads=True,
            max_frames=max_frames,
        )  # fmt: skip
        return Explorer(explorer_content(made, None, frames_of(video), theme))
