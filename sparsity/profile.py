"""The profile: which thresholds and techniques the accelerated predictor applies, and what they promise.

A profile is a small JSON document (``"schema": "efficient-sam2/profile/1"``). It is strict: unknown keys,
NaN and values out of range are refused, so that a typo can never silently change a result. This module
needs pydantic alone; figures and reports read profiles without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

SCHEMA: Final = "efficient-sam2/profile/1"

Share = Annotated[FiniteFloat, Field(gt=0, le=1)]
"""A share in (0, 1]."""

EXACT_TECHNIQUES = (
    "encoder",
    "memory_attention",
    "memory_encoder",
    "batched_objects",
    "cuda_graphs",
)
"""Rewrites that change the order of the arithmetic, or its launch, and nothing else; each is a switch of the profile."""

REUSING_TECHNIQUES = ("reuse_early_stages", "reuse_last_block", "reuse_stage4")
"""Parts of the encoder that windows left out on a frame take over from their last computation."""

CALIBRATED_TECHNIQUES = (*REUSING_TECHNIQUES, "pooled_background")
"""Switches that change results on routed frames and are no part of the published method."""

TECHNIQUES = EXACT_TECHNIQUES + CALIBRATED_TECHNIQUES


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Windows(_Strict):
    """Sparse window routing (SWR): which windows of encoder stage 3 are computed.

    Attributes
    ----------
    saliency_mass
        Share of decoder saliency, in (0, 1], that the added windows must hold when a mask is empty or a
        score low (paper: 0.7).
    score_below
        Object-score logit under which the saliency windows are added (authors' code: 5.0).
    margin_px
        Distance in pixels of the model's input by which masks are grown before they choose windows.
    candidates
        ``"all"`` candidate masks of the decoder choose windows (paper), or the ``"best"`` alone.
    rolling_refresh
        On every routed frame one in so many of the windows left out is computed too: those whose picture changed
        most since they were computed last. None leaves them out. Not part of the published method.
    trimmed
        In a window that masks touch only cells of 2 x 2 tokens that they touch are computed, `margin_px` included;
        the others go through the shortcut. Not part of the published method.
    """

    saliency_mass: Share = 0.7
    score_below: FiniteFloat = 5.0
    margin_px: Annotated[FiniteFloat, Field(ge=0)] = 8.0
    candidates: Literal["all", "best"] = "all"
    rolling_refresh: PositiveInt | None = None
    trimmed: bool = False


class Memory(_Strict):
    """Sparse memory retrieval (SMR): which tokens of a memory frame are read.

    Attributes
    ----------
    keep
        Share of a memory frame's tokens that stay, in (0, 1]; one value or one per memory-attention layer.
    queries
        Number of query rows (stratified sample) from which token saliency is measured, or ``"all"``.
    exempt
        Kinds of keys that are always whole: ``conditioning`` frames, the ``newest`` frame, ``pointers``.
    readers
        Tokens of the current frame that read memory: ``"all"``, or on routed frames those of ``"routed"``
        windows alone; the others keep what memory attention added to them when they read it last. Not part
        of the published method.
    """

    keep: Share | tuple[Share, ...] = 0.05
    queries: PositiveInt | Literal["all"] = 1024
    exempt: tuple[Literal["conditioning", "newest", "pointers"], ...] = (
        "conditioning",
        "newest",
        "pointers",
    )
    readers: Literal["all", "routed"] = "all"

    @model_validator(mode="after")
    def _pointers_are_whole(self) -> Memory:
        if "pointers" not in self.exempt:
            raise ValueError(
                "memory.exempt must contain 'pointers'; object pointers have no tokens to choose from"
            )
        return self


class Shortcut(_Strict):
    """What a window that is not computed goes through instead of the blocks of stage 3.

    ``identity`` passes it unchanged, ``mean`` adds a constant, ``ridge`` a linear map, ``bottleneck`` the
    paper's two-layer adapter, ``cached`` the change that the blocks made when the window was last computed.

    Attributes
    ----------
    file
        Weights of a fitted kind; `sparsity.profiles.load_profile` looks for a relative one beside the profile.
    sha256
        Of that file; another one is refused. None accepts any.
    """

    kind: Literal["identity", "mean", "ridge", "bottleneck", "cached"] = "identity"
    file: str | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _file_when_fitted(self) -> Shortcut:
        fitted = self.kind in ("mean", "ridge", "bottleneck")
        if fitted and self.file is None:
            raise ValueError(
                f"shortcut.kind {self.kind!r} needs shortcut.file, the safetensors or .pth file of its weights"
            )
        if not fitted and self.file is not None:
            raise ValueError(
                f"shortcut.kind {self.kind!r} takes no file; remove shortcut.file or choose another kind"
            )
        return self


class Guard(_Strict):
    """When a frame is encoded densely although it could be routed. ``None`` switches a rule off.

    Where a rule sees trouble (all but a refresh and `kept_share`), the frame reads all of its memory too.

    Attributes
    ----------
    refresh_every
        A dense frame at least every so many frames.
    mask_jump
        Dense when 1 - IoU between the two last masks of an object exceeds this, in (0, 1].
    scene_cut
        Dense when the mean absolute difference of the frame's thumbnail to the last one exceeds this,
        in (0, 1] of full scale.
    score_below
        Dense when an object-score logit falls below this, or a mask is empty.
    kept_share
        Dense when routing keeps more than this share of the windows, where it no longer pays.
    """

    refresh_every: PositiveInt | None = None
    mask_jump: Share | None = None
    scene_cut: Share | None = None
    score_below: FiniteFloat | None = None
    kept_share: Share = 0.9


class Promise(_Strict):
    """What the calibration found: loss of J&F in points, with the bound it holds to.

    Attributes
    ----------
    mean_loss
        Of the chosen setting on the videos behind the promise; lower than on others, as it was chosen by it.
    upper_bound
        What the setting was tested against: the accepted loss, or without one its own bound.
    expected_windows, expected_keys
        Shares computed and read on the videos behind the promise; dense frames count as 1.
    expected_speedup
        Operations of a frame with every window and key over those of this profile's; not a time.
    """

    mean_loss: FiniteFloat
    upper_bound: FiniteFloat
    confidence: Share
    method: str
    clips: NonNegativeInt
    unit: str = "J&F points, mean over videos"
    expected_windows: Share | None = None
    expected_keys: Share | None = None
    expected_speedup: Annotated[FiniteFloat, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _bound_above_mean(self) -> Promise:
        if self.upper_bound < self.mean_loss:
            raise ValueError("promise.upper_bound must not lie below promise.mean_loss")
        return self

    def text(self) -> str:
        """The promise in one line."""
        sure = "" if "in expectation" in self.method else f", at {self.confidence:.0%}"
        return (
            f"mean loss {self.mean_loss:+.2f}, at most {self.upper_bound:.2f} {self.unit}{sure} "
            f"({self.method}, {self.clips} clips)"
        )


class Router(_Strict):
    """A logistic model of "will this window be needed in the next frame?" over named cheap cues."""

    cues: tuple[str, ...]
    mean: tuple[FiniteFloat, ...]
    scale: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    coefficients: tuple[FiniteFloat, ...]
    intercept: FiniteFloat
    threshold: Annotated[FiniteFloat, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _one_value_per_cue(self) -> Router:
        sizes = {len(self.cues), len(self.mean), len(self.scale), len(self.coefficients)}
        if len(sizes) != 1:
            raise ValueError("router.cues, mean, scale and coefficients must have the same length")
        return self


class Profile(_Strict):
    """Thresholds and techniques of an accelerated run; see the module's docstring.

    Attributes
    ----------
    model
        Fingerprint of the model the profile was calibrated for, or None for any model.
    image_size
        Side of that model's square input in pixels, or None for any size: margins are in its pixels, and what was
        lost at one size says little of another.
    windows, memory
        SWR and SMR; None switches one off.
    techniques
        Exact rewrites and calibrated techniques by name (`TECHNIQUES`); a name that is absent is off.
    promise, made_by
        What calibration found and how; None for profiles nobody calibrated.
    """

    schema_: Literal["efficient-sam2/profile/1"] = Field(SCHEMA, alias="schema")
    name: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")] | None = None
    image_size: PositiveInt | None = None
    windows: Windows | None = None
    memory: Memory | None = None
    shortcut: Shortcut = Shortcut()
    guard: Guard = Guard()
    router: Router | None = None
    techniques: Mapping[Literal[TECHNIQUES], bool] = {}  # type: ignore[valid-type]
    promise: Promise | None = None
    made_by: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _routed_readers_need_windows(self) -> Profile:
        if self.memory is not None and self.memory.readers == "routed" and self.windows is None:
            raise ValueError(
                "memory.readers 'routed' needs windows to be routed by; set windows or choose 'all'"
            )
        return self

    @model_validator(mode="after")
    def _calibrated_techniques_have_windows(self) -> Profile:
        for name in CALIBRATED_TECHNIQUES:
            if self.technique(name) and (self.windows is None or not self.technique("encoder")):
                raise ValueError(
                    f"technique {name!r} needs windows to be routed by, and the technique 'encoder'; set "
                    f"both or switch it off"
                )
        return self

    def technique(self, name: str) -> bool:
        """Whether the technique `name` is switched on."""
        return self.techniques.get(name, False)

    @property
    def calibrated_techniques(self) -> frozenset[str]:
        """Names of the calibrated techniques that are switched on."""
        return frozenset(name for name in CALIBRATED_TECHNIQUES if self.technique(name))

    def with_weights(self, file: str) -> Profile:
        """The same profile with its shortcut's weights in another place."""
        return self.model_copy(update={"shortcut": self.shortcut.model_copy(update={"file": file})})

    def to_json(self) -> str:
        """The profile as the JSON document that `sparsity.profiles.load_profile` reads."""
        return self.model_dump_json(by_alias=True, indent=2, exclude_defaults=False)
