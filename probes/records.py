"""Recordings: what was observed of a model on some clips, as numpy arrays and a strict header. No torch.

A recording is a folder ``NAME.recording/`` with ``header.json`` (`Header`) and one safetensors shard a clip
(`ClipRecord`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from html import escape
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from probes.errors import InputError
from probes.files import sha256_of
from probes.tables import table_of

SCHEMA: Final = "efficient-sam2/recording/3"
"""Version 3 has `prompt_frames`, and chance of CS in closed form; version 2 held neither, and version 1 took key mass
from a sample, so their recordings can't be brought forward and are refused."""

HEADER = "header.json"

SHOWN = 20
"""Clips that a notebook shows of a recording, at most."""

STATISTICS = ("entropy", "support", "n90", "gini", "top10", "distance_px", "padding", "lift")
"""Statistics per site and head, in the order of the last axis; `probes.mass` defines them."""

QUERY_ROWS = 512
"""Query rows, at least, that means over rows are measured from by default: a stratified sample."""

ROW_SIDE = 16
"""Queries per side of the token grid whose raw rows are stored, unless others are asked for."""

KEEP_SHARES = (
    *(0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125),
    *(0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)
"""Shares of a memory frame's tokens for which mass recall is stored."""

SLOTS = ("prompt", "1", "2", "3", "4", "5", "6", "pointer")
"""Names of the memory slots, the object pointers last."""

UNREAD = (
    *("stage2_change", "stage3_change", "iou"),
    *("first_frame", "first_saliency", "joint_recall"),
)
"""Arrays that older recordings hold beside the others and nobody reads."""

Array = NDArray[Any]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelInfo(_Strict):
    """The model that was observed; `grid` tokens per side, `window` tokens per side of a stage-3 window."""

    name: str
    fingerprint: str
    image_size: int
    grid: int
    window: int
    layers: int


class Settings(_Strict):
    """How it was observed.

    Attributes
    ----------
    query_rows
        Query rows, at least, that means over rows were measured from; key mass is from all rows.
    seed
        Of that sample.
    keep_shares
        Shares G of `recall`.
    statistics
        Names K on the last axis of the statistics.
    encoder_sites, object_sites
        Sites of `encoder_statistics` and `object_statistics`, in order.
    map_sites
        Encoder sites of `encoder_mass`, in order.
    row_sites, row_queries, row_grid
        Sites whose raw rows were stored, query tokens of these rows on the token grid, and cells per side
        of a stored row; empty and 0 where none were.
    profile
        Of the accelerated predictor that ran, as its file has it; None for the stock one.
    row_heads
        Whether they were stored head by head, or as the mean over heads.
    """

    dtype: Literal["float32", "bfloat16", "float16"]
    query_rows: int
    seed: int = 0
    keep_shares: tuple[float, ...] = KEEP_SHARES
    statistics: tuple[str, ...] = STATISTICS
    encoder_sites: tuple[str, ...] = ()
    object_sites: tuple[str, ...] = ()
    map_sites: tuple[str, ...] = ()
    row_sites: tuple[str, ...] = ()
    row_queries: tuple[int, ...] = ()
    row_grid: int = 0
    profile: dict[str, Any] | None = None
    row_heads: bool = False


class ClipInfo(_Strict):
    """One clip: its video (hash of the pixels of all tracked frames), prompt (hash), size in pixels and shard."""

    name: str
    video: Sha256
    prompt: str
    height: int
    width: int
    frames: int
    objects: tuple[int, ...]
    fps: float | None = None
    shard: str
    sha256: Sha256


class Header(_Strict):
    """What ``header.json`` says."""

    schema_: Literal["efficient-sam2/recording/3"] = Field(SCHEMA, alias="schema")
    model: ModelInfo
    settings: Settings
    clips: tuple[ClipInfo, ...] = ()
    versions: dict[str, str]
    date: str

    def to_json(self) -> str:
        """The header as JSON."""
        return self.model_dump_json(by_alias=True, indent=1)


@dataclass(frozen=True, repr=False)
class ClipRecord:
    """What was observed on one clip. Rows are in the order of tracking; NaN and -1 mean "does not exist".

    What an accelerated predictor left out does not exist: statistics are over queries and keys that took part, and maps
    are NaN elsewhere.

    Attributes
    ----------
    frame
        int32 ``[T]``: indices of the tracked frames, in the order of tracking.
    thumbnail
        float32 ``[T, 3, 16, 16]`` in units of full scale.
    encoder_mass
        float16 ``[T, map_sites, g, g]``: key mass times the number of keys that took part (1 is uniform), mean over heads.
    stage3_mass
        float16 ``[T, g, g]``: the same, mean over the windowed blocks of encoder stage 3.
    encoder_statistics
        float32 ``[T, encoder_sites, H, K]``.
    row_frame, row_object
        int32 ``[n]``: which object on which frame a row is.
    conditioning, reverse
        bool ``[n]``: prompted, tracked backwards.
    score
        float32 ``[n]``: object-score logit.
    candidates, best
        uint8 ``[n, M, s * s / 8]`` and ``[n, s * s / 8]``: masks (logit > 0) as packed bits; see `masks`.
    decoder_saliency
        float32 ``[n, g, g]``: token-to-image attention, mean over layers, heads and output tokens; sums
        to one.
    object_statistics
        float32 ``[n, object_sites, H, K]``; `lift` is against the row's own mask.
    memory_frame
        int32 ``[n, P]``: frame in each memory slot, of the conditioning frames the nearest one.
    prompt_frames
        int32 ``[n, C]``: all conditioning frames that memory held, whose attention slot 0 sums; -1 behind them.
    slot_share
        float32 ``[n, L, P + 1]``: joint attention mass of each slot and of the pointers; sums to one.
    recall
        float16 ``[n, L, P, G]``: conditional key mass (softmax over the frame's own keys) that the top tokens of the
        *first* recollection catch now.
    oracle_recall
        The same with the top tokens chosen anew now.
    similarity
        float16 ``[n, L, P, 4]``: cosine (the paper's CS), the same by chance, Pearson correlation,
        Jaccard of the top-10 % sets; each between first recollection and now.
    rows, row_scale
        By site, raw attention rows as uint8 and their maxima as float32; see `attention_rows`. Behind the first axis
        comes one of heads where they were stored head by head.
    keys_read, queries_read
        uint8 ``[n, L, P, g * g / 8]`` and ``[n, g * g / 8]``: which tokens of each memory slot were read, in slot 0 of
        the nearest conditioning frame, and which tokens of the frame read them, as packed bits (`kept` has the shares).
        None of a stock run, which reads all.
    row_read
        By site, which cells of the raw rows hold a key that took part, as packed bits; empty of a stock run.
    """

    frame: Array
    thumbnail: Array
    encoder_mass: Array
    stage3_mass: Array
    encoder_statistics: Array
    row_frame: Array
    row_object: Array
    conditioning: Array
    reverse: Array
    score: Array
    candidates: Array
    best: Array
    decoder_saliency: Array
    object_statistics: Array
    memory_frame: Array
    prompt_frames: Array
    slot_share: Array
    recall: Array
    oracle_recall: Array
    similarity: Array
    rows: dict[str, Array]
    row_scale: dict[str, Array]
    keys_read: Array | None = None
    queries_read: Array | None = None
    row_read: dict[str, Array] = field(default_factory=dict)

    def __repr__(self) -> str:
        ids = sorted(set(self.row_object.tolist()))
        said = f"{len(self.frame)} frames, objects {', '.join(map(str, ids)) or 'none'}"
        return f"ClipRecord({said}, rows of {len(self.rows)} sites)"

    def masks(self, which: Literal["best", "candidates"] = "best") -> Array:
        """Unpack masks: bool ``[n, s, s]``, or ``[n, M, s, s]`` for the candidates."""
        packed: Array = getattr(self, which)
        side = 4 * self.decoder_saliency.shape[-1]
        bits = np.unpackbits(packed, axis=-1, count=side * side)
        return bits.reshape(*packed.shape[:-1], side, side).astype(bool)

    def row(self, frame: int, object_id: int) -> int:
        """Index of the row of an object on a frame, the last one where it was tracked twice.

        Raises
        ------
        InputError
            It was not tracked there.
        """
        found = np.flatnonzero((self.row_frame == frame) & (self.row_object == object_id))
        if not len(found):
            own = self.row_frame[self.row_object == object_id]
            held = f"objects {sorted(set(self.row_object.tolist()))}"
            held = f"it on frames {own.min()} to {own.max()}" if len(own) else held
            raise InputError(
                f"object {object_id} on frame {frame} was asked for; the clip has {held}; choose among these"
            )
        return int(found[-1])

    def ages(self) -> Array:
        """Age of what is in each memory slot, in frames, int32 ``[n, P]``; -1 where there is nothing."""
        apart = np.abs(self.row_frame[:, None] - self.memory_frame)
        return np.where(self.memory_frame < 0, -1, apart).astype(np.int32)

    def kept(self) -> Array:
        """Share of the tokens in each memory slot that was read, float32 ``[n, L, P]``; NaN where the slot is empty."""
        shares = np.ones(self.similarity.shape[:-1], np.float32)
        if self.keys_read is not None:
            bits = np.unpackbits(self.keys_read, axis=-1, count=self.decoder_saliency[0].size)
            shares = bits.mean(axis=-1, dtype=np.float32)
        return np.where(self.memory_frame[:, None] < 0, np.float32(np.nan), shares)

    def row_heads(self, site: str) -> int:
        """How many heads of a site have rows of their own; 0 where only the mean over heads was stored."""
        if site not in self.row_scale:
            raise InputError(
                f"rows of {site} were asked for; the clip holds those of {', '.join(self.rows) or 'no site'}; choose one of "
                "these, or record more"
            )
        scale = self.row_scale[site]
        return int(scale.shape[1]) if scale.ndim == 3 else 0

    def attention_rows(self, site: str, index: int, head: int | None = None) -> Array:
        """Raw rows of a site on a frame (encoder: index into `frame`) or row (else), float32.

        Encoder ``[Q, r, r]``, memory ``[Q, P, r, r]``, decoder ``[output tokens, r, r]``: of a head, or the mean over
        heads, summed inside each of r x r cells. NaN where the query or all keys of a cell took no part.

        Raises
        ------
        InputError
            There are no rows of that site, no such head, or heads were not stored one by one.
        """
        heads = self.row_heads(site)
        levels, scale = self.rows[site][index], self.row_scale[site][index]
        if head is not None and not 0 <= head < heads:
            there = f"heads 0 to {heads - 1}" if heads else "the mean over heads"
            raise InputError(
                f"rows of head {head} of {site} were asked for; the clip was recorded with {there}; choose among "
                "these, or record it with row_heads"
            )
        if head is not None:
            levels, scale = levels[head], scale[head]
        shares = levels.astype(np.float32) / 255
        found: Array = shares**2 * scale.reshape(*scale.shape, *(1,) * (levels.ndim - scale.ndim))
        found = found.mean(0) if heads and head is None else found
        if site in self.row_read:
            bits = np.unpackbits(self.row_read[site][index], count=found[0].size)
            found = np.where(bits.reshape(found.shape[1:]), found, np.float32(np.nan))
        return found


def array_forms(header: Header, arrays: dict[str, Array]) -> dict[str, tuple[np.dtype, tuple]]:
    """Dtype and shape of every array of a shard, by the header and the numbers of frames, rows and heads."""
    model, settings = header.model, header.settings
    t, n = len(arrays.get("frame", ())), len(arrays.get("row_frame", ()))
    heads = [arrays[k].shape[2] for k in ("encoder_statistics", "object_statistics") if k in arrays]
    h_encoder, h_object = (*heads, 0, 0)[:2]
    candidates, prompts = (
        arrays[k].shape[1] if k in arrays else 0 for k in ("candidates", "prompt_frames")
    )
    g, layers, slots = model.grid, model.layers, len(SLOTS) - 1
    bits, k, shares = -(-16 * g * g // 8), len(settings.statistics), len(settings.keep_shares)
    recall = ("float16", (n, layers, slots, shares))
    forms: dict[str, tuple[str, tuple]] = {
        "frame": ("int32", (t,)),
        "thumbnail": ("float32", (t, 3, 16, 16)),
        "encoder_mass": ("float16", (t, len(settings.map_sites), g, g)),
        "stage3_mass": ("float16", (t, g, g)),
        "encoder_statistics": ("float32", (t, len(settings.encoder_sites), h_encoder, k)),
        "row_frame": ("int32", (n,)),
        "row_object": ("int32", (n,)),
        "conditioning": ("bool", (n,)),
        "reverse": ("bool", (n,)),
        "score": ("float32", (n,)),
        "candidates": ("uint8", (n, candidates, bits)),
        "best": ("uint8", (n, bits)),
        "decoder_saliency": ("float32", (n, g, g)),
        "object_statistics": ("float32", (n, len(settings.object_sites), h_object, k)),
        "memory_frame": ("int32", (n, slots)),
        "prompt_frames": ("int32", (n, prompts)),
        "slot_share": ("float32", (n, layers, slots + 1)),
        "recall": recall,
        "oracle_recall": recall,
        "similarity": ("float16", (n, layers, slots, 4)),
    }
    named = {f.name for f in fields(ClipRecord)} - {"rows", "row_scale", "row_read"}
    assert set(forms) == named - {"keys_read", "queries_read"}
    if settings.profile is not None:
        forms["keys_read"] = ("uint8", (n, layers, slots, -(-g * g // 8)))
        forms["queries_read"] = ("uint8", (n, -(-g * g // 8)))
    return {name: (np.dtype(dtype), shape) for name, (dtype, shape) in forms.items()}


@dataclass(frozen=True, repr=False)
class Recording:
    """A recording on disk; ``recording["name"]`` reads a clip, and iterating yields each with what the header says."""

    path: Path
    header: Header

    @property
    def names(self) -> list[str]:
        """Names of the clips."""
        return [clip.name for clip in self.header.clips]

    @property
    def clips(self) -> dict[str, ClipInfo]:
        """What the header says of each clip, by name."""
        return {info.name: info for info in self.header.clips}

    def info(self, name: str) -> ClipInfo:
        """What the header says of a clip.

        Raises
        ------
        InputError
            There is no such clip.
        """
        if name in self.clips:
            return self.clips[name]
        raise InputError(
            f"clip {name!r} was asked for; {self.path} holds {', '.join(self.names) or 'no clips'}; choose one"
        )

    def clip(self, name: str) -> ClipRecord:
        """Read one clip.

        Raises
        ------
        InputError
            There is no such clip, or its shard is damaged or does not fit the header.
        """
        info = self.info(name)
        return read_shard(self.path / info.shard, self.header, info)

    def __getitem__(self, name: str) -> ClipRecord:
        """`clip` by its name."""
        return self.clip(name)

    def __iter__(self) -> Iterator[tuple[ClipInfo, ClipRecord]]:
        for info in self.header.clips:
            yield info, self.clip(info.name)

    def to_frame(self) -> Any:
        """All numbers as a long `pandas.DataFrame`, one a row: `probes.tables.COLUMNS`. Maps, masks and rows stay out.

        Raises
        ------
        InputError
            pandas is not installed.
        """
        clips = {info.name: clip for info, clip in self}
        return table_of(clips, self.header.settings, SLOTS)

    def __repr__(self) -> str:
        model = self.header.model
        frames = sum(info.frames for info in self.header.clips)
        return (
            f"Recording({str(self.path)!r}: {len(self.names)} clips, {frames} frames, {model.name} at "
            f"{model.image_size} pixels)"
        )

    def _repr_html_(self) -> str:
        """The clips as a table, for notebooks."""
        heads = ("clip", "frames", "objects", "width", "height")
        cells = [
            (c.name, c.frames, ", ".join(map(str, c.objects)), c.width, c.height)
            for c in self.header.clips[:SHOWN]
        ]
        lines = [f"<tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"]
        for row in cells:
            lines.append(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>")
        more = len(self.names) - len(cells)
        last = f"<p>and {more} more</p>" if more else ""
        return f"<p>{escape(repr(self))}</p><table>{''.join(lines)}</table>{last}"


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


def read_shard(path: Path, header: Header, info: ClipInfo) -> ClipRecord:
    """Read a clip's arrays and hold them against the header."""
    damaged = f"recording shard {path} is damaged"
    try:
        if sha256_of(path) != info.sha256:
            raise InputError(
                f"{damaged}: its hash differs from the header's; record the clip again"
            )
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{damaged} ({type(error).__name__}); record the clip again") from None
    expected = array_forms(header, arrays)
    for name, (dtype, shape) in expected.items():
        array = arrays.get(name)
        if array is None or array.dtype != dtype or array.shape != shape:
            found = "absent" if array is None else f"{array.dtype} {array.shape}"
            raise InputError(
                f"{damaged}: {name} is {found}; expected {dtype} {shape}; record the clip again"
            )
    of_sites = [name for name in arrays if "/" in name]
    unknown = [name for name in arrays if name not in (*expected, *of_sites, *UNREAD)]
    if unknown:
        raise InputError(f"{damaged}: it holds unknown arrays {unknown}; record the clip again")
    parts: dict[str, Any] = {"rows": {}, "row_scale": {}, "row_read": {}} | {
        name: arrays[name] for name in expected
    }
    for name in of_sites:
        group, site = name.split("/", 1)
        parts[group][site] = arrays[name]
    return ClipRecord(**parts)
