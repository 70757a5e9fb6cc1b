"""Listening to a predictor, stock and accelerated alike: attention calls above all, and the steps around them.

sam2 calls attention in three places, all through ``F.scaled_dot_product_attention``. While observed, each
attention module has an instance ``forward`` that enters a `TorchFunctionMode` for the length of the
original call and sees the one call inside. What the accelerated predictor computes by itself it tells its
own seam (`probes.seam`). Either way the same `AttentionCall` arrives, and nothing is left behind. Who observes changes
nothing; who wants to change something says `edit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from threading import get_ident
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from probes.errors import InputError, tell_left_out
from probes.layout import check_memory, memory_layout
from probes.seam import ATTENTION, AttentionCall, Change, Editor, Moment, Seam, Step, Told
from probes.sites import AttentionSite, attention_sites, find_sites
from probes.transformers_model import AttentionSeen, TransformersPredictor, stand_in

STEPS = {
    "_get_image_feature": "image encoder",
    "_prepare_memory_conditioned_features": "memory attention",
    "_forward_sam_heads": "mask decoder",
    "_encode_new_memory": "memory encoder",
}
"""Methods of sam2's predictor that a tracked frame goes through, none inside another, and what each is called."""


@contextmanager
def listen(predictor: SAM2VideoPredictor, **callbacks: Callable[[Any], Any]) -> Iterator[None]:
    """Hand what happens inside a predictor to callbacks, each under the kind of what it hears, while the context lasts.

    Results don't change by a bit. Contexts nest, and all that listen are told. Tensors are the model's own: reduce
    them at once or clone them.

    ==============  ==================================================================================
    kind            what the callback is given
    ==============  ==================================================================================
    ``attention``   an `AttentionCall`; `observe` listens to those of some sites alone
    ``gradients``   the same, its tensors with their gradients
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
    _check(predictor, attention=not ATTENTION.isdisjoint(callbacks))
    seam: Seam = predictor.__dict__.get("seam") or predictor.__dict__.get(OBSERVED) or Seam()
    before = dict(seam.listeners)
    seam.add(callbacks)
    _put_in_place(predictor, seam, before)
    try:
        yield
    finally:
        before = dict(seam.listeners)
        seam.remove(callbacks)
        _take_away(predictor, seam, before)


@contextmanager
def observe(
    predictor: SAM2VideoPredictor,
    callback: Callable[[AttentionCall], None],
    sites: str | Sequence[str] = "memory.*",
    *,
    gradients: bool = False,
) -> Iterator[None]:
    """Hand every attention call of some sites to a callback, as long as the context lasts.

    Results don't change by a bit. Contexts nest, and all observers are told. Tensors of a call are the
    model's own: reduce them at once or clone them. Calls of the same modules from elsewhere, as by an image predictor or
    by another video predictor between this one's steps, are told without a frame. Where a call is edited (`edit`), what
    is told is what the edits left of it, whichever context was entered first.

    Parameters
    ----------
    predictor
        A stock ``SAM2VideoPredictor`` or an accelerated one, or a ``Sam2VideoModel`` of transformers; not compiled.
    callback
        Called with an `AttentionCall` each time, under the run's autocast and inference mode.
    sites
        Pattern or patterns of site names (`fnmatch`), such as ``"memory.*"``, ``"decoder.final.*"`` or
        ``"*.global"``.
    gradients
        Tell q, k and v as they stand in the graph, for ``torch.autograd.grad`` and ``retain_grad``. sam2's methods then
        run without the inference mode they are declared with, for as long as the context lasts: on a stock predictor,
        and a video that was begun inside. Memory grows with each frame, as gradients reach back through the memory bank.
        `probes.gradients` has one frame's.

    Raises
    ------
    InputError
        A pattern matches no site, the predictor is compiled, or it is no video predictor. With `gradients`: it is
        accelerated; or, from inside the run, the caller is under inference mode or without gradients, or the video was
        begun so.
    RuntimeError
        From inside the run: an attention module did not call attention exactly once, or the memory does
        not hold what its layout says. Either means that sam2 is another one than was expected.
    """
    predictor = stand_in(predictor)
    _check(predictor, attention=True)
    wanted = {site.name: site for site in find_sites(predictor, sites)}

    def told(call: AttentionCall) -> None:
        if gradients and not torch.is_grad_enabled():  # never is under inference mode
            raise InputError(
                f"{call.site} ran without gradients, but gradients were asked for; expected a run outside of "
                "torch.inference_mode and torch.no_grad; leave them"
            )
        if call.site in wanted:
            callback(replace(call, where=wanted[call.site]))

    with ExitStack() as stack:
        if gradients:
            stack.enter_context(_without_inference_mode(predictor))
        stack.enter_context(listen(predictor, **{"gradients" if gradients else "attention": told}))
        yield


@contextmanager
def edit(
    predictor: SAM2VideoPredictor, function: Change, sites: str | Sequence[str] = "memory.*"
) -> Iterator[Editor]:
    """Change what attention does at some sites, as long as the context lasts.

    The function is given every call of these sites before it is computed, and returns what is computed instead:
    ``call.change(q=…)`` (k, v, weights, output), ``call.keep(keys)``, or None to leave it. `probes.edits` has ready ones.

    Contexts nest: each is given what those before it left, and whoever observes is told of what all of them left. After
    the context the predictor is what it was, also after an exception. What a video's state remembers of the frames that
    were tracked (memories, object pointers; with a profile that reuses windows, what these gave) was made under the edit
    and stays; features of a frame in sam2's cache are made anew inside the context, and those from before put back.

    An accelerated predictor takes paths on which every call passes by: no CUDA graphs, one video at a time, and where
    stages 1 and 2 of the encoder are edited, these run whole. Saliency that routing and retrieval go by is measured
    from q and k as they were. Windows and keys that a profile leaves out are not in the call (`AttentionCall.keys`).

    Parameters
    ----------
    predictor
        A stock ``SAM2VideoPredictor`` or an accelerated one; not compiled. One that shares its modules is not edited.
    function
        From an `AttentionCall` to the changed call, or None. Its batch rows are those of ``call.moment.objects``, one or
        several of them. Tensors of the call are not to be changed in place.
    sites
        Patterns of site names, as `observe` takes them.

    Yields
    ------
    Editor
        Counts calls that came and calls that were changed. If none came at all, a `probes.errors.LeftOut` warning says so.

    Raises
    ------
    InputError
        As `observe`; a ready edit can't be had at one of the sites; or, from inside the run, the function returned what
        can't be computed, or an edited module was called from elsewhere (another predictor that shares it, an image
        predictor), which the edit does not hold for.
    """
    _check(predictor, attention=True)
    editor = Editor(function, {site.name: site for site in find_sites(predictor, sites)})
    if isinstance(function, Ready):
        for site in editor.sites.values():
            function.check(site)
    try:
        with listen(predictor, edit=editor):
            yield editor
    finally:
        editor.end()
    if not editor.calls:
        named = sites if isinstance(sites, str) else ", ".join(sites)
        tell_left_out([f"an edit of {named} was given no call: none of these sites ran"])


@dataclass(frozen=True)
class Ready:
    """An edit that looks at the sites before anything runs.

    Attributes
    ----------
    change
        What `edit` takes.
    check
        Raises `InputError` where it can't be had at a site.
    """

    change: Change
    check: Callable[[AttentionSite], None]

    def __call__(self, call: AttentionCall) -> AttentionCall | None:
        """Change a call."""
        return self.change(call)


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
    if seam.watched and ATTENTION.isdisjoint(before):
        theirs = isinstance(predictor, TransformersPredictor)
        for site in attention_sites(predictor):
            tap = site.module.__dict__.setdefault(
                "forward", _Tap(site, AttentionSeen if theirs else _Passing)
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
    if not ATTENTION.isdisjoint(before) and not seam.watched:
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


# ---------------------------------------------------------------------- gradients


@contextmanager
def _without_inference_mode(predictor: SAM2VideoPredictor) -> Iterator[None]:
    """Let sam2's methods run without the inference mode they are declared with."""
    if "seam" in predictor.__dict__:
        raise InputError(
            "an accelerated predictor was given, but its rewrites have no gradients; expected a stock predictor; pass the "
            "one that it was made from"
        )
    if isinstance(predictor, TransformersPredictor):
        raise InputError(
            "a Sam2VideoModel was given; expected sam2's own predictor for gradients; load its weights with build_predictor"
        )
    plain_tensors(predictor)
    kind = type(predictor)
    declared = {
        name: method
        for name in dir(kind)
        if callable(method := getattr(kind, name))
        and hasattr(method, "__wrapped__")
        and method.__globals__["__name__"] == "torch.utils._contextlib"
    }

    def lifted(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            state = args[0] if args else kwargs.get("inference_state")
            if isinstance(state, dict) and any(
                isinstance(leaf, Tensor) and leaf.is_inference() for leaf in tree_leaves(state)
            ):
                raise InputError(
                    "the video was begun under inference mode, so nothing has gradients through it; expected one that was "
                    "begun inside observe(…, gradients=True); begin it there with init_state"
                )
            return method.__wrapped__(self, *args, **kwargs)  # type: ignore[attr-defined]

        return run

    mine = {name: m for name, m in declared.items() if name not in predictor.__dict__}
    predictor.__dict__.update({n: MethodType(lifted(m), predictor) for n, m in mine.items()})
    try:
        yield
    finally:
        for name in mine:
            del predictor.__dict__[name]


def plain_tensors(predictor: SAM2VideoPredictor) -> None:
    """Replace what modules computed for themselves under inference mode, such as rotary phases, by copies for autograd.

    Equal bit for bit; inference tensors can't take part in a graph.
    """
    for module in predictor.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.is_inference():
                setattr(module, name, value.clone())


# ---------------------------------------------------------------------- attention modules


class _Tap:
    """Stands in for the forward of one attention module: its call passes by all seams that listen."""

    def __init__(self, site: AttentionSite, passing: Callable[[str, list[Seam]], Any]) -> None:
        self.site, self.original, self.passing = site.name, site.module.forward, passing
        self.seams: list[Seam] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        # predictors may share modules: the one at work in this thread is told, or else all that are not at work
        here = [seam for seam in self.seams if get_ident() in seam.threads]
        if not here and any(self.site in one.sites for s in self.seams for one in s.editors()):
            raise InputError(
                f"{self.site} is edited, but was called from outside the edited predictor's own steps; expected it to be at "
                "work alone; leave the context of edit before another predictor or code of your own uses its modules"
            )
        passing = self.passing(self.site, here or [seam for seam in self.seams if not seam.threads])
        with passing:
            out = self.original(*args, **kwargs)
        if len(passing.calls) != 1:
            raise RuntimeError(
                f"{self.site} called attention {len(passing.calls)} times in one forward; expected once, as in "
                "sam2 1.1.0; install that version"
            )
        for seam, call in passing.calls[0]:
            seam.tell_attention(call)
        return out


class _Passing(TorchFunctionMode):
    """Has what scaled dot product attention is given edited, computes what comes of it, and notes it."""

    def __init__(self, site: str, seams: list[Seam]) -> None:
        super().__init__()
        self.site, self.seams = site, seams
        self.calls: list[list[tuple[Seam, AttentionCall]]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = [kwargs.pop(name) for name in ("query", "key", "value")[len(args) :]]
        q, k, v, *rest = [*args, *given]
        seen = [(seam, seam.edited(seam.call(self.site, q, k, v))) for seam in self.seams]
        self.calls.append(seen)
        for _, made in seen:  # one, where there is an edit
            if made.weights is not None or made.output is not None:
                return made.attended()
            q, k, v = made.q, made.k, made.v
        return func(q, k, v, *rest, **kwargs)


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
        for editor in seam.editors("encoder."):
            editor.begin_afresh(inference_state)
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
                check_memory(named, layout, known)

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
