"""What a recording's ``header.json`` says: the model, how it was observed, and which clips there are. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

SCHEMA: Final = "efficient-sam2/recording/2"
"""Version 2 takes key mass from all query rows and has `stage3_mass`; version 1 took it from a sample, so its
recordings can't be brought forward and are refused."""

HEADER = "header.json"

STATISTICS = (
    "entropy",
    "support",
    "n90",
    "gini",
    "top10",
    "distance_px",
    "padding",
    "lift",
)
"""Statistics per site and head, in the order of the last axis; `probes.mass` defines them."""

QUERY_ROWS = 512
"""Query rows, at least, that means over rows are measured from by default: a stratified sample."""

KEEP_SHARES = (
    *(0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125),
    *(0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)
"""Shares of a memory frame's tokens for which mass recall is stored."""

SLOTS = ("prompt", "1", "2", "3", "4", "5", "6", "pointer")
"""Names of the memory slots, the object pointers last."""

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

    schema_: Literal["efficient-sam2/recording/2"] = Field(SCHEMA, alias="schema")
    model: ModelInfo
    settings: Settings
    clips: tuple[ClipInfo, ...] = ()
    versions: dict[str, str]
    date: str

    def to_json(self) -> str:
        """The header as JSON."""
        return self.model_dump_json(by_alias=True, indent=1)
