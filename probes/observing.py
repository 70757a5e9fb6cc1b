"""Observing attention, on a stock and on an accelerated predictor alike.

sam2 calls attention in three places, all through ``F.scaled_dot_product_attention``. While observed, each
attention module has an instance ``forward`` that enters a `TorchFunctionMode` for the length of the
original call and sees the one call inside. What the accelerated predictor computes by itself it tells its
own seam. Either way the same `AttentionCall` arrives, and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from inspect import signature
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probes.errors import InputError
from probes.layout import MemoryLayout, memory_layout, stored_result
from probes.seam import AttentionCall as AttentionCall
from probes.seam import Moment as Moment
from probes.seam import Observer as Observer
from probes.seam import Seam as Seam
from probes.sites import AttentionSite, attention_sites, find_sites


@contextmanager
def observe(
    predictor: SAM2VideoPredictor, callback: Observer, sites: str | Sequence[str] = "memory.*"
) -> Iterator[None]:
    """Hand every attention call of some sites to a callback, as long as the context lasts.

    Results don't change by a bit. Contexts nest, and all observers are told. Tensors of a call are the
    model's own: reduce them at once or clone them. Calls of the same modules from elsewhere, as by an image predictor or
    by another video predictor between this one's steps, are told without a frame.

    Parameters
    ----------
    predictor
        A stock ``SAM2VideoPredictor`` or an accelerated one; not compiled.
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
    _check(predictor)
    wanted = {site.name: site for site in find_sites(predictor, sites)}

    def told(call: AttentionCall) -> None:
        if call.site in wanted:
            callback(replace(call, where=wanted[call.site]))

    seam = _open_seam(predictor)
    seam.observers += (told,)
    try:
        yield
    finally:
        seam.observers = tuple(other for other in seam.observers if other is not told)
        if not seam.observers:
            _close_seam(predictor, seam)


def _check(predictor: SAM2VideoPredictor) -> None:
    if not isinstance(predictor, SAM2VideoPredictor):
        raise InputError(
            f"a {type(predictor).__name__} was given; observe takes a SAM 2 video predictor; build one "
            "with build_predictor"
        )
    for name, module in predictor.named_modules():
        own = module.__dict__.get("forward")
        compiled = (
            module._compiled_call_impl is not None
            or "OptimizedModule" in type(module).__name__
            or getattr(module, "compiled", False)
        )
        if compiled or (own is not None and not isinstance(own, _Tap)):
            raise InputError(
                f"{name or 'the predictor'} is compiled or has a forward of its own; attention can't be seen "
                "inside it; observe a predictor that is built without vos_optimized and not compiled"
            )


# ---------------------------------------------------------------------- attention modules


class _Tap:
    """Stands in for the forward of one attention module and tells all seams that listen."""

    def __init__(self, site: AttentionSite) -> None:
        self.site, self.original = site.name, site.module.forward
        self.seams: list[Seam] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        with _AttentionSeen() as seen:
            out = self.original(*args, **kwargs)
        if len(seen.calls) != 1:
            raise RuntimeError(
                f"{self.site} called attention {len(seen.calls)} times in one forward; expected once, as in "
                "sam2 1.1.0; install that version"
            )
        # predictors may share modules: the one at work in this thread is told, or else all that are not at work
        here = [seam for seam in self.seams if seam.running == get_ident()]
        for seam in here or [seam for seam in self.seams if seam.running is None]:
            seam.tell(self.site, *seen.calls[0])
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


def _open_seam(predictor: SAM2VideoPredictor) -> Seam:
    """Return the predictor's seam, everything in place that tells it."""
    own = predictor.__dict__.get("_seam")  # of an accelerated predictor
    seam: Seam = predictor.__dict__.setdefault("_observed", Seam() if own is None else own)
    if not seam.observers:
        for site in attention_sites(predictor):
            tap = site.module.__dict__.setdefault("forward", _Tap(site))
            tap.seams.append(seam)
        predictor.__dict__.update(_telling_methods(predictor, seam))
    return seam


def _close_seam(predictor: SAM2VideoPredictor, seam: Seam) -> None:
    """Take away what `_open_seam` put in place."""
    for site in attention_sites(predictor):
        tap = site.module.__dict__["forward"]
        tap.seams.remove(seam)
        if not tap.seams:
            del site.module.__dict__["forward"]
    for name in ("_observed", *_TELLING):
        del predictor.__dict__[name]


# ---------------------------------------------------------------------- when it happens

_TELLING = (
    "_run_single_frame_inference",
    "_get_image_feature",
    "_prepare_memory_conditioned_features",
)
"""Methods of the predictor that know the frame, the object and the memory."""


def _telling_methods(predictor: SAM2VideoPredictor, seam: Seam) -> dict[str, Callable[..., Any]]:
    """Make instance methods that set the seam's moment around the predictor's own."""
    track, encode, prepare = (getattr(predictor, name) for name in _TELLING)

    def at_work(moment: Moment, state: Any) -> ExitStack:
        """Enter a step of the predictor; the stack leaves it."""
        stack = ExitStack()
        stack.callback(setattr, seam, "running", seam.running)
        stack.callback(setattr, seam, "size", seam.size)
        seam.running, seam.size = get_ident(), (state["video_height"], state["video_width"])
        stack.enter_context(seam.at(moment))
        return stack

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
            return track(*args, **kwargs)

    @wraps(encode)
    def encode_and_tell(inference_state: Any, frame_idx: int, batch_size: int) -> Any:
        with at_work(Moment(frame_idx, (), seam.moment.reverse), inference_state):
            return encode(inference_state, frame_idx, batch_size)

    @wraps(prepare)
    def prepare_and_tell(*args: Any, **kwargs: Any) -> Any:
        given = signature(prepare).bind(*args, **kwargs).arguments
        if given["is_init_cond_frame"] or not predictor.num_maskmem:
            return prepare(*args, **kwargs)
        # an accelerated predictor passes the results of several objects at once
        results = getattr(given["output_dict"], "outputs", [given["output_dict"]])
        reverse = given.get("track_in_reverse", False)
        layouts = tuple(
            memory_layout(predictor, given["frame_idx"], known, given["num_frames"], reverse)
            for known in results
        )

        def check(module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
            if seam.running != get_ident():
                return  # somebody else's, who shares the module
            (known,), (layout,) = results, layouts  # stock runs one object at a time
            _check_memory(named["memory"], named["num_obj_ptr_tokens"], layout, known)

        handle = predictor.memory_attention.register_forward_pre_hook(check, with_kwargs=True)
        try:
            with seam.at(replace(seam.moment, layouts=layouts)):
                return prepare(*args, **kwargs)
        finally:
            handle.remove()

    return dict(zip(_TELLING, (track_and_tell, encode_and_tell, prepare_and_tell), strict=True))


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
