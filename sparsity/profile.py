"""The profile: which techniques the accelerated predictor applies, by which thresholds, and what they promise.

A profile is a small JSON document (``"schema": "efficient-sam2/profile/2"``), made of the techniques' settings. It is
strict: unknown keys, NaN and values out of range are refused, so that a typo can never silently change a result.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from probes.errors import InputError
from probes.files import whole, write_text
from probes.video import Resize
from sparsity.techniques import Settings, Share
from sparsity.techniques.adapter import Adapter
from sparsity.techniques.memory_policy import MemoryPolicy
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.reuse import CHANGE, REUSED_PARTS, ReusedPart, picture_of
from sparsity.techniques.routing import Guard, Refresh, Routing

SCHEMA: Final = "efficient-sam2/profile/2"

OLDER: Final = "efficient-sam2/profile/1"

EXACT: Final = "exact: binomial"
"""Method of a promise about the share of videos alone: their mean is no promise, for there are few of them."""


class Stratum(Settings):
    """Videos behind a promise that are alike in one respect, and what they lost.

    Attributes
    ----------
    of
        ``size``, share of the picture that objects cover; ``motion``, 1 - IoU of an object's masks on frames that follow
        each other; ``score``, object-score logit; each the clip's mean in the dense run.
    low, high
        Between which they lie.
    """

    of: Literal["size", "motion", "score"]
    low: FiniteFloat
    high: FiniteFloat
    videos: PositiveInt
    mean_loss: FiniteFloat
    worst: FiniteFloat


class Seen(Settings):
    """What the videos behind a promise were like: it says little of others.

    Attributes
    ----------
    frames, objects
        Fewest and most.
    cues
        Smallest and largest of each figure of `sparsity.acceleration.report.Report.cues`.
    drift
        Points of agreement with the dense run that the clip lost that lost most; None in older profiles.
    """

    frames: tuple[PositiveInt, PositiveInt]
    objects: tuple[PositiveInt, PositiveInt]
    cues: dict[str, tuple[FiniteFloat, FiniteFloat]] = {}
    drift: Annotated[FiniteFloat, Field(ge=0)] | None = None
    strata: tuple[Stratum, ...] = ()

    def beyond(
        self, frames: int, objects: int, cues: Mapping[str, float] | None = None
    ) -> list[str]:
        """Say in what a video is beyond them, a line each; fewer frames or objects are not, for less is lost there."""
        said = []
        for count, (_, most), of in (
            (frames, self.frames, "frames"),
            (objects, self.objects, "objects"),
        ):
            if count > most:
                said.append(
                    f"{count} {of}; the promise is of videos of at most {most}, and losses grow with {of}"
                )
        for name, value in (cues or {}).items():
            low, high = self.cues.get(name, (-math.inf, math.inf))
            if not low <= value <= high:
                said.append(
                    f"{name} {value:.2f}; on the videos of the promise it was {low:.2f} to {high:.2f}"
                )
        return said


def percent(confidence: float) -> str:
    """A confidence in percent, such as 95% or 99.83%: two digits of what is missing, so that it is never said to be all."""
    return f"{100 - float(f'{100 * (1 - confidence):.2g}'):.10g}%"


class Promise(Settings):
    """What the calibration found: loss in points, with the bound it holds to.

    Attributes
    ----------
    mean_loss
        Of the chosen setting on the videos behind the promise; lower than on others, as it was chosen by it.
    upper_bound
        What the setting was tested against: the accepted loss, or without one its own bound.
    risk
        What is lost: ``loss``, J&F against true masks, or ``drift``, agreement with the dense run (mean J).
    share, over
        At most this share of videos loses more than `over` points: exact, whatever the losses are. None where the bound on
        the mean is exact as well, and in older profiles.
    coverage
        How often a bound on the mean that is called approximate covers on the worst of the simulated populations of
        so few videos; None of others.
    question
        How many were asked of these videos, this one included; each is asked at its part of the level.
    clips
        Behind the promise; clips of one source count as one.
    expected_windows, expected_keys
        Shares computed and read on the videos behind the promise; dense frames count as 1.
    expected_speedup
        Operations of a frame with every window and key over those of this profile's; not a time.
    seen
        What the videos behind it were like; None in older profiles.
    """

    mean_loss: FiniteFloat
    upper_bound: FiniteFloat
    confidence: Share
    method: str
    clips: NonNegativeInt
    unit: str = "J&F points, mean over videos"
    risk: Literal["loss", "drift"] = "loss"
    share: Share | None = None
    over: FiniteFloat | None = None
    coverage: Share | None = None
    question: PositiveInt = 1
    expected_windows: Share | None = None
    expected_keys: Share | None = None
    expected_speedup: Annotated[FiniteFloat, Field(gt=0)] | None = None
    seen: Seen | None = None

    @model_validator(mode="after")
    def _bound_above_mean(self) -> Promise:
        if self.upper_bound < self.mean_loss:
            raise ValueError("promise.upper_bound must not lie below promise.mean_loss")
        if (self.share is None) != (self.over is None):
            raise ValueError("promise.share and promise.over belong together; give both or neither")
        return self

    def text(self) -> str:
        """The promise in one line: what is exact first, where videos are few; what is approximate by that name."""
        mean = f"mean loss {self.mean_loss:+.2f}"
        if self.method != EXACT:
            mean += f", at most {self.upper_bound:.2f} {self.unit}, at {percent(self.confidence)}"
            mean += f" ({self.method}, {self.clips} clips"
            mean += (
                ")"
                if self.coverage is None
                else f"; in simulation it covered {self.coverage:.0%} at worst)"
            )
        said = [mean]
        if self.share is not None:
            points = self.unit.partition(",")[0]
            exact = (
                f"at {percent(self.confidence)}, at most {self.share:.0%} of videos like these lose more than {self.over:.2f} "
                f"{points} (exact, {self.clips} clips)"
            )
            said = [exact, mean + " on these"] if self.method == EXACT else [mean, exact]
        if self.question > 1:
            said.append(f"question {self.question} of these clips")
        return "; ".join(said)


class Profile(Settings):
    """Thresholds and techniques of an accelerated run; see the module's docstring.

    Attributes
    ----------
    model
        Fingerprint of the model the profile was calibrated for, or None for any model.
    image_size
        Side of that model's square input in pixels, or None for any size: margins are in its pixels, and what was
        lost at one size says little of another.
    exact
        The same mathematics in another order: rewritten encoder, memory attention and memory encoder, and all
        objects of a frame in one pass.
    graphs
        On a GPU parts of a frame are recorded as CUDA graphs and launched as one each.
    routing, retrieval
        SWR and SMR; None switches one off.
    memory_policy
        Which tracked frames an object's memory holds, and which of the candidate masks; ``recent`` without
        ``stable_below`` is stock. Not part of the published method.
    reuse
        Parts of the encoder that routed frames take over where they are not computed: all, or those named, which
        is how each is measured alone. Not part of the published method.
    quantize
        ``"int8"`` runs the linear layers of encoder and memory attention in int8, on CPUs. Not part of the published
        method.
    resize
        ``"torch"`` brings pictures to the model's size several times as fast as stock's ``"pillow"``, and nearly equal
        (`probes.video.Resize`). Not part of the published method.
    promise, made_by
        What calibration found and how; None for profiles nobody calibrated.
    """

    schema_: Literal["efficient-sam2/profile/2"] = Field(SCHEMA, alias="schema")
    name: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")] | None = None
    image_size: PositiveInt | None = None
    exact: bool = False
    graphs: bool = False
    routing: Routing | None = None
    retrieval: Retrieval | None = None
    adapter: Adapter = Adapter()
    reuse: bool | tuple[ReusedPart, ...] = False
    quantize: Literal["int8"] | None = None
    resize: Resize = "pillow"
    memory_policy: MemoryPolicy = MemoryPolicy()
    guard: Guard = Guard()
    promise: Promise | None = None
    made_by: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Profile:
        routed_readers = self.retrieval is not None and self.retrieval.readers == "routed"
        if routed_readers and self.routing is None:
            raise ValueError(
                "retrieval.readers 'routed' needs tokens to be routed by; set routing or choose 'all'"
            )
        if self.reuse and (self.routing is None or not self.exact):
            raise ValueError(
                "reuse needs routing to leave something out, and exact; set both or switch it off"
            )
        whole = self.routing is not None and self.routing.unit == "frame"
        if whole and (
            self.carried or self.retrieval is not None and self.retrieval.readers == "routed"
        ):
            raise ValueError(
                "routing.unit 'frame' leaves no window out that reuse, a cached adapter or retrieval.readers 'routed' "
                "could serve; switch these off or choose 'window'"
            )
        if self.quantize is not None and not self.exact:
            raise ValueError(
                "quantize needs exact, whose linear layers it replaces; set exact or set quantize to null"
            )
        chooses = self.memory_policy.kind != "recent"
        if chooses and not self.exact and self.retrieval is None:
            raise ValueError(
                f"memory_policy {self.memory_policy.kind!r} needs exact or retrieval, whose memory attention reads what "
                "it chooses; set one of them or choose 'recent'"
            )
        if self.resize != "pillow" and not self.exact:
            raise ValueError(
                "resize 'torch' needs exact, without which pictures are equal to stock's; set exact or choose 'pillow'"
            )
        return self

    @property
    def reused(self) -> frozenset[str]:
        """Parts of the encoder that are taken over where they are not computed."""
        return frozenset(REUSED_PARTS if self.reuse is True else self.reuse or ())

    @property
    def carried(self) -> frozenset[str]:
        """What has to be kept from frame to frame, so that routed frames can do without some windows."""
        if self.routing is None:
            return frozenset()
        cached = {CHANGE} if self.adapter.kind == "cached" else set()
        pictures = {picture_of(self.routing.unit)} if self.routing.refresh is not None else set()
        return self.reused | cached | pictures

    def with_weights(self, file: str) -> Profile:
        """The same profile with its adapter's weights in another place."""
        return self.model_copy(update={"adapter": self.adapter.model_copy(update={"file": file})})

    def to_json(self) -> str:
        """The profile as the JSON document that `load_profile` reads."""
        return self.model_dump_json(by_alias=True, indent=2, exclude_defaults=False)


BUILTIN = {
    "dense": Profile(name="dense"),
    "exact": Profile(name="exact", exact=True, graphs=True),
    "paper": Profile(
        name="paper", exact=True, graphs=True, routing=Routing(), retrieval=Retrieval()
    ),
    "recommended": Profile(
        name="recommended",
        exact=True,
        graphs=True,
        routing=Routing(refresh=Refresh(one_in=6)),
        retrieval=Retrieval(readers="routed"),
        adapter=Adapter(kind="cached"),
        reuse=True,
        resize="torch",
        guard=Guard(scene_cut=0.12, score_below=0.0),
    ),
}
"""Profiles by name: bit-equal to stock; the same maths in another order; the paper's settings; and with these, what
windows gave when they were last computed in place of what is left out. A few of the windows left out are computed on
every frame, and read memory then; frames are whole at scene cuts and where an object is lost."""

CALIBRATED = {"demo": Path(__file__).parent / "demo" / "profile.json"}
"""Profiles by name that ``efficient-sam2 calibrate`` made for a model that ships; refused by any other model."""


def _with(part: str, **settings: Any) -> Callable[[Profile], Profile]:
    """Switch: change some settings of a technique that a profile has."""

    def switch(profile: Profile) -> Profile:
        changed = getattr(profile, part).model_copy(update=settings)
        return profile.model_copy(update={part: changed})

    return switch


FURTHER: dict[str, Callable[[Profile], Profile]] = {
    "routed readers": _with("retrieval", readers="routed"),
    "stage 4 reused": lambda profile: profile.model_copy(update={"reuse": ("stage4",)}),
    "last block reused": lambda profile: profile.model_copy(update={"reuse": ("last_block",)}),
    "early stages reused": lambda profile: profile.model_copy(update={"reuse": ("early",)}),
    "rolling refresh": _with("routing", refresh=Refresh(one_in=6)),
    "every second frame": _with("routing", every=2),
    "trimmed windows": _with("routing", unit="cell", margin_px=24.0),
    "cached shortcut": _with("adapter", kind="cached"),
    "int8": lambda profile: profile.model_copy(update={"quantize": "int8"}),
    "faster resize": lambda profile: profile.model_copy(update={"resize": "torch"}),
}
"""Techniques beyond the paper by the name of their row, each a switch from a profile to the same with it. The benchmark,
the quality of `benchmarks/techniques.py`, the page of the docs and the tests run over this table."""


def further_profiles() -> list[Profile]:
    """Make a profile of each technique on top of ``paper``; behind them stands ``recommended``."""
    paper = BUILTIN["paper"]
    alone = [
        switch(paper).model_copy(update={"name": f"+ {name}"}) for name, switch in FURTHER.items()
    ]
    return [*alone, BUILTIN["recommended"]]


def load_profile(name: str | Path | Profile) -> Profile:
    """Return a built-in profile by name, or read one from a JSON file.

    Raises
    ------
    InputError
        The name is unknown and no such file exists, it is something else, or the document breaks the schema: one
        line that says which field, what was given and what is expected.
    """
    if isinstance(name, Profile):
        return name
    if not isinstance(name, str | Path):
        raise InputError(
            f"a {type(name).__name__} given as profile; expected a Profile, a built-in name or a JSON file; give 'dense' "
            "for stock behaviour"
        )
    if str(name) in BUILTIN:
        return BUILTIN[str(name)]
    path = CALIBRATED.get(str(name), Path(name))
    if not path.is_file():
        known = ", ".join([*BUILTIN, *CALIBRATED])
        raise InputError(
            f"profile {str(name)!r} is neither a file nor a built-in; use one of {known}, or a JSON file"
        )
    try:
        found = parse_profile(path.read_text(encoding="utf-8"))
        if found.adapter.file is not None:
            found = found.with_weights(str(path.parent / found.adapter.file))
        return found.model_copy(update={"name": str(name)}) if str(name) in CALIBRATED else found
    except (InputError, UnicodeDecodeError) as error:
        raise InputError(f"profile {path}: {error}") from None


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile, and beside it a copy of its adapter's weights as ``STEM.adapter.SUFFIX``.

    The two can be moved together.
    """
    if profile.adapter.file is not None:
        weights = Path(profile.adapter.file)
        beside = path.with_name(f"{path.stem}.adapter{weights.suffix}")
        with whole(beside) as part:
            shutil.copyfile(weights, part)
        profile = profile.with_weights(beside.name)
    write_text(path, profile.to_json())


def parse_profile(text: str) -> Profile:
    """Read a profile from JSON text.

    Raises
    ------
    InputError
        The text is no JSON object or breaks the schema.
    """
    try:
        document = json.loads(text)
        if isinstance(document, dict) and document.get("schema") == OLDER:
            raise InputError(
                f"schema is {OLDER!r}; expected {SCHEMA!r}: windows is routing now, memory retrieval, shortcut adapter, "
                "rolling_refresh routing.refresh.one_in, trimmed routing.unit, techniques exact, reuse and graphs; "
                "calibrate anew, or write it so"
            )
        return Profile.model_validate(document)
    except json.JSONDecodeError as error:
        raise InputError(
            f"is no JSON ({error.msg} at line {error.lineno}); write one with 'efficient-sam2 calibrate'"
        ) from None
    except ValidationError as error:
        found = error.errors()
        # a misspelt field is missing too; what it is called says more
        unknown = (one for one in found if one["type"] == "extra_forbidden")
        first = next(unknown, found[0])
        said = first["msg"].removeprefix("Value error, ")
        if not first["loc"] and isinstance(first["input"], dict):
            raise InputError(f"its parts don't fit: {said}") from None
        place = ".".join(str(part) for part in first["loc"]) or "document"
        if first["type"] == "missing":
            raise InputError(
                f"{place} is missing; expected a value; add it, or begin with 'efficient-sam2 profile show exact'"
            ) from None
        raise InputError(
            f"{place} is {first['input']!r}; {said.lower()}; correct that field"
        ) from None
