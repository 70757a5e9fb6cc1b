"""What the steps of a frame need of a model: the profile in use, packed weights, seam, runner and grid."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from zlib import crc32

import torch
from sam2.modeling.sam2_base import SAM2Base

from probes.errors import InputError
from probes.layout import MemoryLayout, memory_layout
from probes.seam import Moment, Seam
from probes.video import ModelFrames
from sparsity.acceleration.fit import check_fit, has_stages
from sparsity.acceleration.model import graphs
from sparsity.acceleration.model.changes import ENCODER
from sparsity.acceleration.model.encoder import Encoder, window_grid
from sparsity.acceleration.model.linear import Linear
from sparsity.acceleration.model.memory_attention import SparseMemoryAttention
from sparsity.acceleration.model.quantized import Int8Linear
from sparsity.acceleration.model.weights import Derived, Version
from sparsity.acceleration.report import Report
from sparsity.acceleration.session import Frame, Made, Outputs, Result, Session, made_from
from sparsity.acceleration.watch import safer_than, watch_over
from sparsity.profile import Profile
from sparsity.techniques import KEY
from sparsity.techniques.adapter import AdapterFunction, load_adapter
from sparsity.techniques.memory_policy import Remembered, remembered
from sparsity.techniques.retrieval import ALL_TOKENS, Retrieval
from sparsity.techniques.select import WindowGrid

ENCODES = ENCODER | {"forward_image"}
"""Parts that are sam2's own where its encoder is."""

Rewrite = TypeVar("Rewrite", Encoder, SparseMemoryAttention)

MOST_OBJECTS = 16
"""Objects that are tracked in one pass; more are tracked in several."""

GRAPHED = {
    "encoder": tuple(ENCODER),
    "memory encoder": ("memory encoder",),
    "mask decoder": ("mask decoder", "prompt encoder"),
}
"""Parts that run inside what is launched as one graph."""


@dataclass
class InUse:
    """A profile in use, and what comes of it.

    Attributes
    ----------
    forced
        Whether it was made for another model and forced.
    adapter
        The function of its adapter; None where nothing is routed, and for the cached one.
    watch
        Share of frames that are watched; None for none.
    ladder
        Where it is watched: this, and what comes after it if its promise is broken; every window and key last.
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
    watch: float | None = None
    ladder: tuple[InUse, ...] = ()

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
    settings
        What is recorded in graphs beside weights, the same.
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
    settings: Hashable = None
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

    def __init__(
        self, model: SAM2Base, profile: Profile, force: bool, watch: float | None = None
    ) -> None:
        self.model, self.seam, self.weights = model, Seam(), Derived()
        self._grid = window_grid(model)
        self.own = self.fitted(profile, force, watch)
        self.here = _Here(self.own)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: all but what goes on."""
        return {**self.__dict__, "here": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.here = _Here(self.own)

    def fitted(self, profile: Profile, force: bool, watch: float | None = None) -> InUse:
        """Fit a profile to the model, and where it is watched what may come after it.

        Raises
        ------
        InputError
            See `check_fit`; or its adapter's weights can't be used.
        """
        forced, adapter = check_fit(profile, self.model, force), None
        if profile.routing is not None and has_stages(self.model):
            channels = self.model.image_encoder.trunk.channel_list[1]
            adapter = load_adapter(profile.adapter, channels, self.model.device)
        used = InUse(profile, forced, adapter, watch)
        if watch is not None:
            safer = [self.fitted(one, force=True) for one in safer_than(profile)]
            ladder = (used, *safer)
            for one in ladder:
                one.ladder = ladder
        return used

    @contextmanager
    def using(self, used: InUse) -> Iterator[None]:
        """Have a profile in use in this thread for the length of the context."""
        before, self.here.used = self.here.used, used
        try:
            yield
        finally:
            self.here.used = before

    @contextmanager
    def watched(self, session: Session) -> Iterator[None]:
        """Have the profile in use that the watch has brought a video to, where there is one."""
        used = self.here.used
        if used.watch is None:
            session.watch = session.report.watch = None
            yield
            return
        watch = session.watch
        if watch is None or (watch.share, watch.ladder[0]) != (used.watch, used.profile):
            watch = watch_over([one.profile for one in used.ladder], used.watch)
            session.watch = session.report.watch = watch
        with self.using(used.ladder[watch.step]):
            yield

    @contextmanager
    def beside(self, frame: Frame) -> Iterator[Frame]:
        """Begin a tracked frame once more, with every window and key, in a state that is thrown away."""
        here, known = self.here, frame.state["cached_features"]
        session = Session(Report("dense", forced=False), published=frame.state[KEY].published)
        state = {**frame.state, "cached_features": dict(known), KEY: session}
        with self.using(here.used.ladder[-1]):
            here.looked = self.look()
            again = Frame(state, frame.index, frame.grid, frame.reverse, frame.objects)
            try:
                here.frame = again
                with self.seam.at(Moment(frame.index, again.ids, frame.reverse)):
                    yield again
            finally:
                here.frame = here.looked = here.settings = None

    def look(self) -> dict[str, str]:
        """Drop what was made of other weights; say which parts of the model aren't sam2's own, and why.

        Once in a tracked frame.
        """
        here = self.here
        if here.looked is not None:
            return here.looked
        changed = self.weights.look(self.model) if here.used.rewrites else {}
        here.routes = here.used.profile.routing is not None and ENCODES.isdisjoint(changed)
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
        """Whether frames of several videos are encoded in one batch: by sam2's own encoder, while nobody watches attention.

        Not in int8, where what a product is given shares a scale.
        """
        used = self.here.used
        shares = self.seam.watched or used.profile.quantize is not None
        wanted = not shares and (used.exact or not used.carried)
        return wanted and ENCODES.isdisjoint(self.look())

    @property
    def encoder(self) -> Encoder:
        """The image encoder in the number format of this run."""
        return self._packed(Encoder)

    @property
    def encoder_version(self) -> Version | None:
        """Which weights features are made of; None where the encoder isn't sam2's own."""
        return None if "image encoder" in self.look() else self.encoder.version

    @property
    def made(self) -> Made:
        """What features are made by now."""
        used = self.here.used
        version = self.encoder_version if used.exact or self.here.routes else None
        return Made(used.exact, version, used.profile.resize)

    @property
    def attention(self) -> SparseMemoryAttention:
        """Memory attention in the number format of this run."""
        return self._packed(SparseMemoryAttention)

    def _packed(self, kind: type[Rewrite]) -> Rewrite:
        """A rewrite with the weights as they are now, and linear layers of the kind in use."""
        linear = self.here.used.linear
        found: Rewrite = self.remember(
            f"{kind.__name__} of {linear.__name__}",
            lambda dtype: kind(self.model, dtype, self.seam, linear),
        )
        return found

    @contextmanager
    def tracking(
        self, state: dict[str, Any], object_index: int, index: int, reverse: bool
    ) -> Iterator[Frame]:
        """Begin a frame in this thread, with an object and all that are tracked together with it."""
        here = self.here
        here.looked = self.look()
        self.resize(state)
        try:
            policy = here.used.profile.memory_policy
            if policy.kind != "recent" and not self.reads_memory:
                raise InputError(
                    f"memory_policy {policy.kind!r} given, but the model's memory attention isn't sam2's own; expected that, "
                    "as it reads what is chosen; set memory_policy.kind to 'recent'"
                )
            objects = [object_index, *self._with(state, object_index, index, reverse)]
            here.frame = frame = Frame(state, index, self.grid, reverse, objects)
            with self.seam.at(Moment(index, frame.ids, reverse)):
                yield frame
        finally:
            here.frame = here.looked = here.settings = None

    def _with(
        self, state: dict[str, Any], object_index: int, index: int, reverse: bool
    ) -> list[int]:
        """Objects that are tracked into a frame in one pass with another one.

        Those that come later and have a prompt, but for those whose results stay as they are; none where a client
        tracks one after the other, who may change what the next one reads.
        """
        if not (state[KEY].passes and self.batches_objects):
            return []
        prompts = {i: own["cond_frame_outputs"] for i, own in state["output_dict_per_obj"].items()}
        waiting = [i for i, own in prompts.items() if i > object_index and own and index not in own]
        if state[KEY].corrections == "keep":
            waiting = [i for i in waiting if self.known(state, i, index, reverse) is None]
        return waiting[: MOST_OBJECTS - 1]

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
        before = None if out is None else out.get(KEY, {}).get("from")
        if before is None or before != self.made_from(state, outputs, index, reverse):
            return None
        state[KEY].unchanged = index, reverse
        return out, out["pred_masks"].to(state["device"])

    def made_from(
        self, state: dict[str, Any], outputs: dict[str, dict[int, Any]], index: int, reverse: bool
    ) -> Hashable:
        """All that an object's result on a frame is made from; None where that is features which a client gave.

        Of a video's own picture nothing, as it stays; of one that a client put there, or may have, the checksum.
        """
        features, images = state["cached_features"].get(index), state["images"]
        if features is not None and state[KEY].made(features[1]) is None:
            return None
        picture = images.written(index) if isinstance(images, ModelFrames) else images[index]
        seen = None if picture is None else _checksum(picture)
        self.weights.look(self.model)
        kept = self.kept(outputs, index, reverse)
        layout = self.layout(outputs, index, state["num_frames"], reverse, kept)
        read = made_from(outputs, layout, reverse)
        return (
            self.here.used.profile,
            self.weights.generation,
            self.weights.around,
            self.weights.format,
            self._settings(),
            self.seam.edition(),
            kept,
            read,
            seen,
        )

    def kept(self, outputs: Outputs, index: int, reverse: bool) -> Remembered | None:
        """What an object's memory holds by the profile's policy when a frame is to be tracked; None by stock's."""
        policy, model = self.here.used.profile.memory_policy, self.model
        if policy.kind == "recent":
            return None
        most, stride = model.num_maskmem - 1, model.memory_temporal_stride_for_eval
        return remembered(outputs, index, reverse, policy, most, stride)

    def layout(
        self, outputs: Outputs, index: int, num_frames: int, reverse: bool, kept: Remembered | None
    ) -> MemoryLayout:
        """Lay out the memory that an object reads on a frame: `kept`, or by stock's rule."""
        chosen = None if kept is None else kept.frames
        return memory_layout(self.model, index, outputs, num_frames, reverse, chosen)

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
        changed = self.look()
        device = self.weights.first.device
        if device.type not in graphs.DEVICES or not graphs.can_record():
            return function(given)
        if changed and any(part in changed for part in GRAPHED.get(kind[0], ())):
            return function(given)
        known = self.remember("graphs", lambda dtype: graphs.Graphs())
        return known.run((kind, self._settings()), function, given, device)

    def _settings(self) -> Hashable:
        """All that is computed by beside weights and what is given; found once for the frame under way."""
        here, decoder = self.here, self.model.sam_mask_decoder
        if here.frame is not None and here.settings is not None:
            return here.settings
        read = graphs.settings_of(self.model), graphs.settings_of(decoder)
        here.settings = *read, here.used.exact, here.used.linear
        return here.settings

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


def _checksum(tensor: torch.Tensor) -> int:
    found = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return crc32(found.data)
