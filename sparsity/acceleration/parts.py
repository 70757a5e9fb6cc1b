"""What the steps of a frame need of a model: the profile in use, packed weights, seam, runner and grid.

And whether a model can have a profile: its fingerprint, and the shapes that techniques rely on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.sam2_base import SAM2Base

from probes.errors import InputError
from probes.models import fingerprint
from probes.seam import Moment, Seam
from probes.video import ModelFrames
from sparsity.acceleration.model import graphs
from sparsity.acceleration.model.changes import ENCODER
from sparsity.acceleration.model.encoder import Encoder, window_grid
from sparsity.acceleration.model.linear import Linear
from sparsity.acceleration.model.memory_attention import SparseMemoryAttention
from sparsity.acceleration.model.quantized import Int8Linear, why_not_int8
from sparsity.acceleration.model.weights import Derived, Version
from sparsity.acceleration.session import Frame, Result, Session, made_from, together
from sparsity.profile import Profile
from sparsity.techniques import KEY
from sparsity.techniques.adapter import AdapterFunction, load_adapter
from sparsity.techniques.retrieval import ALL_TOKENS, Retrieval
from sparsity.techniques.select import WindowGrid

GRAPHED = {
    "encoder": tuple(ENCODER),
    "memory encoder": ("memory encoder",),
    "mask decoder": ("mask decoder", "prompt encoder"),
}
"""Parts that run inside what is launched as one graph."""

WINDOWED_LAST = "the last block of stage 3 attends inside windows, where SAM 2's sees all tokens"


@dataclass
class InUse:
    """A profile in use, and what comes of it.

    Attributes
    ----------
    forced
        Whether it was made for another model and forced.
    adapter
        The function of its adapter; None where nothing is routed, and for the cached one.
    exact, reused, carried
        Of the profile.
    rewrites
        Whether anything is done otherwise than by sam2's own modules.
    retrieval
        SMR's settings; all tokens where the profile has none.
    linear
        Kind of the linear layers of encoder and memory attention.
    reported
        What a report says of it.
    """

    profile: Profile
    forced: bool
    adapter: AdapterFunction | None

    def __post_init__(self) -> None:
        self.exact, self.reused = self.profile.exact, self.profile.reused
        self.carried, routing = self.profile.carried, self.profile.routing
        self.rewrites = self.exact or bool(routing or self.profile.retrieval)
        self.retrieval: Retrieval = self.profile.retrieval or ALL_TOKENS
        self.linear = Int8Linear if self.profile.quantize == "int8" else Linear
        self.reported: dict[str, Any] = {
            "profile": self.profile.name,
            "forced": self.forced,
            "quantized": self.profile.quantize,
            "seen": None if self.profile.promise is None else self.profile.promise.seen,
        }


class _Here(threading.local):
    """What goes on in each thread.

    Attributes
    ----------
    frame
        The tracked frame under way; None between such frames.
    encoding
        The session and the frame whose features sam2 asks for; several where they are encoded in one batch.
    used
        The profile in use.
    looked
        What isn't sam2's own, found once for the frame under way; None between tracked frames.
    routes
        Whether windows may be left out: the profile says so, and the encoder was sam2's own when it was last looked at.
    carried
        What dense frames keep for those that leave windows out.
    keeps
        Whether a frame that is prompted now becomes a conditioning one, though it was tracked.
    ious
        Predicted IoUs of what was decoded last on a prompted frame.
    gathers
        Whether the first frame of a video that begins now is encoded later, in one batch with others.
    """

    frame: Frame | None = None
    encoding: tuple[tuple[Session, Frame], ...] = ()
    looked: dict[str, str] | None = None
    ious: torch.Tensor | None = None
    routes = keeps = gathers = False
    carried: frozenset[str] = frozenset()

    def __init__(self, own: InUse) -> None:
        self.used = own


class Parts:
    """What the steps of a frame need of a model; threads share it, each with a frame of its own under way.

    Attributes
    ----------
    model
        The predictor.
    seam
        Where observers are told.
    weights
        What was made of the model's weights.
    own
        The predictor's own profile.
    here
        What goes on in this thread.
    """

    def __init__(self, model: SAM2Base, profile: Profile, force: bool) -> None:
        self.model, self.seam, self.weights = model, Seam(), Derived()
        self._grid = window_grid(model)
        self.own = self.fitted(profile, force)
        self.here = _Here(self.own)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: all but what goes on."""
        return {**self.__dict__, "here": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.here = _Here(self.own)

    def fitted(self, profile: Profile, force: bool) -> InUse:
        """Fit a profile to the model.

        Raises
        ------
        InputError
            See `check_fit`; or its adapter's weights can't be used.
        """
        forced, adapter = check_fit(profile, self.model, force), None
        if profile.routing is not None and has_stages(self.model):
            channels = self.model.image_encoder.trunk.channel_list[1]
            adapter = load_adapter(profile.adapter, channels, self.model.device)
        return InUse(profile, forced, adapter)

    @contextmanager
    def using(self, profile: Profile, force: bool) -> Iterator[None]:
        """Have a profile in use in this thread for the length of the context."""
        before, self.here.used = self.here.used, self.fitted(profile, force)
        try:
            yield
        finally:
            self.here.used = before

    def look(self) -> dict[str, str]:
        """Drop what was made of other weights; say which parts of the model aren't sam2's own, and why.

        Once in a tracked frame.
        """
        here = self.here
        if here.looked is not None:
            return here.looked
        changed = self.weights.look(self.model) if here.used.rewrites else {}
        here.routes = here.used.profile.routing is not None and has_own_encoder(changed)
        here.carried = here.used.carried if here.routes else frozenset()
        return changed

    def rewritten(self, part: str) -> bool:
        """Whether the exact rewrite of a part stands for its modules: not where gradients are wanted."""
        exact = self.here.used.exact and not torch.is_grad_enabled()
        return exact and part not in self.look()

    @property
    def grid(self) -> WindowGrid:
        """Windows of encoder stage 3; another one where the model's image size was changed."""
        if self._grid.tokens * 16 != self.model.image_size:
            self._grid = window_grid(self.model)
        return self._grid

    @property
    def reads_memory(self) -> bool:
        """Whether memory attention runs here; else stock's does, one object at a time."""
        wanted = self.here.used.exact or self.here.used.profile.retrieval is not None
        return wanted and self.model.num_maskmem > 0 and "memory attention" not in self.look()

    @property
    def batches_objects(self) -> bool:
        """Whether objects are tracked in one pass: not where masks of one batch compete for memory."""
        alone = self.model.non_overlap_masks_for_mem_enc
        return self.here.used.exact and self.reads_memory and not alone

    @property
    def batches_pictures(self) -> bool:
        """Whether frames of several videos are encoded in one batch: by sam2's own encoder, while nobody watches attention."""
        used, watched = self.here.used, self.seam.watched
        return not watched and (used.exact or not used.carried) and has_own_encoder(self.look())

    @property
    def encoder(self) -> Encoder:
        """The image encoder in the number format of this run."""
        linear = self.here.used.linear
        return self.remember(
            f"encoder of {linear.__name__}",
            lambda dtype: Encoder(self.model, dtype, self.seam, linear),
        )

    @property
    def encoder_version(self) -> Version | None:
        """Which weights features are made of; None where the encoder isn't sam2's own."""
        return None if "image encoder" in self.look() else self.encoder.version

    @property
    def attention(self) -> SparseMemoryAttention:
        """Memory attention in the number format of this run."""
        linear = self.here.used.linear
        return self.remember(
            f"memory of {linear.__name__}",
            lambda dtype: SparseMemoryAttention(self.model, dtype, self.seam, linear),
        )

    @contextmanager
    def tracking(
        self, state: dict[str, Any], object_index: int, index: int, reverse: bool
    ) -> Iterator[Frame]:
        """Begin a frame in this thread, with an object and all that are tracked together with it."""
        here = self.here
        here.looked = self.look()
        self.resize(state)
        try:
            keeps = state[KEY].corrections == "keep"
            objects = together(
                state, object_index, index, self.batches_objects,
                lambda i: keeps and self.known(state, i, index, reverse) is not None,
            )  # fmt: skip
            here.frame = frame = Frame(state, index, self.grid, reverse, objects)
            with self.seam.at(Moment(index, frame.ids, reverse)):
                yield frame
        finally:
            here.frame = here.looked = None

    def resize(self, state: dict[str, Any]) -> None:
        """Have a video's pictures resized as the profile says; those that the client put there stay as they are."""
        if isinstance(state["images"], ModelFrames):
            state["images"].resize = self.here.used.profile.resize

    def known(
        self, state: dict[str, Any], object_index: int, index: int, reverse: bool
    ) -> Result | None:
        """An object's result on a frame where all that it was made from is as it was then; None where it isn't."""
        outputs = state["output_dict_per_obj"][object_index]
        out = outputs["non_cond_frame_outputs"].get(index)
        if out is None or out.get(KEY, {}).get("from") != self.made_from(
            state, outputs, index, reverse
        ):
            return None
        state[KEY].unchanged = index, reverse
        return out, out["pred_masks"].to(state["device"])

    def made_from(
        self, state: dict[str, Any], outputs: dict[str, dict[int, Any]], index: int, reverse: bool
    ) -> Hashable:
        """All that an object's result on a frame is made from, but the picture."""
        self.weights.look(self.model)
        read = made_from(self.model, outputs, index, state["num_frames"], reverse)
        return self.here.used.profile, self.weights.generation, self.seam.edition(), read

    @contextmanager
    def encoding(self, *those: tuple[Session, Frame]) -> Iterator[None]:
        """Say whose features sam2 asks for, in case it has a picture encoded."""
        before, self.here.encoding = self.here.encoding, those
        try:
            yield
        finally:
            self.here.encoding = before

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Let videos that begin in here wait with their first frame, which is encoded in one batch with others."""
        before, self.here.gathers = self.here.gathers, True
        try:
            yield
        finally:
            self.here.gathers = before

    def run(self, kind: tuple[Any, ...], function: Callable[[Any], Any], given: Any) -> Any:
        """Run a part of a tracked frame, or of several: as one CUDA graph where these are on and possible, else as it is.

        A graph passes by everything but its kernels, so a part that isn't sam2's own has none.
        """
        under_way = self.here.frame is not None or len(self.here.encoding) > 1
        wanted = self.here.used.profile.graphs and under_way
        if not wanted or self.seam.watched:
            return function(given)
        device = self.model.device
        if device.type not in graphs.DEVICES or not graphs.can_record():
            return function(given)
        if any(part in self.look() for part in GRAPHED.get(kind[0], ())):
            return function(given)
        known = self.remember("graphs", lambda dtype: graphs.Graphs())
        decoder = graphs.settings_of(self.model.sam_mask_decoder)
        used = self.here.used
        settings = graphs.settings_of(self.model), decoder, used.exact, used.linear
        return known.run((kind, settings), function, given, device)

    @contextmanager
    def casting_once(self) -> Iterator[None]:
        """Let autocast hold the casts of weights that sam2's own modules use; under inference mode it never does."""
        self.look()
        with torch.inference_mode(False), torch.no_grad():
            yield

    def remember(self, what: str, make: Callable[[Any], Any]) -> Any:
        """What was made of these weights in this number format; `make`, given the format, makes it."""
        self.look()
        return self.weights.get(what, self.model, make)


def has_own_encoder(changed: Collection[str]) -> bool:
    """Whether an encoder with such changed parts is sam2's own."""
    return not any(part in changed for part in (*ENCODER, "forward_image"))


def has_stages(model: SAM2Base) -> bool:
    """Whether a model's encoder is built as SAM 2's; another one runs as it is."""
    encoder = model.image_encoder
    return isinstance(encoder, ImageEncoder) and isinstance(encoder.trunk, Hiera)


def check_fit(profile: Profile, model: SAM2Base, force: bool) -> bool:
    """Check that a model can have a profile; an encoder or memory attention of another kind runs as it is.

    Returns
    -------
    bool
        Whether the profile was made for another model or input size, and `force` let it pass.

    Raises
    ------
    InputError
        The profile was made for another model or input size (and `force` is not set), or asks for what this
        model cannot have.
    """
    named, own_encoder = f"profile {profile.name!r}", has_stages(model)
    if profile.routing is not None and own_encoder and (reason := why_not_routed(model)):
        raise InputError(f"{named} routes {reason}; set routing to null")
    if profile.exact and own_encoder and (reason := why_not_exact(model)):
        raise InputError(f"{named} is exact, but {reason}; set exact to false")
    if profile.quantize is not None and (reason := why_not_int8(model.device)):
        raise InputError(f"{named} quantizes to int8, but {reason}; set quantize to null")
    retrieval = profile.retrieval
    reads = retrieval is not None or profile.exact
    own_memory = isinstance(model.memory_attention, MemoryAttention)
    if reads and own_memory and (reason := why_not_sparse(model)):
        raise InputError(
            f"{named} changes memory attention, but {reason}; set retrieval to null and exact to false"
        )
    if retrieval is not None and isinstance(retrieval.keep, tuple):
        layers = len(model.memory_attention.layers)
        if len(retrieval.keep) != layers:
            raise InputError(
                f"{named} has {len(retrieval.keep)} values of retrieval.keep, the model has {layers} "
                f"memory-attention layers; give one value or {layers}"
            )
    judge = profile.guard.failure
    if (
        judge is not None
        and not force
        and not judge.fits(own := fingerprint(model), model.image_size)
    ):
        raise InputError(
            f"{named} has a guard.failure for {judge.model[:19]}… at {judge.image_size} pixels, this model is {own[:19]}… at "
            f"{model.image_size}; fit one for it, or set guard.failure and guard.failure_above to null"
        )
    other = None
    if profile.model is not None and profile.model != (own := fingerprint(model)):
        other = f"for the model {profile.model[:19]}…, this one is {own[:19]}…"
    elif profile.image_size not in (None, model.image_size):
        other = (
            f"at an image_size of {profile.image_size} pixels, this model's is {model.image_size}"
        )
    if other is not None and not force:
        raise InputError(
            f"{named} was calibrated {other}; calibrate it for this model, or force it"
        )
    return other is not None


def why_not_routed(model: SAM2Base) -> str | None:
    """Say why windows of a model can't be routed, or None if they can."""
    trunk, grid = model.image_encoder.trunk, window_grid(model)
    if getattr(trunk.blocks[trunk.stage_ends[2]], "window_size", 0) > 0:
        return f"windows, but {WINDOWED_LAST}"
    if grid.window % 2 or grid.tokens % 2:
        return (
            f"cells of 2 x 2 tokens, but windows of {grid.window} tokens a side on a grid of {grid.tokens} can't be cut "
            "so"
        )
    return None


def why_not_exact(model: SAM2Base) -> str | None:
    """Say why the exact rewrites do not fit a model's encoder, or None if they do."""
    trunk, neck = model.image_encoder.trunk, model.image_encoder.neck
    spec, ends, pooled = trunk.window_spec, trunk.stage_ends, trunk.q_pool_blocks
    if len(ends) != 4 or pooled != [end + 1 for end in ends[:3]] or tuple(trunk.q_stride) != (2, 2):
        return "the trunk does not have four stages with 2 x 2 pooling between them"
    if getattr(trunk.blocks[ends[2]], "window_size", 0) > 0:
        return WINDOWED_LAST
    if any(block <= ends[1] + 1 or block > ends[2] for block in trunk.global_att_blocks):
        return "a global block lies outside stage 3"
    if (
        spec[0] != 2 * spec[1]
        or spec[1] % 2
        or spec[2] != 2 * spec[3]
        or (model.image_size // 4) % spec[0]
    ):
        return f"windows {tuple(spec)} do not nest on a {model.image_size} pixel input"
    if (
        list(neck.fpn_top_down_levels) != [2, 3]
        or neck.fpn_interp_model != "nearest"
        or neck.fuse_type != "sum"
    ):
        return "the neck mixes other levels than SAM 2's"
    if model.image_encoder.scalp != 1 or not model.use_high_res_features_in_sam:
        return "the model does not feed high-resolution features to the decoder"
    return None


def why_not_sparse(model: SAM2Base) -> str | None:
    """Say why this memory attention does not fit a model, or None if it does."""
    for layer in model.memory_attention.layers:
        if not isinstance(layer, MemoryAttentionLayer):
            continue  # it runs as it is
        if any(getattr(a, "num_heads", 1) != 1 for a in (layer.self_attn, layer.cross_attn_image)):
            return "its memory attention has several heads"
        if (
            layer.pos_enc_at_attn
            or layer.pos_enc_at_cross_attn_queries
            or not layer.pos_enc_at_cross_attn_keys
        ):
            return "its memory attention adds positions elsewhere than SAM 2's"
        if layer.activation_str != "relu":
            return f"its memory attention uses {layer.activation_str}, not relu"
    return None
