"""What is kept: gone on with only where it is whole and of the same key, whatever the file is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from probes.errors import InputError
from sparsity.work.store import check_new_file, digest, forget, held, keep, kept, kept_as

KEY = {"model": "sha256:00", "theta": 0.7}


def tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def write_tensors(path: Path, value: dict[str, Tensor]) -> None:
    save_file(value, path)


class Made:
    """Counts how often it is made."""

    def __init__(self, value: Any) -> None:
        self.value, self.times = value, 0

    def __call__(self) -> Any:
        self.times += 1
        return self.value


@pytest.fixture(params=["json", "safetensors"])
def keeping(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[Path, Made, Callable[..., Any]]:
    """A place, something to keep there, and `kept` for its format."""
    if request.param == "json":
        return tmp_path / "new" / "dog.json", Made({"loss": (1, 2)}), kept
    made = Made({"w": torch.arange(3.0)})
    read_and_write = {"read": tensors, "write": write_tensors}
    return tmp_path / "new" / "dog.safetensors", made, lambda *a: kept(*a, **read_and_write)


def test_it_is_made_once_and_reads_the_same_the_first_time_and_later(keeping: Any) -> None:
    path, made, kept = keeping
    first, later = (kept(path, KEY, made) for _ in range(2))
    assert made.times == 1 and str(first) == str(later)
    assert [file.name for file in path.parent.iterdir()] == [kept_as(path, KEY).name]


def test_another_key_is_made_anew_and_the_first_one_stays(keeping: Any) -> None:
    path, made, kept = keeping
    other = {**KEY, "theta": 0.8}
    for key, times in ((KEY, 1), (other, 2), (KEY, 2), (dict(reversed(KEY.items())), 2)):
        kept(path, key, made)
        assert made.times == times
    assert digest(KEY) != digest(other)


@pytest.mark.parametrize("left", [0, 10, -1])
def test_a_damaged_file_is_made_anew(keeping: Any, left: int) -> None:
    path, made, kept = keeping
    whole = str(kept(path, KEY, made))
    file = kept_as(path, KEY)
    file.write_bytes(file.read_bytes()[:-3][:left])
    for _ in range(2):
        assert str(kept(path, KEY, made)) == whole and made.times == 2


def test_what_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    def torn(path: Path, value: str) -> None:
        path.write_text(value[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path / "dog.json", KEY, lambda: "[1, 2]", write=torn)
    assert not list(tmp_path.iterdir()) and held(tmp_path / "dog.json", KEY) is None


def test_two_processes_at_once_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "dog.json"

    def late() -> str:  # the other one began as early, and has finished
        keep(path, KEY, "theirs")
        return "mine"

    assert kept(path, KEY, late) == "mine" == held(path, KEY)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_reader_that_cannot_read_what_was_written_is_told_of(tmp_path: Path) -> None:
    """Else everything would be made anew each time, and nobody would know."""
    with pytest.raises(KeyError, match="missing"):
        kept(tmp_path / "dog.json", KEY, dict, read=lambda p: json.loads(p.read_text())["missing"])


def test_a_name_is_forgotten_with_all_its_keys_and_no_other(tmp_path: Path) -> None:
    for name in ("dog", "dog.2", "cat"):
        for theta in (1, 2):
            keep(tmp_path / f"{name}.json", theta, name)
    forget(tmp_path / "dog.json")
    assert held(tmp_path / "dog.json", 1) is None is held(tmp_path / "dog.json", 2)
    assert [held(tmp_path / f"{name}.json", 2) for name in ("dog.2", "cat")] == ["dog.2", "cat"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    """Else ``--out /dev/null --force`` puts a file in the device's place."""
    os.mkfifo(tmp_path / "pipe")
    for force in (False, True):
        with pytest.raises(InputError, match="pipe is no regular file; expected a file to write"):
            check_new_file(tmp_path / "pipe", force)
