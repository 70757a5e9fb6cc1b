"""Where weights are: a folder, a repository of the Hugging Face hub that was fetched, or that is to be fetched."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from probes.checkpoints import CHECKPOINTS, Checkpoint, cache_folder, download, is_fetched
from probes.errors import InputError
from probes.lora import SETTINGS, TENSORS, lora_settings
from probes.weights import INDEX

OFFICIAL = {
    "facebook/" + Path(found.file).stem.replace("_", "-"): name
    for name, found in CHECKPOINTS.items()
}
"""Repositories of SAM 2's authors, each with the checkpoint that they also offer elsewhere."""

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
"""transformers' files."""

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
"""Files that transformers' index names."""

ENDPOINT = "https://huggingface.co"
"""The hub; the variable HF_ENDPOINT names a mirror, and HF_TOKEN a token for what isn't open to all."""

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Found:
    """Weights that were found.

    Attributes
    ----------
    weights
        Their file.
    model
        Which official model they are of, where their file's name says it.
    config
        transformers' configuration beside them, or None.
    lora
        Folder of an adapter to be merged into them, or None.
    """

    weights: Path
    model: str | None = None
    config: Path | None = None
    lora: Path | None = None


def is_hub_name(name: str) -> bool:
    """Whether a name is one of a repository on the hub, ``owner/name``, and of no folder here."""
    return _NAME.fullmatch(name) is not None and not Path(name).exists()


def find(name: str) -> Found:
    """Find weights that are on this machine.

    Parameters
    ----------
    name
        A folder, as sam2's users, transformers or PEFT write it; or a hub name that ``efficient-sam2 fetch`` or Hugging
        Face's own libraries have brought.

    Raises
    ------
    InputError
        There are none, or several.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path)
    model = OFFICIAL.get(name)
    if model is not None and is_fetched(model):
        return Found(cache_folder() / CHECKPOINTS[model].file, model)
    for folder in (_kept(name), _snapshot(name)):
        if folder.is_dir():
            found = _in_folder(folder)
            return found if model is None else replace(found, model=model)
    raise InputError(
        f"no weights of {name} are on this machine; expected ones that were fetched; run `efficient-sam2 fetch {name}`"
    )


def fetch_from_hub(name: str, *, progress: bool = False) -> Path:
    """Fetch a repository's weights and what belongs to them, unless they are here; return their file.

    Of an adapter its base model is fetched too.

    Raises
    ------
    InputError
        There is no such repository or it can't be read with the token of HF_TOKEN, it holds no weights of a SAM 2, the
        hub can't be reached, or it doesn't deliver the expected bytes.
    """
    endpoint = os.environ.get("HF_ENDPOINT") or ENDPOINT
    base = f"{endpoint.rstrip('/')}/{name}/resolve"
    token = os.environ.get("HF_TOKEN", "").strip()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if name in OFFICIAL:
        wanted = CHECKPOINTS[OFFICIAL[name]]
        return download(wanted, cache_folder(), f"{base}/main", headers=headers, progress=progress)
    commit, files = _listing(endpoint.rstrip("/"), name, headers)
    folder = _kept(name)
    for file in _wanted(name, files):
        size, sha256 = files[file]
        download(
            Checkpoint(file, size, sha256),
            folder,
            f"{base}/{commit}",
            headers=headers,
            progress=progress,
        )
    adapted = _base_of(folder) if (folder / SETTINGS).is_file() else None
    if adapted is not None and is_hub_name(adapted):
        fetch_from_hub(adapted, progress=progress)
        return folder / TENSORS
    return find(name).weights


def _kept(name: str) -> Path:
    return cache_folder() / "hub" / name.replace("/", "--")


def _snapshot(name: str) -> Path:
    """Where Hugging Face's own libraries keep a repository."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    folder = cache.expanduser() / f"models--{name.replace('/', '--')}"
    newest = folder / "refs" / "main"
    return folder / "snapshots" / (newest.read_text().strip() if newest.is_file() else "none")


def _in_folder(folder: Path) -> Found:
    """Weights in a folder, and for an adapter those of its base."""
    if (folder / SETTINGS).is_file():
        base = _base_of(folder)
        if base is None:
            raise InputError(
                f"{folder} holds an adapter that names no base model; expected one; give the model by name or file and the "
                "folder as lora"
            )
        return replace(find(base), lora=folder)
    files = _wanted(str(folder), {p.name: (0, None) for p in folder.iterdir() if p.is_file()})
    official = {found.file: name for name, found in CHECKPOINTS.items()}
    config = folder / CONFIG if CONFIG in files else None
    return Found(folder / files[0], official.get(files[0]), config)


def _base_of(folder: Path) -> str | None:
    """The model that an adapter was trained on."""
    return lora_settings(folder).get("base_model_name_or_path") or None


def _wanted(place: str, files: Mapping[str, Any]) -> list[str]:
    """Which files to take of those in a folder, weights first."""
    if SETTINGS in files:
        return [SETTINGS, TENSORS]
    for found in CHECKPOINTS.values():
        if found.file in files:
            return [found.file]
    if WEIGHTS in files and CONFIG in files:
        return [WEIGHTS, CONFIG]
    if INDEX in files and CONFIG in files:
        return [INDEX, CONFIG, *sorted(name for name in files if _SHARD.fullmatch(name))]
    loose = sorted(name for name in files if re.fullmatch(r"[^/]+\.(pt|pth|safetensors)", name))
    if len(loose) == 1:
        return loose
    raise InputError(
        f"{place} holds {len(loose)} files of weights ({', '.join(loose[:3]) or 'none'}); expected sam2's .pt alone, or "
        f"{WEIGHTS} (or its index and parts) with {CONFIG}; give the file itself as checkpoint"
    )


def _listing(
    endpoint: str, name: str, headers: dict[str, str]
) -> tuple[str, dict[str, tuple[int, str | None]]]:
    """A repository's newest commit, and its files with their bytes and, where the hub knows it, SHA-256."""
    import requests

    from probes.checkpoints import TIMEOUT

    url = f"{endpoint}/api/models/{name}"
    try:
        answer = requests.get(url, params={"blobs": "true"}, headers=headers, timeout=TIMEOUT)
    except (requests.RequestException, ValueError) as error:
        raise InputError(
            f"{url} can't be reached ({type(error).__name__}); expected the Hugging Face hub; connect to the network, or set "
            "HF_ENDPOINT to a mirror"
        ) from None
    if answer.status_code in (401, 403, 404):
        raise InputError(
            f"{url} can't be read ({answer.status_code} {answer.reason}); expected a repository that is open or that the "
            "token may read; check the name, or set HF_TOKEN"
        )
    try:
        answer.raise_for_status()
        said = answer.json()
        files = {
            entry["rfilename"]: (int(entry["size"]), (entry.get("lfs") or {}).get("sha256"))
            for entry in said["siblings"]
        }
        return str(said["sha"]), files
    except (requests.RequestException, ValueError, KeyError, TypeError):
        raise InputError(
            f"{url} answered {answer.status_code} and no list of files; expected the Hugging Face hub; try again later, or "
            "correct HF_ENDPOINT"
        ) from None
