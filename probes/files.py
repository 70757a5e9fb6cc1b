"""Files that are whole or absent, and what tells one state of a video's files from another."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from probes.errors import InputError

HASHED = 2**20
"""Bytes that are hashed at a time."""

PART = re.compile(r"\..+\.(?P<process>\d+)\.part(\.\w+)?")
"""Names that `whole` writes to."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; the file becomes `path` when the context ends, unless by an error.

    The name is this process's own, so two that write the same file don't meet, and keeps the suffix, which some
    writers go by.
    """
    # absolute: FFmpeg would take "tiny:exact/overlay.mp4" for an address
    part = path.absolute().with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what processes that were killed left behind of files of `whole` in a folder and those in it."""
    for path in folder.rglob(".*.part*"):
        match = PART.fullmatch(path.name)
        if match and not psutil.pid_exists(int(match["process"])):
            path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hash of a file's content, which need not fit into memory."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASHED):
            found.update(block)
    return found.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file that is whole or absent."""
    with whole(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def check_folder_of(path: Path) -> None:
    """Hold that the folder that a file is to be written into is there.

    Raises
    ------
    InputError
        It is not.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder; expected one to write into; make it first")


def files_of(*places: Path) -> dict[str, Path]:
    """Files and those in folders, by a name that says where; hidden ones, which systems leave behind, apart."""
    return {
        f"{number}/{path.name}": path
        for number, place in enumerate(places)
        for path in (sorted(place.iterdir()) if place.is_dir() else [place])
        if path.is_file() and not path.name.startswith(".")
    }


def listing(*places: Path) -> str:
    """Hash of names, sizes and times of `files_of`: another one where a video or a mask was changed."""
    files = [(n, f.stat().st_size, f.stat().st_mtime_ns) for n, f in files_of(*places).items()]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def composed(name: str) -> str:
    """Return a name as it compares: systems differ in whether letters are written with their accents or before them."""
    return unicodedata.normalize("NFC", name)


def named(folder: Path, name: str) -> Path:
    """Return the path of a name in a folder, however its accents are written there."""
    exact = folder / name
    if exact.exists() or name.isascii() or not folder.is_dir():
        return exact
    return next((p for p in folder.iterdir() if composed(p.name) == composed(name)), exact)


def stamp_of(path: str | Path) -> tuple[int, int]:
    """What is another number where a file was written anew: when that was, in nanoseconds, and its bytes."""
    found = Path(path).stat()
    return found.st_mtime_ns, found.st_size


def check_unchanged(path: str | Path, stamp: tuple[int, int]) -> None:
    """Hold that a file of a video is as it was when the video was opened.

    Raises
    ------
    InputError
        It was written anew, or is gone.
    """
    try:
        same = stamp_of(path) == stamp
    except OSError:
        raise InputError(
            f"{path} is gone since the video was opened; expected the files as they were then; keep them until the video "
            "is done, or begin it with eager=True"
        ) from None
    if not same:
        raise InputError(
            f"{path} was changed since the video was opened; expected the files as they were then; open the video anew, or "
            "begin it with eager=True"
        )
