"""What the explorer shows: frames as pictures, attention rows packed for the browser."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from figures.paint import data_uris_within, heat_colours, outline_all, shrink, stretch
from figures.readings import prompted_frames
from figures.style import ThemeName, evidence
from probes.errors import InputError
from probes.records import ClipRecord, Recording

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
        Several clips and no name, no such clip, no attention rows in the recording, or a video that ends too soon.
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
    info = next(item for item in header.clips if item.name == name)
    # frames by index; the last of two passes over one
    position = dict(sorted((int(index), t) for t, index in enumerate(clip.frame)))
    pictures = _pictures(clip, position, frames, info.height / info.width)
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
        "prompts": prompted_frames(clip, int(clip.row_object[i])),
        "similarity": [[None if np.isnan(v) else v for v in layer] for layer in similarity],
    }


def _pictures(
    clip: ClipRecord,
    position: Mapping[int, int],
    frames: NDArray[Any] | Mapping[int, ArrayLike] | None,
    tall: float,
) -> list[str]:
    """Each tracked frame with its objects outlined, as addresses, in the order of `position`."""
    best = clip.masks()
    drawn = []
    for index, t in position.items():
        if frames is None:
            picture = _thumbnail(clip.thumbnail[t], tall)
        else:
            picture = shrink(_frame(frames, index), 640)
        rows = np.flatnonzero(clip.row_frame == index)
        masks = np.zeros(best.shape[1:], np.uint8)
        for i in rows:
            masks[best[i]] = sorted(set(clip.row_object.tolist())).index(clip.row_object[i]) + 1
        drawn.append(outline_all(picture, masks))
    return data_uris_within(drawn, PICTURES_BUDGET)


def _frame(frames: NDArray[Any] | Mapping[int, ArrayLike], index: int) -> ArrayLike:
    try:
        return frames[index]
    except LookupError:
        raise InputError(
            f"the video given has no frame {index}, which was recorded; expected the recorded video; give that "
            "one, or none"
        ) from None


def _thumbnail(values: NDArray[np.float32], tall: float) -> NDArray[np.uint8]:
    """A thumbnail ``[3, 16, 16]`` as a picture 320 pixels wide; its contrast is stretched."""
    low, high = float(values.min()), float(values.max())
    levels = (values - low) / max(high - low, 1e-6) * 255
    picture = levels.transpose(1, 2, 0).astype(np.uint8)
    height = round(320 * tall)
    return np.stack([stretch(picture[..., c], height, 320) for c in range(3)], axis=-1).astype(
        np.uint8
    )


def _pack(rows: NDArray[np.float32]) -> bytes:
    flat = np.nan_to_num(rows.reshape(len(rows), -1)).astype(np.float32)
    scales = flat.max(axis=1)
    shares = flat / np.maximum(scales, np.finfo(np.float32).tiny)[:, None]
    levels = np.round(np.sqrt(shares) * 255).astype(np.uint8)
    return gzip.compress(scales.astype("<f4").tobytes() + levels.tobytes(), 6, mtime=0)
