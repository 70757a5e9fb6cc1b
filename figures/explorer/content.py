"""What the explorer shows: frames as pictures, attention rows packed for the browser; and its page, one offline HTML file."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from numpy.typing import ArrayLike, NDArray

from figures.page.assets import joined
from figures.paint import data_uris_within, heat_colours, outline_all, shrink, stretch
from figures.style import THEMES, ThemeName, evidence
from probes.errors import InputError
from probes.files import write_text
from probes.records import ClipInfo, ClipRecord, Recording, frames_of_clip

PICTURES_BUDGET = 6_000_000
"""Bytes of all frames of a page together."""


@dataclass(frozen=True)
class Content:
    """A clip of a recording, ready for the explorer; `meta` is plain JSON, rows are packed when asked for."""

    clip: ClipRecord
    meta: dict[str, Any]

    def rows(self, site: str, index: int) -> bytes:
        """Pack the rows of a site: gzip of float32 maxima ``[Q]``, then uint8 square-root levels."""
        return _pack(self.clip.attention_rows(site, index))

    def indices(self, site: str) -> range:
        """The frames (encoder) or rows (memory, decoder) for which a site's attention is stored."""
        return range(len(self.clip.rows[site]))


def explorer_content(
    recording: Recording,
    name: str | None,
    frames: NDArray[Any] | Mapping[int, ArrayLike] | None,
    theme: ThemeName,
) -> Content:
    """Gather one clip of a recording for the explorer.

    Parameters
    ----------
    name
        Of the clip; None for the only one.
    frames
        uint8 ``[H, W, 3]`` by index; without them the recording's 16 x 16 thumbnails are shown.

    Raises
    ------
    InputError
        Several clips and no name, no such clip, no attention rows in the recording, or another video than the recorded
        one.
    """
    header = recording.header
    if name is None:
        if len(recording.names) != 1:
            raise InputError(
                f"the recording holds {len(recording.names)} clips; expected the name of one of "
                f"{', '.join(recording.names)}; give it with --clip"
            )
        name = recording.names[0]
    clip = recording.clip(name)
    if not clip.rows:
        raise InputError(
            f"{recording.path} holds no attention rows; expected some to explore; record it again with "
            "--rows '*.global' --rows 'memory.*.cross'"
        )
    info = recording.info(name)
    # frames by index; the last of two passes over one
    position = dict(sorted((int(index), t) for t, index in enumerate(clip.frame)))
    pictures = _pictures(clip, info, frames)
    weights = "random" if "random" in header.model.name else header.model.name
    sites = [_site(site, clip) for site in header.settings.row_sites if site in clip.rows]
    meta = {
        "title": f"Where SAM 2 attends: {name}, {header.model.name}",
        "caption": f"Colour: attention over the even share, on the token grid ({header.settings.row_grid} cells "
        f"a side); {len(header.settings.row_queries)} of {header.model.grid**2} query tokens are stored, the "
        f"nearest one answers. CS: cosine with the first recollection.{evidence(weights)}",
        "theme": theme,
        "heat": base64.b64encode(heat_colours().tobytes()).decode(),
        "aspect": info.width / info.height,
        "grid": header.model.grid,
        "cells": header.settings.row_grid,
        "queries": list(header.settings.row_queries),
        "objects": list(info.objects),
        "frames": [
            {"index": index, "position": t, "picture": uri}
            for (index, t), uri in zip(position.items(), pictures, strict=True)
        ],
        "sites": sites,
        "strip": next((site["name"] for site in sites if site["part"] == "memory"), None),
        "rows": {
            f"{clip.row_frame[i]}:{clip.row_object[i]}": _row(clip, i)
            for i in range(len(clip.row_frame))
        },
    }
    return Content(clip, meta)


def frames_of(video: Any) -> NDArray[Any] | Mapping[int, Any] | None:
    """The frames of a video by index; arrays need no torch."""
    if video is None or (isinstance(video, np.ndarray) and video.ndim == 4):
        return video
    from probes import open_video

    return _Frames(open_video(video))


class _Frames(Mapping[int, Any]):
    """A video source, read by index."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __getitem__(self, index: int) -> Any:
        return self._source.frame(index)

    def __len__(self) -> int:
        return self._source.num_frames or 0

    def __iter__(self) -> Any:
        return iter(range(len(self)))


def _site(name: str, clip: ClipRecord) -> dict[str, Any]:
    """A site; `part` is ``memory`` for what recalls remembered frames, ``self`` for the self-attention beside it."""
    part, *rest = name.split(".")
    part = "self" if rest[-1] == "self" else part
    layer = int(rest[0][5:]) if rest[0].startswith("layer") else None
    return {"name": name, "part": part, "layer": layer, "queries": clip.rows[name].shape[1]}


def _row(clip: ClipRecord, i: int) -> dict[str, Any]:
    """What is known of one object on one frame."""
    similarity = clip.similarity[i, :, :, 0].astype(float).round(3)
    return {
        "row": i,
        "score": round(float(clip.score[i]), 2),
        "memory": clip.memory_frame[i].tolist(),
        "prompted": bool(clip.conditioning[i]),
        "prompts": [t for t in clip.prompt_frames[i].tolist() if t >= 0],
        "similarity": [[None if np.isnan(v) else v for v in layer] for layer in similarity],
    }


def _pictures(
    clip: ClipRecord, info: ClipInfo, frames: NDArray[Any] | Mapping[int, ArrayLike] | None
) -> list[str]:
    """Each tracked frame with its objects outlined, as addresses, ascending by index."""
    best, ids = clip.masks(), sorted(set(clip.row_object.tolist()))
    tracked = clip.frame.tolist()
    if frames is None:
        tall = info.height / info.width
        shown = dict(
            zip(tracked, (thumbnail_picture(t, tall) for t in clip.thumbnail), strict=True)
        )
    else:
        recorded = frames_of_clip(info, tracked, frames)
        shown = {index: shrink(frame, 640) for index, frame in zip(tracked, recorded, strict=True)}
    drawn = []
    for index, picture in sorted(shown.items()):
        masks = np.zeros(best.shape[1:], np.uint8)
        for i in np.flatnonzero(clip.row_frame == index):
            masks[best[i]] = ids.index(clip.row_object[i]) + 1
        drawn.append(outline_all(picture, masks))
    return data_uris_within(drawn, PICTURES_BUDGET)


def thumbnail_picture(values: NDArray[np.float32], tall: float) -> NDArray[np.uint8]:
    """A thumbnail ``[3, 16, 16]`` as a picture 320 pixels wide; its contrast is stretched."""
    low, high = float(values.min()), float(values.max())
    levels = (values - low) / max(high - low, 1e-6) * 255
    picture = levels.transpose(1, 2, 0).astype(np.uint8)
    return stretch(picture, round(320 * tall), 320).astype(np.uint8)


def _pack(rows: NDArray[np.float32]) -> bytes:
    flat = np.nan_to_num(rows.reshape(len(rows), -1)).astype(np.float32)
    scales = flat.max(axis=1)
    shares = flat / np.maximum(scales, np.finfo(np.float32).tiny)[:, None]
    levels = np.round(np.sqrt(shares) * 255).astype(np.uint8)
    return gzip.compress(scales.astype("<f4").tobytes() + levels.tobytes(), 6, mtime=0)


# ---------------------------------------------------------------------- the page


def script() -> str:
    """The JavaScript module; its default export is an anywidget, and it exports `mount`."""
    own = (f"explorer/{name}.js" for name in ("rows", "canvas", "explorer"))
    return joined("page/elements.js", "page/kernel.js", *own)


def style() -> str:
    """The style sheet."""
    return joined("page/look.css", "explorer/explorer.css")


def write_page(content: Content, out: Path) -> Path:
    """Write the page, which is whole or absent and needs no network, and return its path."""
    rows = {
        site["name"]: [
            base64.b64encode(content.rows(site["name"], i)).decode()
            for i in content.indices(site["name"])
        ]
        for site in content.meta["sites"]
    }
    page = Environment(autoescape=False).from_string(joined("explorer/page.html"))
    text = page.render(
        title=escape(content.meta["title"]),
        paper=THEMES[content.meta["theme"]].paper,
        meta=_safe(content.meta),
        rows=_safe(rows),
        script=script(),
        style=style(),
    )
    write_text(out, text)
    return out


def _safe(data: object) -> str:
    """JSON that neither ends nor changes the script element it stands in."""
    return json.dumps(data).replace("<", "\\u003c")
