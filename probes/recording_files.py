"""A recording's files: its header, shards added under temporary names, recordings merged."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from probes.errors import InputError
from probes.records import (
    HEADER,
    SCHEMA,
    Array,
    ClipInfo,
    Header,
    ModelInfo,
    Recording,
    Settings,
    load_recording,
)
from probes.sites import attention_sites
from probes.weights import fingerprint

LONGEST_NAME = 200
"""Bytes of a clip's name, which with its suffixes is a file's name."""

HASHED = 2**20
"""Bytes that are hashed at a time."""


def open_header(predictor: Any, settings: Settings, folder: Path, name: str) -> Header:
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
    versions = {package: version(package) for package in ("efficient-sam2", "sam2", "torch")}
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Header(
        model=model,
        settings=settings,
        versions=versions,
        date=date,
        schema=SCHEMA,
    )


def check_name(clip: str) -> None:
    """Refuse a clip's name that its shard can't have."""
    if set(clip) & set("/\\\0") or len(clip.encode()) > LONGEST_NAME:
        raise InputError(
            f"clip name {clip[:80]!r} was given; expected a file name of {LONGEST_NAME} bytes at most, without / and "
            "\\; choose another"
        )


def write_shard(path: Path, arrays: Mapping[str, Array]) -> str:
    """Write a clip's arrays to its shard, without a copy of them in memory; return the file's sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    save_file(dict(arrays), part)
    found = hashlib.sha256()
    with part.open("rb") as file:
        while block := file.read(HASHED):
            found.update(block)
    os.replace(part, path)
    return found.hexdigest()


def name_clips(folder: Path, header: Header, clips: Iterable[ClipInfo]) -> Recording:
    """Add clips, whose shards are there, to a recording's header."""
    full = header.model_copy(update={"clips": (*header.clips, *clips)})
    part = folder / f".{HEADER}.part"
    part.write_text(full.to_json() + "\n", encoding="utf-8")
    os.replace(part, folder / HEADER)
    return Recording(folder, full)


def copy_shards(folder: Path, header: Header, shards: Mapping[ClipInfo, Path]) -> Recording:
    """Add shards of other recordings: first the files, then the header that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for info, path in shards.items():
        part = folder / f".{info.shard}.part"
        shutil.copyfile(path, part)
        os.replace(part, folder / info.shard)
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
    return copy_shards(folder, opened[0].header.model_copy(update={"clips": ()}), clips)


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
    return copy_shards(folder, recording.header, _together(others)) if others else recording


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
