"""Record what a model attends to on videos: `record`, its files, and merging.

A recording holds what figures show and what calibration replays without the model; `probes.records` says
what that is and reads it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from tqdm import tqdm

from probes.collector import Collector, row_forms
from probes.errors import InputError
from probes.observing import observe
from probes.records import HEADER, ClipInfo, Header, ModelInfo, Recording, Settings, load_recording
from probes.sites import attention_sites, find_sites
from probes.streaming import QUERY_ROWS
from probes.video import ModelFrames, VideoSource, open_video
from probes.weights import fingerprint

Prompts = Mapping[int, NDArray[Any]] | Callable[[Any, dict[str, Any]], Any]
"""Masks bool ``[H, W]`` of frame 0 by object id, or a function of predictor and state that gives prompts."""

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
    model: str = "sam2",
    say: Callable[[str], None] | None = None,
    progress: bool = False,
) -> Recording:
    """Track a video with the stock predictor and record what it attends to.

    A clip that the recording already holds, of the same prompt and length, is left as it is; so a loop over
    a data set goes on where it was interrupted.

    Parameters
    ----------
    predictor
        Stock ``SAM2VideoPredictor``: calibration needs a dense run.
    video
        Whatever `open_video` opens.
    prompts
        What to track.
    out
        Folder of the recording; made, or added to when model and settings are the same.
    name
        Of the clip; default: the video's file name.
    statistics
        Patterns of sites whose statistics are kept. Memory and the decoder's saliency always are.
    rows
        Patterns of sites whose raw attention rows are stored too, for the explorer; global blocks, memory
        and token-to-image sites have some. Before it starts, the run says how many bytes that will take.
    query_rows
        Query rows, at least, that statistics are measured from.
    seed
        Of that sample.
    max_frames
        Frames to record at most.
    autocast
        Run in bfloat16.
    model
        What to call the model in the header.
    say
        Where messages go; default: stderr.
    progress
        Whether to show a progress bar.

    Raises
    ------
    InputError
        The predictor is not stock, a pattern matches nothing, or the folder holds another recording.
    """
    _check_stock(predictor)
    source = open_video(video)
    settings = _settings(predictor, statistics, rows, query_rows, autocast)
    folder = Path(out)
    header = _header(predictor, settings, folder, model)
    clip = name or (Path(video).stem if isinstance(video, (str, Path)) else "clip")
    digest = _digest(prompts)
    length = source.num_frames
    for info in header.clips:
        if info.name == clip:
            if info.prompt == digest and (max_frames or length) in (info.frames, None):
                return Recording(folder, header)
            raise InputError(
                f"clip {clip!r} is in {folder} with another prompt or length; expected a new name or the same "
                "clip; choose another name or folder"
            )
    collector = Collector(predictor, settings, seed)
    if settings.row_sites:
        _tell_size(collector, settings, source, max_frames, say)
    video_hash, objects = _track(
        predictor, source, prompts, collector, max_frames, autocast, progress, clip
    )
    arrays = collector.arrays()
    shard = f"{clip}.safetensors"
    content = save(arrays)
    info = ClipInfo(
        name=clip, video=video_hash, prompt=digest, height=source.height, width=source.width,
        frames=len(arrays["frame"]), objects=objects, fps=source.fps, shard=shard,
        sha256=hashlib.sha256(content).hexdigest(),
    )  # fmt: skip
    return _write(folder, header, {info: content})


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
    return _write(folder, opened[0].header.model_copy(update={"clips": ()}), clips)


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
    return _write(folder, recording.header, _together(others)) if others else recording


def recorded_clips(
    predictor: Any,
    out: str | Path,
    *,
    statistics: str | Sequence[str] = "*",
    rows: str | Sequence[str] = (),
    query_rows: int = QUERY_ROWS,
    autocast: bool = False,
    model: str = "sam2",
) -> list[str]:
    """Return the names of the clips that a recording holds; none where there is no recording. See `record`.

    Raises
    ------
    InputError
        A pattern matches nothing, or the folder holds another recording or other files.
    """
    settings = _settings(predictor, statistics, rows, query_rows, autocast)
    return [info.name for info in _header(predictor, settings, Path(out), model).clips]


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


def begin_video(predictor: Any, source: VideoSource) -> dict[str, Any]:
    """Begin a video on the stock predictor like its ``init_state``, with frames decoded when they are needed."""
    device = predictor.device
    state: dict[str, Any] = {
        "images": ModelFrames(source, predictor.image_size, device),
        "num_frames": source.num_frames if source.num_frames is not None else sys.maxsize,
        "offload_video_to_cpu": False,
        "offload_state_to_cpu": False,
        "video_height": source.height,
        "video_width": source.width,
        "device": device,
        "storage_device": device,
        "obj_ids": [],
    }
    for key in ("obj_id_to_idx", "obj_idx_to_id", "point_inputs_per_obj", "mask_inputs_per_obj"):
        state[key] = {}
    for key in ("output_dict_per_obj", "temp_output_dict_per_obj", "frames_tracked_per_obj"):
        state[key] = {}
    state["cached_features"], state["constants"] = {}, {}
    return state


def _check_stock(predictor: Any) -> None:
    if "_seam" in predictor.__dict__:
        raise InputError(
            "an accelerated predictor was given; recordings are of dense runs, which calibration replays; pass "
            "the stock predictor that it was made from"
        )


def _settings(
    predictor: Any,
    statistics: str | Sequence[str],
    rows: str | Sequence[str],
    query_rows: int,
    autocast: bool,
) -> Settings:
    measured = find_sites(predictor, statistics)
    shown = find_sites(predictor, rows) if rows else []
    shown = [
        s for s in shown if s.kind in ("global", "cross", "token_to_image") or s.part == "memory"
    ]
    grid = predictor.sam_image_embedding_size
    side = min(ROW_SIDE, grid)
    at = [(2 * i + 1) * grid // (2 * side) for i in range(side)]
    return Settings(
        dtype="bfloat16" if autocast else "float32",
        query_rows=query_rows,
        encoder_sites=tuple(s.name for s in measured if s.part == "encoder"),
        object_sites=tuple(s.name for s in measured if s.part != "encoder"),
        map_sites=tuple(s.name for s in attention_sites(predictor, "encoder", "global")),
        row_sites=tuple(s.name for s in shown),
        row_queries=tuple(y * grid + x for y in at for x in at) if shown else (),
        row_grid=(ROW_GRID if grid % ROW_GRID == 0 else grid) if shown else 0,
    )


def _header(predictor: Any, settings: Settings, folder: Path, name: str) -> Header:
    """The header of the recording in a folder, or a new one."""
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
    versions = {package: version(package) for package in ("efficient-sam2", "sam2", "torch")}
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Header(
        model=model,
        settings=settings,
        versions=versions,
        date=date,
        schema="efficient-sam2/recording/1",
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


def _track(
    predictor: Any,
    source: VideoSource,
    prompts: Prompts,
    collector: Collector,
    max_frames: int | None,
    autocast: bool,
    progress: bool,
    clip: str,
) -> tuple[str, tuple[int, ...]]:
    """Run the model, forward from the first prompt and then back; return the video's hash and the objects."""
    precision = torch.autocast(predictor.device.type, torch.bfloat16) if autocast else nullcontext()
    pixels = hashlib.sha256()
    done: set[int] = set()
    bar = tqdm(total=max_frames or source.num_frames, desc=clip, unit="frame", disable=not progress)
    with torch.inference_mode(), precision, collector.listening(), bar:
        with observe(predictor, collector.add, "*"), _noting(predictor, collector):
            state = begin_video(predictor, source)
            _give(prompts, predictor, state)
            start = min(
                t
                for outputs in state["temp_output_dict_per_obj"].values()
                for t in outputs["cond_frame_outputs"]
            )
            for reverse in (False, True):
                if reverse and start == 0:
                    continue
                limit = None if max_frames is None else max_frames - 1 - len(done)
                if limit is not None and limit < (1 if reverse else 0):
                    continue
                for frame, _, _ in predictor.propagate_in_video(state, start, limit, reverse):
                    if frame in done:
                        continue
                    collector.finish_frame(state, frame, reverse)
                    pixels.update(source.frame(frame).tobytes())
                    done.add(frame)
                    bar.update()
    return pixels.hexdigest(), tuple(state["obj_ids"])


class _noting:
    """Tells the collector when a frame was encoded and when an object was tracked."""

    def __init__(self, predictor: Any, collector: Collector) -> None:
        self.predictor, self.collector = predictor, collector
        self.before = {
            name: predictor.__dict__.get(name)
            for name in ("_run_single_frame_inference", "_get_image_feature")
        }

    def __enter__(self) -> None:
        run, encode = self.before.values()
        collector = self.collector

        def track(*args: Any, **kwargs: Any) -> Any:
            state, results = kwargs["inference_state"], kwargs["output_dict"]
            found = run(*args, **kwargs)
            for index, known in state["output_dict_per_obj"].items():
                if known is results:
                    collector.note_object(kwargs["frame_idx"], state["obj_idx_to_id"][index])
            return found

        def features(inference_state: Any, frame_idx: int, batch_size: int) -> Any:
            found = encode(inference_state, frame_idx, batch_size)
            collector.note_features(frame_idx)
            return found

        self.predictor.__dict__.update(
            _run_single_frame_inference=track, _get_image_feature=features
        )

    def __exit__(self, *_: Any) -> None:
        self.predictor.__dict__.update(self.before)


def _give(prompts: Prompts, predictor: Any, state: dict[str, Any]) -> None:
    if callable(prompts):
        prompts(predictor, state)
        return
    for object_id, mask in prompts.items():
        predictor.add_new_mask(state, 0, object_id, np.asarray(mask, dtype=bool))


def _digest(prompts: Prompts) -> str:
    if callable(prompts):
        owner: Any = getattr(prompts, "__self__", None)
        return str(owner.digest()) if hasattr(owner, "digest") else "custom"
    found = hashlib.sha256()
    for object_id, mask in sorted(prompts.items()):
        found.update(
            f"{object_id} {mask.shape}".encode() + np.packbits(np.asarray(mask) > 0).tobytes()
        )
    return found.hexdigest()


def _write(
    folder: Path, header: Header, shards: Mapping[ClipInfo, bytes] | Mapping[ClipInfo, Path]
) -> Recording:
    """Add shards to a recording: first the files, then the header that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for info, content in shards.items():
        part = folder / f".{info.shard}.part"
        if isinstance(content, Path):
            shutil.copyfile(content, part)
        else:
            part.write_bytes(content)
        os.replace(part, folder / info.shard)
    full = header.model_copy(update={"clips": (*header.clips, *shards)})
    part = folder / f".{HEADER}.part"
    part.write_text(full.to_json() + "\n", encoding="utf-8")
    os.replace(part, folder / HEADER)
    return Recording(folder, full)
