"""Record what a model attends to on videos, and join recordings.

A recording holds what figures show and what calibration replays without the model; `probes.records` says
what that is and reads it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from probes.collector import Collector
from probes.entries import row_forms
from probes.errors import InputError
from probes.files import sha256_of, whole, write_text
from probes.models import fingerprint, name_of
from probes.records import (
    HEADER,
    QUERY_ROWS,
    ROW_SIDE,
    SCHEMA,
    Array,
    ClipInfo,
    Header,
    ModelInfo,
    Recording,
    Settings,
    load_recording,
)
from probes.sites import attention_sites, find_sites
from probes.tracking import Prompts, digest_of, hash_of_frames, is_accelerated, track_and_collect
from probes.transformers_model import TransformersPredictor, stand_in
from probes.video import VideoSource, has_frame, open_video

ROW_GRID = 32
"""Cells per side of a stored raw row, at most."""

LONGEST_NAME = 200
"""Bytes of a clip's name, which with its suffixes is a file's name."""


def record(
    predictor: Any,
    video: Any,
    prompts: Prompts,
    *,
    out: str | Path,
    name: str | None = None,
    statistics: str | Sequence[str] = "*",
    rows: str | Sequence[str] = (),
    row_side: int = ROW_SIDE,
    row_heads: bool = False,
    query_rows: int = QUERY_ROWS,
    seed: int = 0,
    max_frames: int | None = None,
    autocast: bool = False,
    model: str | None = None,
    say: Callable[[str], None] | None = None,
    progress: bool = False,
) -> Recording:
    """Track a video and record what the predictor attends to.

    What an accelerated predictor leaves out is absent from the recording: `ClipRecord` says how.

    A clip that the recording already holds, of the same frames and prompt, is left as it is; so a loop over
    a data set goes on where it was interrupted.

    Parameters
    ----------
    predictor
        Stock ``SAM2VideoPredictor``, whose dense run calibration needs, or an accelerated one; a folder holds runs of one
        profile. Or a ``Sam2VideoModel`` of transformers, on frames made as sam2 makes them; a correction there stays as
        transformers keeps it.
    video
        Whatever `open_video` opens. A stream is tracked to its end, and not back from its first prompt.
    prompts
        What to track.
    out
        Folder of the recording; made, or added to when model and settings are the same.
    name
        Of the clip, and of its file; default: the video's file name.
    statistics
        Patterns of sites whose statistics are kept. Memory and the decoder's saliency always are.
    rows
        Patterns of sites whose raw attention rows are stored too, for the explorer; global blocks, memory
        and token-to-image sites have some. Before it starts, the run says how many bytes that will take.
    row_side
        Queries per side of the token grid whose raw rows are stored, at most as many as there are: more where objects
        are small. Rows take bytes by its square.
    row_heads
        Whether rows are stored head by head instead of as the mean over heads; they take as many times the bytes.
    query_rows
        Query rows, at least, that means over rows are measured from; key mass takes all rows.
    seed
        Of that sample.
    max_frames
        Frames to record at most.
    autocast
        Run in bfloat16.
    model
        What to call the model in the header; default: `probes.models.name_of`.
    say
        Where messages go; default: stderr.
    progress
        Whether to show a progress bar.

    Raises
    ------
    InputError
        It is no video predictor, a pattern matches nothing, `rows` match no site that has some, the prompts, the
        name or `row_side` can't be used, or the folder holds another recording.
    """
    predictor = stand_in(predictor)
    if min(query_rows, 1 if max_frames is None else max_frames) < 1:
        raise InputError(
            f"query_rows {query_rows} and max_frames {max_frames} given; expected 1 or more of each; choose so"
        )
    source = open_video(video)
    clip = name or (Path(video).stem if isinstance(video, (str, Path)) else "clip")
    _check_name(clip)
    settings = _settings(
        predictor, statistics, rows, row_side, row_heads, query_rows, seed, autocast
    )
    folder = Path(out)
    header = _open_header(
        predictor, settings, folder, name_of(predictor) if model is None else model
    )
    for info in header.clips:
        if info.name == clip:
            held = Recording(folder, header)
            digest = digest_of(predictor, source, prompts)
            differing = _difference(source, info, digest, held, max_frames)
            if differing is None:
                return held
            raise InputError(
                f"clip {clip!r} is in {folder} with {differing}; expected a new name or the same clip; choose "
                "another name or folder"
            )
    collector = Collector(predictor, settings, seed)
    if settings.row_sites:
        _tell_size(collector, settings, source, max_frames, say)
    run = track_and_collect(
        predictor, source, prompts, collector, max_frames, autocast, progress, clip
    )
    arrays = collector.take_arrays()
    shard = f"{clip}.safetensors"
    info = ClipInfo(
        name=clip, video=run.video, prompt=run.prompt, height=source.height, width=source.width,
        frames=len(arrays["frame"]), objects=run.objects, fps=source.fps, shard=shard,
        sha256=write_shard(folder / shard, arrays),
    )  # fmt: skip
    return name_clips(folder, header, [info])


def recorded_clips(
    predictor: Any,
    out: str | Path,
    *,
    statistics: str | Sequence[str] = "*",
    rows: str | Sequence[str] = (),
    row_side: int = ROW_SIDE,
    row_heads: bool = False,
    query_rows: int = QUERY_ROWS,
    seed: int = 0,
    autocast: bool = False,
    model: str | None = None,
) -> list[str]:
    """Return the names of the clips that a recording holds; none where there is no recording. See `record`.

    Raises
    ------
    InputError
        A pattern matches nothing, or the folder holds another recording or other files.
    """
    predictor = stand_in(predictor)
    settings = _settings(
        predictor, statistics, rows, row_side, row_heads, query_rows, seed, autocast
    )
    called = name_of(predictor) if model is None else model
    return [info.name for info in _open_header(predictor, settings, Path(out), called).clips]


def _difference(
    source: VideoSource, info: ClipInfo, digest: str, held: Recording, max_frames: int | None
) -> str | None:
    """Say in what a recorded clip differs from the one that is to be recorded; None where in nothing."""
    other_length = "another prompt or length"
    stream = source.num_frames is None
    most = min(n for n in (max_frames, source.num_frames, sys.maxsize) if n is not None)
    if info.prompt != digest or info.frames > most or (info.frames < most and not stream):
        return other_length
    frames = held.clip(info.name).frame.tolist()
    if hash_of_frames(source, frames) != info.video:
        return "other frames"
    return other_length if info.frames < most and has_frame(source, frames[-1] + 1) else None


def _settings(
    predictor: Any,
    statistics: str | Sequence[str],
    rows: str | Sequence[str],
    row_side: int,
    row_heads: bool,
    query_rows: int,
    seed: int,
    autocast: bool,
) -> Settings:
    measured = find_sites(predictor, statistics)
    shown = find_sites(predictor, rows) if rows else []
    shown = [
        s for s in shown if s.kind in ("global", "cross", "token_to_image") or s.part == "memory"
    ]
    if rows and not shown:
        wanted = rows if isinstance(rows, str) else ", ".join(rows)
        raise InputError(
            f"rows of {wanted} name none whose attention rows are stored; expected global blocks, memory or "
            "token-to-image sites; choose such as '*.global' or 'memory.*.cross'"
        )
    grid = predictor.sam_image_embedding_size
    if row_side < 1:
        raise InputError(
            f"row_side {row_side} given; expected 1 query a side of the grid or more; choose up to {grid}"
        )
    side = min(row_side, grid)
    at = [(2 * i + 1) * grid // (2 * side) for i in range(side)]
    return Settings(
        dtype="bfloat16" if autocast else "float32",
        query_rows=query_rows,
        seed=seed,
        encoder_sites=tuple(s.name for s in measured if s.part == "encoder"),
        object_sites=tuple(s.name for s in measured if s.part != "encoder"),
        map_sites=tuple(s.name for s in attention_sites(predictor, "encoder", "global")),
        row_sites=tuple(s.name for s in shown),
        row_queries=tuple(y * grid + x for y in at for x in at) if shown else (),
        row_grid=(ROW_GRID if grid % ROW_GRID == 0 else grid) if shown else 0,
        profile=_profile_of(predictor),
        row_heads=row_heads and bool(shown),
    )


def _profile_of(predictor: Any) -> dict[str, Any] | None:
    """The profile that an accelerated predictor follows, as its file has it."""
    if not is_accelerated(predictor):
        return None
    profile: dict[str, Any] = predictor.profile.model_dump(mode="json", by_alias=True)
    return profile


def _tell_size(
    collector: Collector,
    settings: Settings,
    source: VideoSource,
    max_frames: int | None,
    say: Callable[[str], None] | None,
) -> None:
    """Say how many bytes raw rows will take."""
    each = 0
    for site in settings.row_sites:
        levels, scale = row_forms(collector.sites[site], settings, collector.output_tokens)
        each += int(np.prod(levels)) + 4 * int(np.prod(scale))
    frames = min(f for f in (max_frames, source.num_frames, sys.maxsize) if f is not None)
    total = f"{each * frames / 1e6:.1f} MB for one object on {frames} frames"
    text = f"raw rows of {len(settings.row_sites)} sites take {each / 1e6:.2f} MB a frame"
    text += f", {total}" if frames < sys.maxsize else ""
    if say is None:
        print(text, file=sys.stderr)
    else:
        say(text)


def _open_header(predictor: Any, settings: Settings, folder: Path, name: str) -> Header:
    """The header of the recording in a folder, or a new one.

    Raises
    ------
    InputError
        The folder holds something else, a recording of another model or settings, or can't be made.
    """
    model = ModelInfo(
        name=name,
        fingerprint=fingerprint(predictor),
        image_size=predictor.image_size,
        grid=predictor.sam_image_embedding_size,
        window=int(predictor.image_encoder.trunk.window_spec[2]),
        layers=len(attention_sites(predictor, "memory", "cross")),
    )
    if (folder / HEADER).is_file():
        header = load_recording(folder).header
        for part, wanted in (("model", model), ("settings", settings)):
            if getattr(header, part) != wanted:
                raise InputError(
                    f"{folder} holds a recording with another {part}; expected the same one or a new folder; "
                    "choose another"
                )
        return header
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds other files; expected a new folder; choose another")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise InputError(
            f"{folder} can't be made, as {there} can't be written into; expected a new folder; choose another"
        )
    packages = ["efficient-sam2", "sam2", "torch"]
    if isinstance(predictor, TransformersPredictor):
        packages.append("transformers")
    versions = {package: version(package) for package in packages}
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Header(model=model, settings=settings, versions=versions, date=date, schema=SCHEMA)


def _check_name(clip: str) -> None:
    """Refuse a clip's name that its shard can't have."""
    if set(clip) & set("/\\\0") or len(clip.encode()) > LONGEST_NAME:
        raise InputError(
            f"clip name {clip[:80]!r} was given; expected a file name of {LONGEST_NAME} bytes at most, without / and "
            "\\; choose another"
        )


def write_shard(path: Path, arrays: Mapping[str, Array]) -> str:
    """Write a clip's arrays to its shard, without a copy of them in memory; return the file's sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        save_file(dict(arrays), part)
        return sha256_of(part)


def name_clips(folder: Path, header: Header, clips: Iterable[ClipInfo]) -> Recording:
    """Add clips, whose shards are there, to a recording's header."""
    full = header.model_copy(update={"clips": (*header.clips, *clips)})
    write_text(folder / HEADER, full.to_json())
    return Recording(folder, full)


def _copy_shards(folder: Path, header: Header, shards: Mapping[ClipInfo, Path]) -> Recording:
    """Add shards of other recordings: first the files, then the header that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for info, path in shards.items():
        with whole(folder / info.shard) as part:
            shutil.copyfile(path, part)
    return name_clips(folder, header, shards)


def merge_recordings(recordings: Sequence[str | Path], out: str | Path) -> Recording:
    """Join recordings of the same model and settings into a new folder.

    Raises
    ------
    InputError
        They differ in model or settings, or two hold clips of the same name.
    """
    opened = [load_recording(path) for path in recordings]
    clips = _together(opened)
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; expected a new folder; choose another")
    return _copy_shards(folder, opened[0].header.model_copy(update={"clips": ()}), clips)


def extend_recording(out: str | Path, recordings: Sequence[str | Path]) -> Recording:
    """Take the clips of other recordings of the same model and settings into one; it is made if it isn't there.

    Raises
    ------
    InputError
        They differ in model or settings, or two hold clips of the same name.
    """
    folder = Path(out)
    others = [load_recording(path) for path in recordings]
    if not (folder / HEADER).is_file():
        return merge_recordings(recordings, folder)
    recording = load_recording(folder)
    _together([recording, *others])
    return _copy_shards(folder, recording.header, _together(others)) if others else recording


def _together(opened: Sequence[Recording]) -> dict[ClipInfo, Path]:
    """Return the shards of recordings that can be joined."""
    first = opened[0]
    clips: list[tuple[Path, ClipInfo]] = []
    for recording in opened:
        for part in ("model", "settings"):
            if getattr(recording.header, part) != getattr(first.header, part):
                raise InputError(
                    f"{recording.path} and {first.path} differ in their {part}; expected recordings of one "
                    "model under the same settings; merge only such ones"
                )
        clips += [(recording.path, info) for info in recording.header.clips]
    names = [info.name for _, info in clips]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"clips {', '.join(twice)} are in several recordings; expected each clip once; leave one out"
        )
    return {info: path / info.shard for path, info in clips}
