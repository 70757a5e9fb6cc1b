"""Record what a model attends to on videos: `record`, its files, and merging.

A recording holds what figures show and what calibration replays without the model; `probes.records` says
what that is and reads it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probes.collector import Collector
from probes.errors import InputError
from probes.models import name_of
from probes.prompts import Prompts
from probes.rawrows import row_forms
from probes.recording_files import check_name, name_clips, open_header, write_shard
from probes.recording_files import extend_recording as extend_recording
from probes.recording_files import merge_recordings as merge_recordings
from probes.records import QUERY_ROWS, ClipInfo, Recording, Settings
from probes.sites import attention_sites, find_sites
from probes.tracking import begin_video as begin_video
from probes.tracking import check_stock, digest_of, hash_of_frames, track_and_collect
from probes.video import VideoSource, has_frame, open_video

ROW_SIDE = 16
"""Queries per side of the token grid whose raw rows are stored, at most."""

ROW_GRID = 32
"""Cells per side of a stored raw row, at most."""


def record(
    predictor: Any,
    video: Any,
    prompts: Prompts,
    *,
    out: str | Path,
    name: str | None = None,
    statistics: str | Sequence[str] = "*",
    rows: str | Sequence[str] = (),
    query_rows: int = QUERY_ROWS,
    seed: int = 0,
    max_frames: int | None = None,
    autocast: bool = False,
    model: str | None = None,
    say: Callable[[str], None] | None = None,
    progress: bool = False,
) -> Recording:
    """Track a video with the stock predictor and record what it attends to.

    A clip that the recording already holds, of the same frames and prompt, is left as it is; so a loop over
    a data set goes on where it was interrupted.

    Parameters
    ----------
    predictor
        Stock ``SAM2VideoPredictor``: calibration needs a dense run.
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
        The predictor is not stock, a pattern matches nothing, `rows` match no site that has some, the prompts or the
        name can't be used, or the folder holds another recording.
    """
    check_stock(predictor)
    source = open_video(video)
    clip = name or (Path(video).stem if isinstance(video, (str, Path)) else "clip")
    check_name(clip)
    settings = _settings(predictor, statistics, rows, query_rows, seed, autocast)
    folder = Path(out)
    header = open_header(
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
    settings = _settings(predictor, statistics, rows, query_rows, seed, autocast)
    called = name_of(predictor) if model is None else model
    return [info.name for info in open_header(predictor, settings, Path(out), called).clips]


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
    side = min(ROW_SIDE, grid)
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
    )


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
