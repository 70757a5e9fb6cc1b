"""SAM 2.1 checkpoints, above all the official ones: fetched once, resumed where the line broke, verified, kept."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from probes.errors import InputError

BASE_URL = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"
"""Where the authors of SAM 2 offer them; the variable EFFICIENT_SAM2_CHECKPOINTS_URL names a mirror."""

ATTEMPTS = 6
"""Connections in a row that bring nothing before giving up; each goes on where the last one stopped."""

PATIENCE = 1.0
"""Seconds to wait after a connection that brought nothing; doubled each time."""

TIMEOUT = (15.0, 60.0)
"""Seconds to wait for a connection, and for its next bytes."""

CHUNK = 1 << 16


@dataclass(frozen=True)
class Checkpoint:
    """A file to fetch: its name, its size in bytes and its SHA-256, None where that isn't known."""

    file: str
    size: int
    sha256: str | None


CHECKPOINTS = {
    "sam2.1-tiny": Checkpoint(
        "sam2.1_hiera_tiny.pt",
        156008466,
        "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
    ),
    "sam2.1-small": Checkpoint(
        "sam2.1_hiera_small.pt",
        184416285,
        "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
    ),
    "sam2.1-base-plus": Checkpoint(
        "sam2.1_hiera_base_plus.pt",
        323606802,
        "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
    ),
    "sam2.1-large": Checkpoint(
        "sam2.1_hiera_large.pt",
        898083611,
        "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
    ),
}


def cache_folder() -> Path:
    """Return the folder where fetched files are kept; the variable EFFICIENT_SAM2_CACHE names another."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("EFFICIENT_SAM2_CACHE")
    return (Path(chosen) if chosen else user_cache_path("efficient-sam2")) / "checkpoints"


def is_fetched(name: str) -> bool:
    """Whether the checkpoint of model `name` was fetched before."""
    wanted = CHECKPOINTS[name]
    path = cache_folder() / wanted.file
    return path.is_file() and path.stat().st_size == wanted.size


def fetched(name: str) -> Path:
    """Return the checkpoint of model `name` that was fetched before.

    Raises
    ------
    InputError
        It isn't there.
    """
    if not is_fetched(name):
        raise InputError(
            f"no checkpoint of {name} is on this machine; expected one that was fetched; run "
            f"`efficient-sam2 fetch {name}`, give a checkpoint, or take random weights"
        )
    return cache_folder() / CHECKPOINTS[name].file


def fetch_checkpoint(name: str, *, progress: bool = False) -> Path:
    """Fetch the official checkpoint of a model, unless it is there already; return its file.

    Raises
    ------
    InputError
        The name is unknown, the server can't be reached, or it doesn't deliver the expected bytes.
    """
    if name not in CHECKPOINTS:
        raise InputError(
            f"model {name!r} has no checkpoint to fetch; expected one of {', '.join(CHECKPOINTS)}, or a Hugging Face name "
            "such as facebook/sam2.1-hiera-large; choose one of them"
        )
    base = os.environ.get("EFFICIENT_SAM2_CHECKPOINTS_URL", BASE_URL)
    return download(CHECKPOINTS[name], cache_folder(), base, progress=progress)


def download(
    wanted: Checkpoint,
    folder: Path,
    base_url: str,
    *,
    headers: Mapping[str, str] | None = None,
    progress: bool = False,
) -> Path:
    """Bring a file into `folder`; it appears there whole and verified, or not at all.

    Parameters
    ----------
    wanted
        The file.
    folder
        Where it goes. An unfinished one is kept there as ``NAME.part`` and taken up the next time.
    base_url
        Address to which the file's name is added.
    headers
        Sent along, such as a token; never shown.
    progress
        Draw a bar on stderr.

    Raises
    ------
    InputError
        The server can't be reached, or doesn't deliver the expected bytes.
    """
    import pooch
    from tqdm import tqdm

    pooch.get_logger().setLevel(logging.WARNING)
    url = base_url.rstrip("/") + "/" + wanted.file
    part = folder / f"{wanted.file}.part"

    def bring(address: str, output: str, _: object) -> None:
        with tqdm(
            total=wanted.size,
            unit="B",
            unit_scale=True,
            desc=wanted.file,
            disable=None if progress else True,
        ) as bar:
            _download_part(address, part, wanted.size, bar.update, headers or {})
        os.replace(part, output)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = folder / wanted.file
        if wanted.sha256 is None and old.is_file() and old.stat().st_size != wanted.size:
            old.unlink()
        known = f"sha256:{wanted.sha256}" if wanted.sha256 else None
        found = pooch.retrieve(url, known, fname=wanted.file, path=folder, downloader=bring)
    except OSError as error:
        raise InputError(
            f"{wanted.file} can't be stored in {folder} ({error.strerror or error}); expected a folder with "
            f"{wanted.size / 1e6:.0f} MB of room; set EFFICIENT_SAM2_CACHE to another one"
        ) from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{url} delivered other bytes than the official {wanted.file}; expected SHA-256 "
            f"{wanted.sha256}; nothing was kept, fetch it again or from another address"
        ) from None
    return Path(found)


def _offers_another(headers: Mapping[str, str], size: int) -> int | None:
    """Return how many bytes a whole answer announces where that isn't `size`; packed ones don't tell."""
    announced = headers.get("Content-Length", "")
    if not announced.isdecimal() or "Content-Encoding" in headers or int(announced) == size:
        return None
    return int(announced)


def _download_part(
    url: str, part: Path, size: int, seen: Callable[[int], object], headers: Mapping[str, str]
) -> None:
    """Extend `part` until it has `size` bytes, over as many connections as it takes."""
    import requests

    if part.is_file() and part.stat().st_size > size:
        part.unlink()
    seen(part.stat().st_size if part.is_file() else 0)
    problem, barren, before = "", 0, -1
    while barren < ATTEMPTS:
        have = part.stat().st_size if part.is_file() else 0
        if have == size:
            return
        if have > before:
            barren = 0
        else:
            time.sleep(PATIENCE * 2**barren)
        barren, before = barren + 1, have
        try:
            asked = {**headers, **({"Range": f"bytes={have}-"} if have else {})}
            with requests.get(url, headers=asked, stream=True, timeout=TIMEOUT) as answer:
                if answer.status_code >= 400:
                    problem = f"{answer.status_code} {answer.reason}"
                    if answer.status_code < 500:
                        break  # asking again will not help
                    continue
                if answer.status_code != 206:  # the server sends it from the start
                    if (other := _offers_another(answer.headers, size)) is not None:
                        problem = f"it offers {other} of {size} bytes"
                        break  # such as a page to log in to a network; what is kept stays
                    seen(-have)
                    have = 0
                with part.open("ab" if have else "wb") as file:
                    for chunk in answer.iter_content(CHUNK):
                        file.write(chunk)
                        seen(len(chunk))
                        have += len(chunk)
                        if have > size:
                            break
                problem = f"it sent {have} of {size} bytes"
        except ValueError as error:
            raise InputError(
                f"{url} can't be fetched ({error}); expected an address that begins with https:// or http://; "
                "correct EFFICIENT_SAM2_CHECKPOINTS_URL or HF_ENDPOINT"
            ) from None
        except requests.RequestException as error:
            problem = type(error).__name__
        if part.is_file() and part.stat().st_size > size:
            part.unlink()
            problem = f"it sends more than {size} bytes"
            break
    if part.is_file() and part.stat().st_size == size:
        return
    kept = f", {part.stat().st_size} bytes are kept" if part.is_file() else ""
    raise InputError(
        f"{url} can't be fetched ({problem}); expected {size} bytes{kept}; connect to the network and run "
        "the same command again"
    )
