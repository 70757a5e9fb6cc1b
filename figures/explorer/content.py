"""What the explorer shows: frames as pictures, attention rows packed for the browser, and the view it opens on."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from figures.paint import data_uris_within, heat_colours, outline_all, shrink, stretch
from figures.readings import similarities
from figures.style import ThemeName, evidence
from probes.errors import InputError
from probes.records import ClipInfo, ClipRecord, Recording

PICTURES_BUDGET = 6_000_000
"""Bytes of all frames of a page together."""


@dataclass(frozen=True)
class Content:
    """A clip of a recording, ready for the explorer; `meta` is plain JSON, rows are packed when asked for."""

    clip: ClipRecord
    meta: dict[str, Any]

    def rows(self, site: str, index: int) -> bytes:
        """Pack the rows of a site: gzip of float32 maxima ``[heads, Q]``, then uint8 square-root levels, as recorded."""
        scale = np.nan_to_num(self.clip.row_scale[site][index]).astype("<f4")
        return gzip.compress(scale.tobytes() + self.clip.rows[site][index].tobytes(), 3, mtime=0)

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
    strip = next((site["name"] for site in sites if site["part"] == "memory"), None)
    absent = ""
    if header.settings.profile is not None:
        absent = f" What profile {header.settings.profile['name']} left out is shown as 0."
    rows, start = _rows(clip, header.settings.row_grid), _start(clip)
    meta = {
        "title": f"Where SAM 2 attends: {name}, {header.model.name}",
        "caption": f"Colour: attention over the even share, on the token grid ({header.settings.row_grid} cells "
        f"a side); {len(header.settings.row_queries)} of {header.model.grid**2} query tokens are stored, the "
        "nearest one answers. CS: cosine of a memory frame's key mass with its first recollection, beside chance."
        f"{absent}{evidence(weights)}",
        "theme": theme,
        "heat": base64.b64encode(heat_colours().tobytes()).decode(),
        "size": [info.width, info.height],
        "grid": header.model.grid,
        "cells": header.settings.row_grid,
        "queries": list(header.settings.row_queries),
        "objects": list(info.objects),
        "frames": [
            {"index": index, "position": t, "picture": uri}
            for (index, t), uri in zip(position.items(), pictures, strict=True)
        ],
        "sites": sites,
        "strip": strip,
        "start": {
            "t": list(position).index(int(clip.row_frame[start])),
            "object": int(clip.row_object[start]),
            "site": strip or sites[0]["name"],
        },
        "rows": rows,
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
    queries = clip.row_scale[name].shape[-1]
    return {
        "name": name, "part": part, "layer": layer, "queries": queries, "heads": clip.row_heads(name),
    }  # fmt: skip


def _start(clip: ClipRecord) -> int:
    """The row that the explorer opens on: the first with the fullest memory on which the object is seen."""
    held = (clip.memory_frame >= 0).sum(axis=1)
    seen = clip.best.any(axis=1)
    return int(np.argmax(np.where(clip.conditioning, 0, 1 + held) + 100 * seen))


def _rows(clip: ClipRecord, cells: int) -> dict[str, dict[str, Any]]:
    """What is known of each object on each frame, by ``frame:object``; the last of two passes over one.

    `inside`: which of cells x cells lie on the object for the most part, as packed bits. `centre`: the place of
    the object nearest to its centre, in shares of the picture; None where it is not seen. `similarity`: CS and
    chance by layer and slot.
    """
    compared, masks = similarities(clip).round(3), clip.masks()
    found = {}
    for i, mask in enumerate(masks):
        inside = mask.reshape(cells, len(mask) // cells, cells, -1).mean(axis=(1, 3)) > 0.5
        found[f"{clip.row_frame[i]}:{clip.row_object[i]}"] = {
            "row": i,
            "score": round(float(clip.score[i]), 2),
            "memory": clip.memory_frame[i].tolist(),
            "prompted": bool(clip.conditioning[i]),
            "prompts": [t for t in clip.prompt_frames[i].tolist() if t >= 0],
            "centre": _centre(mask),
            "inside": base64.b64encode(np.packbits(inside).tobytes()).decode(),
            "similarity": [
                [None if np.isnan(pair[0]) else pair.tolist() for pair in layer]
                for layer in compared[i]
            ],
        }
    return found


def _centre(mask: NDArray[np.bool_]) -> list[float] | None:
    """The place of a mask ``[s, s]`` nearest to its centre, (x, y) in shares of its side."""
    places = np.argwhere(mask)
    if not len(places):
        return None
    y, x = places[((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return [round((float(v) + 0.5) / len(mask), 4) for v in (x, y)]


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


def frames_of_clip(
    info: ClipInfo, tracked: Sequence[int], frames: Any
) -> Iterator[NDArray[np.uint8]]:
    """Read a clip's frames from its video, uint8 ``[H, W, 3]`` in the order of tracking, and refuse another video.

    Parameters
    ----------
    info
        Of the clip.
    tracked
        `ClipRecord.frame`.
    frames
        The video's frames by index.

    Raises
    ------
    InputError
        A frame is missing or of another size, or, behind the last one, their pixels are others.
    """
    pixels = hashlib.sha256()
    other = (
        f"which is not the video that clip {info.name!r} was recorded from; give that one, or none"
    )
    for index in tracked:
        try:
            frame = np.asarray(frames[index])
        except LookupError:
            raise InputError(
                f"the video given has no frame {index}, which was recorded, {other}"
            ) from None
        if frame.shape[:2] != (info.height, info.width):
            raise InputError(
                f"the video given has frames of shape {frame.shape}, where {info.width} x {info.height} pixels were "
                f"recorded, {other}"
            )
        pixels.update(np.ascontiguousarray(frame).tobytes())
        yield frame
    if pixels.hexdigest() != info.video:
        raise InputError(f"the video given has other pictures than those recorded, {other}")


def thumbnail_picture(values: NDArray[np.float32], tall: float) -> NDArray[np.uint8]:
    """A thumbnail ``[3, 16, 16]`` as a picture 320 pixels wide; its contrast is stretched."""
    low, high = float(values.min()), float(values.max())
    levels = (values - low) / max(high - low, 1e-6) * 255
    picture = levels.transpose(1, 2, 0).astype(np.uint8)
    return stretch(picture, round(320 * tall), 320).astype(np.uint8)
