"""Listening to a predictor, stock and accelerated alike: attention calls above all, and the steps around them.

sam2 calls attention in three places, all through ``F.scaled_dot_product_attention``. While observed, each
attention module has an instance ``forward`` that enters a `TorchFunctionMode` for the length of the
original call and sees the one call inside. What the accelerated predictor computes by itself it tells its
own seam. Either way the same `AttentionCall` arrives, and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from threading import get_ident, local
from typing import Any

import torch
import torch.nn.functional as F
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probes.errors import InputError
from probes.layout import MemoryLayout, memory_layout, stored_result
from probes.sites import AttentionSite, attention_sites, find_sites
from probes.transformers_model import AttentionSeen, TransformersPredictor, stand_in

STEPS = {
    "_get_image_feature": "image encoder",
    "_prepare_memory_conditioned_features": "memory attention",
    "_forward_sam_heads": "mask decoder",
    "_encode_new_memory": "memory encoder",
}
"""Methods of sam2's predictor that a tracked frame goes through, none inside another, and what each is called."""


@dataclass(frozen=True)
class Moment:
    """When an attention call happens.

    Attributes
    ----------
    frame
        Index of the frame; None where it is not known (features asked for outside tracking).
    objects
        Ids of the objects that the call's batch rows belong to, in order; empty for encoder calls. A call
        that all objects share (the first memory self-attention) has one row and names them all.
    reverse
        Whether tracking runs backwards.
    layouts
        What each key of memory cross-attention is, one layout per object; empty outside memory attention.
    """

    frame: int | None = None
    objects: tuple[int, ...] = ()
    reverse: bool = False
    layouts: tuple[MemoryLayout, ...] = ()

    def of_row(self, row: int) -> Moment:
        """The same moment for one object of several."""
        return replace(
            self, objects=self.objects[row : row + 1], layouts=self.layouts[row : row + 1]
        )


@dataclass(frozen=True)
class AttentionCall:
    """One attention call, after rotary phases, query pooling and head split.

    Attributes
    ----------
    site
        Dotted name, see `probes.sites`.
    q, k, v
        ``[B, h, Nq, c]``, ``[B, h, Nk, c]``, ``[B, h, Nk, cv]``; not to be changed. In windowed blocks B
        counts windows.
    moment
        When it happens.
    keys
        int64: what took part, where that is not everything in its natural order. Memory and global
        blocks: ``[Nk]``, which of the dense run's keys. Windowed blocks: ``[B]``, which windows.
    queries
        int64 ``[Nq]``: which of the dense run's queries a memory or global call made; None for all of them, in
        global blocks for those that `keys` names.
    there
        bool ``[B, 1, 1, Nk]``: keys of trimmed windows that take part, as keys and as queries; the others are masked.
        None where all do.
    where
        The site itself with its geometry; None for a call that did not pass through `observe`.
    size
        Height and width of the video in pixels, where known.
    """

    site: str
    q: Tensor
    k: Tensor
    v: Tensor
    moment: Moment
    keys: Tensor | None = None
    queries: Tensor | None = None
    there: Tensor | None = None
    where: AttentionSite | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Told:
    """What a step of the predictor made, and when."""

    moment: Moment
    what: Any


@dataclass(frozen=True)
class Step:
    """A step of `STEPS` begins, or has ended."""

    name: str
    begins: bool


class Now(local):
    """What is under way in each thread.

    Attributes
    ----------
    moment
        When the calls happen that are now under way.
    size
        Height and width in pixels of the video they belong to.
    strips
        Calls that are to be joined, by site.
    """

    moment = Moment()
    size: tuple[int, int] | None = None
    strips: dict[str, list[tuple[Tensor, Tensor, Tensor]]] | None = None


class Seam:
    """Where what happens inside a predictor passes by; not listened to, it costs one look into a dict a call.

    Attributes
    ----------
    listeners
        Who is told, by the kind of what happens, see `listen`; kinds that nobody listens to are absent.
    now
        What is under way in this thread.
    threads
        Those in which one of the predictor's own steps is under way; predictors may share modules.
    """

    def __init__(self) -> None:
        self.listeners: dict[str, tuple[Callable[[Any], None], ...]] = {}
        self.now = Now()
        self.threads: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: who listens, not what is under way."""
        return {"listeners": self.listeners}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, now=Now(), threads=set())

    def tell(self, kind: str, what: Any) -> None:
        """Hand what happened to all that listen to its kind."""
        for listener in self.listeners.get(kind, ()):
            listener(what)

    def tell_attention(
        self,
        site: str,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor | None = None,
        row: int | None = None,
        queries: Tensor | None = None,
        there: Tensor | None = None,
    ) -> None:
        """Tell of a call, without gradients; `row` says which of the moment's objects it belongs to."""
        now = self.now
        if now.strips is not None:
            now.strips.setdefault(site, []).append((q, k, v))
            return
        moment = now.moment if row is None else now.moment.of_row(row)
        tensors = q.detach(), k.detach(), v.detach()
        call = AttentionCall(site, *tensors, moment, keys, queries, there, size=now.size)
        self.tell("attention", call)

    @contextmanager
    def at(self, moment: Moment) -> Iterator[None]:
        """Say when the calls of the context happen."""
        before, self.now.moment = self.now.moment, moment
        try:
            yield
        finally:
            self.now.moment = before

    @contextmanager
    def joined(self, windows: Tensor | None) -> Iterator[None]:
        """Join calls of one site, made strip by strip, to one call along the batch, told when the context ends.

        `windows` says which windows the strips together hold, int64; None for all.
        """
        if "attention" not in self.listeners:
            yield
            return
        self.now.strips = {}
        try:
            yield
            strips = self.now.strips
        finally:
            self.now.strips = None
        for site, parts in strips.items():
            q, k, v = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            self.tell_attention(site, q, k, v, windows)


@contextmanager
def listen(predictor: SAM2VideoPredictor, **callbacks: Callable[[Any], None]) -> Iterator[None]:
    """Hand what happens inside a predictor to callbacks, each under the kind of what it hears, while the context lasts.

    Results don't change by a bit. Contexts nest, and all that listen are told. Tensors are the model's own: reduce
    them at once or clone them.

    ==============  ==================================================================================
    kind            what the callback is given
    ==============  ==================================================================================
    ``attention``   an `AttentionCall`; `observe` listens to those of some sites alone
    ``encoded``     `Told` of a frame's features, as sam2's ``_get_image_feature`` returns them
    ``decoded``     `Told` of masks and scores, as sam2's ``_forward_sam_heads`` returns them
    ``tracked``     `Told` of one object's result on a frame, the dict that sam2 keeps
    ``step``        a `Step` before and after each of `STEPS`
    ``decided``     `Told` of what an accelerated predictor decided to compute on a frame
    ``saliency``    `Told` of decoder saliency ``[objects, grid, grid]`` where an accelerated one routes
    ==============  ==================================================================================

    Raises
    ------
    InputError
        The predictor is no video predictor, or attention is asked for and it is compiled.
    """
    predictor = stand_in(predictor)
    _check(predictor, attention="attention" in callbacks)
    seam: Seam = predictor.__dict__.get("seam") or predictor.__dict__.get(OBSERVED) or Seam()
    before = dict(seam.listeners)
    for kind, callback in callbacks.items():
        seam.listeners[kind] = (*seam.listeners.get(kind, ()), callback)
    _put_in_place(predictor, seam, before)
    try:
        yield
    finally:
        before = dict(seam.listeners)
        for kind, callback in callbacks.items():
            left = tuple(one for one in seam.listeners[kind] if one is not callback)
            if left:
                seam.listeners[kind] = left
            else:
                del seam.listeners[kind]
        _take_away(predictor, seam, before)


@contextmanager
def observe(
    predictor: SAM2VideoPredictor,
    callback: Callable[[AttentionCall], None],
    sites: str | Sequence[str] = "memory.*",
) -> Iterator[None]:
    """Hand every attention call of some sites to a callback, as long as the context lasts.

    Results don't change by a bit. Contexts nest, and all observers are told. Tensors of a call are the
    model's own: reduce them at once or clone them. Calls of the same modules from elsewhere, as by an image predictor or
    by another video predictor between this one's steps, are told without a frame.

    Parameters
    ----------
    predictor
        A stock ``SAM2VideoPredictor`` or an accelerated one, or a ``Sam2VideoModel`` of transformers; not compiled.
    callback
        Called with an `AttentionCall` each time, under the run's autocast and inference mode.
    sites
        Pattern or patterns of site names (`fnmatch`), such as ``"memory.*"``, ``"decoder.final.*"`` or
        ``"*.global"``.

    Raises
    ------
    InputError
        A pattern matches no site, the predictor is compiled, or it is no video predictor.
    RuntimeError
        From inside the run: an attention module did not call attention exactly once, or the memory does
        not hold what its layout says. Either means that sam2 is another one than was expected.
    """
    predictor = stand_in(predictor)
    _check(predictor, attention=True)
    wanted = {site.name: site for site in find_sites(predictor, sites)}

    def told(call: AttentionCall) -> None:
        if call.site in wanted:
            callback(replace(call, where=wanted[call.site]))

    with listen(predictor, attention=told):
        yield


OBSERVED = "_observed"
"""Attribute under which a predictor that is listened to holds the seam."""


def is_observed(predictor: SAM2VideoPredictor) -> bool:
    """Whether somebody listens to a predictor."""
    return OBSERVED in stand_in(predictor).__dict__


def _check(predictor: SAM2VideoPredictor, attention: bool) -> None:
    if not isinstance(predictor, (SAM2VideoPredictor, TransformersPredictor)):
        raise InputError(
            f"a {type(predictor).__name__} was given; observe takes a SAM 2 video predictor; build one "
            "with build_predictor"
        )
    for name, module in predictor.named_modules() if attention else ():
        own = module.__dict__.get("forward")
        compiled = (
            module._compiled_call_impl is not None or "OptimizedModule" in type(module).__name__
        )
        if compiled or (own is not None and not isinstance(own, _Tap)):
            raise InputError(
                f"{name or 'the predictor'} is compiled or has a forward of its own; attention can't be seen "
                "inside it; observe a predictor that is built without vos_optimized and not compiled"
            )


def _put_in_place(predictor: SAM2VideoPredictor, seam: Seam, before: dict[str, Any]) -> None:
    """Put what tells the seam in place, where it isn't for those who listened `before`."""
    if "attention" in seam.listeners and "attention" not in before:
        theirs = isinstance(predictor, TransformersPredictor)
        for site in attention_sites(predictor):
            tap = site.module.__dict__.setdefault(
                "forward", _Tap(site, AttentionSeen if theirs else _AttentionSeen)
            )
            tap.seams.append(seam)
        if theirs:
            predictor.see_attention()
    if not before:
        predictor.__dict__.update(_telling_methods(predictor, seam), **{OBSERVED: seam})
        if isinstance(predictor, TransformersPredictor):
            predictor.put_in_place()


def _take_away(predictor: SAM2VideoPredictor, seam: Seam, before: dict[str, Any]) -> None:
    """Take away what nobody listens to any more."""
    if "attention" in before and "attention" not in seam.listeners:
        for site in attention_sites(predictor):
            tap = site.module.__dict__["forward"]
            tap.seams.remove(seam)
            if not tap.seams:
                del site.module.__dict__["forward"]
        if isinstance(predictor, TransformersPredictor):
            predictor.leave_attention()
    if not seam.listeners:
        if isinstance(predictor, TransformersPredictor):
            predictor.take_away()
        for name in (OBSERVED, TRACK, *STEPS):
            del predictor.__dict__[name]


# ---------------------------------------------------------------------- attention modules


class _Tap:
    """Stands in for the forward of one attention module and tells all seams that listen."""

    def __init__(self, site: AttentionSite, seen: Callable[[], Any]) -> None:
        self.site, self.original, self.seen = site.name, site.module.forward, seen
        self.seams: list[Seam] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        with self.seen() as seen:
            out = self.original(*args, **kwargs)
        if len(seen.calls) != 1:
            raise RuntimeError(
                f"{self.site} called attention {len(seen.calls)} times in one forward; expected once, as in "
                "sam2 1.1.0; install that version"
            )
        # predictors may share modules: the one at work in this thread is told, or else all that are not at work
        here = [seam for seam in self.seams if get_ident() in seam.threads]
        for seam in here or [seam for seam in self.seams if not seam.threads]:
            seam.tell_attention(self.site, *seen.calls[0])
        return out


class _AttentionSeen(TorchFunctionMode):
    """Notes what scaled dot product attention is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            self.calls.append((named["query"], named["key"], named["value"]))
        return func(*args, **kwargs)


# ---------------------------------------------------------------------- steps of the predictor

TRACK = "_run_single_frame_inference"
"""Method of sam2's predictor that tracks one object into a frame; it goes through all of `STEPS`."""


def _telling_methods(predictor: SAM2VideoPredictor, seam: Seam) -> dict[str, Callable[..., Any]]:
    """Make instance methods that set the seam's moment around the predictor's own, and tell what they make."""
    track = getattr(predictor, TRACK)
    encode, prepare, decode, remember = (getattr(predictor, name) for name in STEPS)

    def at_work(moment: Moment, state: Any) -> ExitStack:
        """Enter a step of the predictor; the stack leaves it."""
        stack = ExitStack()
        now, here = seam.now, get_ident()
        if here not in seam.threads:
            seam.threads.add(here)
            stack.callback(seam.threads.discard, here)
        stack.callback(setattr, now, "size", now.size)
        now.size = state["video_height"], state["video_width"]
        stack.enter_context(seam.at(moment))
        return stack

    def step(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        seam.tell("step", Step(STEPS[method.__name__], begins=True))
        made = method(*args, **kwargs)
        seam.tell("step", Step(STEPS[method.__name__], begins=False))
        return made

    @wraps(track)
    def track_and_tell(*args: Any, **kwargs: Any) -> Any:
        given = signature(track).bind(*args, **kwargs).arguments
        state, results = given["inference_state"], given["output_dict"]
        ids = tuple(
            state["obj_idx_to_id"][index]
            for index, known in state["output_dict_per_obj"].items()
            if known is results
        )
        with at_work(Moment(given["frame_idx"], ids, given["reverse"]), state):
            made = track(*args, **kwargs)
            seam.tell("tracked", Told(seam.now.moment, made[0]))
            return made

    @wraps(encode)
    def encode_and_tell(inference_state: Any, frame_idx: int, batch_size: int) -> Any:
        with at_work(Moment(frame_idx, (), seam.now.moment.reverse), inference_state):
            made = step(encode, inference_state, frame_idx, batch_size)
            seam.tell("encoded", Told(seam.now.moment, made))
            return made

    @wraps(prepare)
    def prepare_and_tell(*args: Any, **kwargs: Any) -> Any:
        given = signature(prepare).bind(*args, **kwargs).arguments
        if given["is_init_cond_frame"] or not predictor.num_maskmem:
            return step(prepare, *args, **kwargs)
        known, reverse = given["output_dict"], given.get("track_in_reverse", False)
        layout = memory_layout(predictor, given["frame_idx"], known, given["num_frames"], reverse)
        here = get_ident()

        def check(module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
            if get_ident() == here:  # or else it is somebody else's, who shares the module
                _check_memory(named["memory"], _pointer_tokens(named), layout, known)

        handle = predictor.memory_attention.register_forward_pre_hook(check, with_kwargs=True)
        try:
            with seam.at(replace(seam.now.moment, layouts=(layout,))):
                return step(prepare, *args, **kwargs)
        finally:
            handle.remove()

    @wraps(decode)
    def decode_and_tell(*args: Any, **kwargs: Any) -> Any:
        made = step(decode, *args, **kwargs)
        seam.tell("decoded", Told(seam.now.moment, made))
        return made

    @wraps(remember)
    def remember_and_tell(*args: Any, **kwargs: Any) -> Any:
        return step(remember, *args, **kwargs)

    telling = (encode_and_tell, prepare_and_tell, decode_and_tell, remember_and_tell)
    return {TRACK: track_and_tell, **dict(zip(STEPS, telling, strict=True))}


def _pointer_tokens(named: dict[str, Any]) -> int:
    """How many keys of memory attention are of object pointers, by its arguments, sam2's or transformers'."""
    found = "num_obj_ptr_tokens" if "num_obj_ptr_tokens" in named else "num_object_pointer_tokens"
    return int(named[found])


def _check_memory(memory: Tensor, pointer_tokens: int, layout: MemoryLayout, results: Any) -> None:
    """Hold a layout against the memory it describes, ``[keys, 1, C]``: every frame and pointer is where it says."""
    slices = []
    for index, entry in enumerate(layout.frames):
        features = stored_result(results, entry)["maskmem_features"]
        slices.append((index * layout.tokens, features[0].flatten(1).t()))
    for index, pointer in enumerate(layout.pointers):
        tokens = stored_result(results, pointer)["obj_ptr"].reshape(layout.pointer_tokens, -1)
        slices.append((layout.frame_keys + index * layout.pointer_tokens, tokens))
    right = len(memory) == layout.keys and pointer_tokens == layout.keys - layout.frame_keys
    for start, content in slices:
        held = memory[start : start + len(content), 0]
        right = right and torch.equal(held, content.to(held))
    if not right:
        raise RuntimeError(
            f"the memory bank of {len(memory)} keys is not laid out as expected ({layout.keys} keys of "
            f"{len(layout.frames)} frames and {len(layout.pointers)} pointers), as in sam2 1.1.0; install "
            "that version"
        )
