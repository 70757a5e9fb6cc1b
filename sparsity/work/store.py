"""What a run leaves behind: results that are kept and gone on with, and places for them that can be used.

One way to resume and to cache (`kept`): a file carries in its name the hash of everything that decides its
content, and is written whole or not at all. So a file that is there and can be read is the one that is wanted;
one of other settings is another file, and two processes at once write the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from probes.errors import InputError
from probes.files import whole

Made = TypeVar("Made")
Read = TypeVar("Read")

DIGITS = 16
"""Of a key's hash in a file's name."""


def read_json(path: Path) -> Any:
    """Read a file of `write_json`."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value that JSON can hold."""
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def digest(key: Any) -> str:
    """Return the SHA-256 of a key: anything that JSON can hold, the order of a dict's entries apart.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    True
    """
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def kept_as(path: Path, key: Any) -> Path:
    """Return the file in which something is kept that `key` decides.

    >>> kept_as(Path("traces/dog.safetensors"), {"model": "tiny"}).as_posix()
    'traces/dog.39421ca3561ec521.safetensors'
    """
    return path.with_name(f"{path.stem}.{digest(key)[:DIGITS]}{path.suffix}")


def held(path: Path, key: Any, read: Callable[[Path], Read] = read_json) -> Read | None:
    """Return what is kept of `key`; None where there is nothing, or nothing whole."""
    try:
        return read(kept_as(path, key))
    except (
        Exception
    ):  # whatever a reader makes of a damaged file; `kept` reads what it wrote without this
        return None


def keep(
    path: Path, key: Any, value: Made, write: Callable[[Path, Made], None] = write_json
) -> Path:
    """Write what `key` decides, whole or not at all; return its file."""
    file = kept_as(path, key)
    file.parent.mkdir(parents=True, exist_ok=True)  # another process may be done with the same
    with whole(file) as part:
        write(part, value)
    return file


def kept(
    path: Path,
    key: Any,
    make: Callable[[], Made],
    read: Callable[[Path], Read] = read_json,
    write: Callable[[Path, Made], None] = write_json,
) -> Read:
    """Return what was made before of the same key, or make and keep it.

    Parameters
    ----------
    path
        Folder and name, to which the key's hash is added; the folder is made when it is not there.
    key
        Everything that decides what is made, as JSON can hold it: settings, model, clip.
    make
        Called where there is no whole file of that key.
    read, write
        From a file to what is wanted and from what was made to a file; `read` raises on a damaged file and never
        gives None.

    Returns
    -------
    object
        As it was read, so that it is the same the first time and later.
    """
    found = held(path, key, read)
    return read(keep(path, key, make(), write)) if found is None else found


def forget(path: Path) -> None:
    """Remove what is kept under a name, of whatever key."""
    for file in path.parent.glob("*"):
        stem, _, hash_ = file.stem.rpartition(".")
        if stem == path.stem and len(hash_) == DIGITS and file.suffix == path.suffix:
            file.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Look at the place of a folder for results before the work.

    Raises
    ------
    InputError
        It is a file.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; expected a folder for results; choose another --out")


def check_different(*paths: Path) -> None:
    """Look at the names of a command's files before the work.

    Raises
    ------
    InputError
        Two of them are the same file.
    """
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise InputError(
                f"{path} given for two results; expected a file for each; choose another name for one"
            )


def check_new_file(path: Path, force: bool) -> None:
    """Look at the place of a file before the work that it is for.

    Raises
    ------
    InputError
        It is a folder, a device or a pipe, or a file that is there, which only `force` replaces.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file; add a name")
    if path.exists() and not path.is_file():
        raise InputError(
            f"{path} is no regular file; expected a file to write; choose another name"
        )
    if path.exists() and not force:
        raise InputError(
            f"{path} exists; expected a new file; choose another name, or --force to replace it"
        )
