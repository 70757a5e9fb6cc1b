"""Recordings: what was observed of a model on some clips, as numpy arrays and a strict header. No torch.

A recording is a folder ``NAME.recording/`` with ``header.json`` (`probes.header`) and one safetensors shard a
clip (`probes.clips`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from probes.clips import ClipRecord as ClipRecord
from probes.clips import array_forms as array_forms
from probes.clips import read_shard as read_shard
from probes.errors import InputError
from probes.header import HEADER as HEADER
from probes.header import KEEP_SHARES as KEEP_SHARES
from probes.header import QUERY_ROWS as QUERY_ROWS
from probes.header import SCHEMA as SCHEMA
from probes.header import SLOTS as SLOTS
from probes.header import STATISTICS as STATISTICS
from probes.header import Array as Array
from probes.header import ClipInfo as ClipInfo
from probes.header import Header as Header
from probes.header import ModelInfo as ModelInfo
from probes.header import Settings as Settings


@dataclass(frozen=True)
class Recording:
    """A recording on disk; clips are read when they are asked for."""

    path: Path
    header: Header

    @property
    def names(self) -> list[str]:
        """Names of the clips."""
        return [clip.name for clip in self.header.clips]

    def clip(self, name: str) -> ClipRecord:
        """Read one clip.

        Raises
        ------
        InputError
            There is no such clip, or its shard is damaged or does not fit the header.
        """
        for info in self.header.clips:
            if info.name == name:
                return read_shard(self.path / info.shard, self.header, info)
        raise InputError(
            f"clip {name!r} was asked for; {self.path} holds {', '.join(self.names) or 'no clips'}; choose one"
        )

    def __iter__(self) -> Iterator[tuple[ClipInfo, ClipRecord]]:
        for info in self.header.clips:
            yield info, self.clip(info.name)


def load_recording(path: str | Path) -> Recording:
    """Open a recording.

    Raises
    ------
    InputError
        It is none, or its header breaks the schema.
    """
    folder = Path(path)
    try:
        text = (folder / HEADER).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder} is no recording; expected a folder with {HEADER}; make one with 'efficient-sam2 probe'"
        ) from None
    try:
        return Recording(folder, Header.model_validate(json.loads(text)))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        raise InputError(
            f"recording {folder}: {place} is {first['input']!r:.80}; {first['msg'].lower()}; record it again"
        ) from None
    except (ValueError, UnicodeDecodeError):
        raise InputError(f"recording {folder}: {HEADER} is no JSON; record it again") from None
