"""The result of an evaluation or a benchmark: one JSON document, the same for both.

``"schema": "efficient-sam2/result/1"``. This module needs pydantic alone; figures and reports read results
without torch. Shares are in [0, 1]; J, F, their mean and agreement are in per cent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError

from probes.errors import InputError

SCHEMA: Final = "efficient-sam2/result/1"

Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Percent = Annotated[FiniteFloat, Field(ge=0, le=100)]
Interval = tuple[FiniteFloat, FiniteFloat]


class Strict(BaseModel):
    """A part of a document: unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Document = TypeVar("Document", bound=Strict)


class Environment(Strict):
    """What was measured with.

    Attributes
    ----------
    compiled
        Whether some rows ran compiled; their names say so.
    allocator
        Environment variables that change how memory is handed out.
    commit
        Of the sources; a + marks changed files.
    """

    cpu: str
    cores: NonNegativeInt | None = None
    capability: str | None = None
    gpu: str | None = None
    threads: NonNegativeInt
    python: str | None = None
    torch: str
    sam2: str | None = None
    device: str = "cpu"
    dtype: str
    compiled: bool = False
    allocator: dict[str, str] = {}
    commit: str | None = None


class Model(Strict):
    """Which model: its name or configuration file, and the fingerprint of its weights."""

    name: str
    fingerprint: str
    image_size: NonNegativeInt
    trained: bool
    """False for random weights: quality then says nothing about SAM 2."""


class Data(Strict):
    """Which clips, in order; ``root`` is the folder's name, not where it lay."""

    root: str
    clips: list[str]
    frames: NonNegativeInt
    """Of all clips."""
    settings: dict[str, Any] = {}


class Times(Strict):
    """Milliseconds a frame."""

    median: FiniteFloat
    p90: FiniteFloat
    p99: FiniteFloat


class Ratio(Strict):
    """Time of the run ``stock`` over time of this run, above 1 is faster; with its interval."""

    median: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class ObjectQuality(Strict):
    """One object of a clip, mean over the frames that count.

    Attributes
    ----------
    figures
        Further ones in per cent that its data set publishes; see `sparsity.evaluation.rules`.
    """

    j: Percent
    f: Percent
    j_and_f: Percent
    agreement: Percent | None = None
    figures: dict[str, Percent] = {}


class ClipQuality(ObjectQuality):
    """One clip: mean over its objects (keys are their ids as text)."""

    frames: NonNegativeInt
    """Frames that count: all but the first and the last."""
    objects: dict[str, ObjectQuality]
    windows_kept: Share = 1.0
    keys_kept: Share = 1.0
    prunable_keys_kept: Share = 1.0


class Quality(Strict):
    """How well the masks fit: mean over a clip's objects, then over clips.

    Attributes
    ----------
    over_objects
        Mean over all objects of all clips, as DAVIS 2017 counts; a clip with many objects weighs more.
    agreement
        Mean J with the masks of the dense run on the same frames; None for the dense run itself.
    loss
        J&F of the dense run less that of this one, in points; None for the dense run itself.
    intervals
        By the name of a figure above: interval over clips, both ends (`probes.estimates.interval`); none of too few clips.
    confidence
        Of the intervals.
    figures
        Further ones in per cent that the data set publishes; see `sparsity.evaluation.rules`.
    clips
        By name.
    """

    j_and_f: Percent
    j: Percent
    f: Percent
    agreement: Percent | None = None
    figures: dict[str, Percent] = {}
    loss: FiniteFloat | None = None
    over_objects: ObjectQuality
    intervals: dict[Literal["j_and_f", "j", "f", "agreement", "loss"], Interval] = {}
    confidence: Share = 0.95
    clips: dict[str, ClipQuality]


class Run(Strict):
    """One way to run the model over the data.

    Attributes
    ----------
    name
        ``"stock"`` is unmodified sam2, ``"dense"`` the accelerated predictor with everything computed.
    profile
        All settings of the profile; None for stock.
    frames, objects
        How many were measured, over all clips.
    stages
        Milliseconds by stage of the model.
    flops
        Of one frame.
    windows_kept, keys_kept, prunable_keys_kept
        Mean share computed or read; dense frames count as 1.
    quality
        None where it wasn't measured; `why` says why.
    """

    name: str
    profile: dict[str, Any] | None = None
    frames: NonNegativeInt
    objects: NonNegativeInt
    ms_per_frame: Times | None = None
    ratio: Ratio | None = None
    stages: dict[str, FiniteFloat] | None = None
    flops: FiniteFloat | None = None
    peak_memory_mb: FiniteFloat | None = None
    windows_kept: Share | None = None
    keys_kept: Share | None = None
    prunable_keys_kept: Share | None = None
    quality: Quality | None = None
    why: str | None = None


class Result(Strict):
    """A whole document; see the classes of its parts."""

    schema_: Literal["efficient-sam2/result/1"] = Field(SCHEMA, alias="schema")
    environment: Environment
    model: Model
    data: Data
    runs: list[Run]

    def run(self, name: str) -> Run:
        """Return the run of that name.

        Raises
        ------
        InputError
            There is none.
        """
        for run in self.runs:
            if run.name == name:
                return run
        names = ", ".join(run.name for run in self.runs)
        raise InputError(f"run {name!r} asked for; the result has {names}; choose one of them")

    def to_json(self) -> str:
        """Return the document."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1)


class EndToEndRow(Strict):
    """One profile at one size of video: medians in milliseconds a frame, by the wall and of CPU.

    Attributes
    ----------
    model_ms, model_cpu_ms
        The model alone, on frames in memory.
    masks_ms, masks_cpu_ms
        File in, masks out.
    overlay_ms, overlay_cpu_ms
        With the overlay.
    stages
        Where the time of the latter went, by the wall; some goes on at the same time.
    """

    size: str
    profile: str
    model_ms: float
    model_cpu_ms: float
    masks_ms: float
    masks_cpu_ms: float
    overlay_ms: float
    overlay_cpu_ms: float
    stages: dict[str, float]


class EndToEnd(Strict):
    """What ``efficient-sam2 bench --end-to-end`` measures; see `sparsity.evaluation.end_to_end`."""

    schema_: Literal["efficient-sam2/end-to-end/1"] = Field(alias="schema")
    environment: Environment
    model: Model
    frames: int
    rounds: int
    rows: list[EndToEndRow]

    def to_json(self) -> str:
        """The result as one JSON document."""
        return self.model_dump_json(by_alias=True, indent=1)


class BoxQuality(Strict):
    """How well boxes fit.

    Attributes
    ----------
    success
        Area under the success plot, mean over clips; see `sparsity.evaluation.rules`.
    interval
        Interval over clips, both ends (`probes.estimates.interval`); None of too few clips.
    clips
        By name.
    """

    success: Percent
    interval: Interval | None = None
    confidence: Share = 0.95
    clips: dict[str, Percent]


class Scored(Strict):
    """Masks or boxes of one tool: where true masks are known `quality`, where true boxes are `boxes`."""

    name: str
    frames: NonNegativeInt
    objects: NonNegativeInt
    quality: Quality | None = None
    boxes: BoxQuality | None = None


class Scores(Strict):
    """What ``efficient-sam2 score`` found: no model was run, so none is named.

    Attributes
    ----------
    rules
        Whose further figures there are, such as ``"MOSEv2"``; None for J and F alone.
    """

    schema_: Literal["efficient-sam2/scores/1"] = Field("efficient-sam2/scores/1", alias="schema")
    made_by: str
    rules: str | None = None
    data: Data
    runs: list[Scored]

    def to_json(self) -> str:
        """Return the document."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1)


def parse_result(text: str, source: str = "result") -> Result:
    """Return the result in a JSON text.

    Raises
    ------
    InputError
        It is no JSON, of another schema, or a field is unknown, missing or out of range.
    """
    return parse_document(Result, text, source, f"{SCHEMA}; make it again with evaluate or bench")


def load_result(path: str | Path) -> Result:
    """Read a result file.

    Raises
    ------
    InputError
        See `parse_result`; or the file can't be read.
    """
    return parse_result(read_document(path, "a result file"), str(path))


def parse_document(kind: type[Document], text: str, source: str, expected: str) -> Document:
    """Return the document of a kind that a JSON text holds.

    Raises
    ------
    InputError
        It is none; `source`, the first place that is wrong and what was `expected` are named.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise InputError(f"{source} has {place}: {first['msg']}; expected {expected}") from None


def read_document(path: str | Path, expected: str) -> str:
    """Return the text of a file.

    Raises
    ------
    InputError
        It can't be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError(
            f"{path} can't be read ({reason}); expected {expected}; check the path"
        ) from None
