"""Masks of a tracked frame: decoded, what they say about the next frame sent on its way to the host, and given out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import get_ident
from typing import Any

import torch
from sam2.modeling.sam.transformer import TwoWayTransformer
from torch import Tensor, nn

from probes.errors import InputError
from probes.seam import Told
from sparsity.acceleration.model.saliency import token_to_image
from sparsity.acceleration.parts import Parts
from sparsity.acceleration.recall import note_keys
from sparsity.acceleration.report import ObjectReport
from sparsity.acceleration.session import Frame, Result, Session
from sparsity.techniques import KEY
from sparsity.techniques.memory_policy import NAME, mark_on_host, mark_rows, worth
from sparsity.techniques.routing import cue_row, cues_on_host


def decode(
    parts: Parts,
    frame: Frame,
    heads: Callable[..., tuple[Tensor, ...]],
    features: Tensor,
    high_res: list[Tensor] | None,
    multimask: bool,
) -> tuple[Tensor, ...]:
    """Decode masks without prompts; where something is routed, the frame gets candidates and decoder saliency.

    Parameters
    ----------
    heads
        sam2's ``_forward_sam_heads``.
    features, high_res, multimask
        As it takes them.
    """
    routes, model = parts.here.routes, parts.model
    looks = routes and isinstance(
        getattr(model.sam_mask_decoder, "transformer", None), TwoWayTransformer
    )

    stable_below = parts.here.used.profile.memory_policy.stable_below if multimask else None

    def masks(given: tuple[Tensor, list[Tensor] | None]) -> tuple[Any, Tensor | None, Tensor]:
        features, fine = given
        with (
            token_to_image(model.sam_mask_decoder) if looks else nullcontext() as noted,
            _stable_masks(model.sam_mask_decoder, stable_below) as predicted,
        ):
            found = heads(features, None, None, fine, multimask)
        ious = predicted[-1] if predicted else found[2]
        if noted is None:
            return found, None, ious
        with parts.casting_once() if parts.rewritten("mask decoder") else nullcontext():
            return found, noted.saliency(model.sam_image_embedding_size), ious

    kind = "mask decoder", routes, multimask, stable_below
    found, frame.saliency, ious = parts.run(kind, masks, (features, high_res))
    told = found[6].flatten(1).amax(1)
    if routes:
        frame.candidates, frame.best = found[0], found[3][:, 0]
        told = _cue_rows(parts, frame, told)
        if "saliency" in parts.seam.listeners:
            parts.seam.tell("saliency", Told(parts.seam.now.moment, frame.saliency))
    _mark(frame, found)
    # on its way before the memory encoder runs, which the host then need not wait for
    frame.known, frame.ious = _to_host(told), _to_host(ious)
    frame.taken = _to_host(found[2].argmax(1)) if stable_below else None
    return found


@contextmanager
def _stable_masks(decoder: nn.Module, below: float | None) -> Iterator[list[Tensor]]:
    """Have sam2 choose among candidate masks by `worth`, in this thread and as long as the context lasts.

    The predicted IoUs ``[B, M]`` that this replaces are put into the list.
    """
    predicted: list[Tensor] = []
    if below is None:
        yield predicted
        return
    here = get_ident()  # predictors in other threads may share the decoder

    def choose(module: nn.Module, given: Any, found: tuple[Tensor, ...]) -> Any:
        if get_ident() != here:
            return found
        masks, ious, *others = found
        predicted.append(ious)
        return masks, worth(masks, ious, below), *others

    handle = decoder.register_forward_hook(choose)
    try:
        yield predicted
    finally:
        handle.remove()


def _mark(frame: Frame, found: tuple[Tensor, ...]) -> None:
    """Have what a memory policy asks of the results sent to the host."""
    if not frame.kept:
        return
    pointers = [
        [out["obj_ptr"] for t in kept.frames if (out := outputs["non_cond_frame_outputs"].get(t))]
        for outputs, kept in zip(frame.outputs, frame.kept, strict=True)
    ]
    frame.marks = _to_host(mark_rows(found[0], found[3][:, 0], found[5], pointers))


def _cue_rows(parts: Parts, frame: Frame, scores: Tensor) -> Tensor:
    """What each object's result says about the next frame, `sparsity.techniques.routing.cue_row` of each."""
    rule, grid, best = parts.here.used.profile.routing, frame.grid, frame.best
    assert rule is not None and best is not None, "candidates come with the best one"
    last: list[Tensor | None] = [None] * len(scores)
    if parts.here.used.profile.guard.mask_jump is not None:
        last = [
            None if out is None else out["pred_masks"].to(best.device)[0, 0] for out in frame.before
        ]

    def rows(given: tuple[Any, ...]) -> Tensor:
        candidates, best, last, saliency, scores = given
        return torch.stack(
            [
                cue_row(
                    candidates[b], best[b], last[b], None if saliency is None else saliency[b],
                    scores[b], grid, rule,
                )
                for b in range(len(scores))
            ]
        )  # fmt: skip

    given = frame.candidates, best, last, frame.saliency, scores
    return parts.run(("cues", rule, grid), rows, given)


def hand_out(
    parts: Parts, session: Session, frame: Frame, together: dict[str, Any], logits: Tensor
) -> list[Result]:
    """Give every object its part of a batched result, with what techniques remember of it, and enter it into the report."""
    cues, rule, model = None, parts.here.used.profile.routing, parts.model
    if frame.known is None:  # the client's own method decoded
        if parts.here.used.profile.memory_policy.stable_below:
            raise InputError(
                "memory_policy.stable_below given, but the client's own method decodes masks; expected sam2's "
                "_forward_sam_heads, whose choice it changes; set it to null"
            )
        known = together["object_score_logits"].flatten(1).amax(1)
    else:
        known = frame.known()
    if frame.candidates is not None:
        cues = cues_on_host(known, frame.grid)
    ious = frame.ious().tolist() if frame.ious else [[] for _ in frame.objects]
    scores = known.tolist() if cues is None else [cue.score for cue in cues]
    taken = frame.taken().tolist() if frame.taken else [None] * len(scores)
    report = session.frame_report(frame.index, frame.reverse, frame.decision, frame.grid)
    marks = frame.marks().tolist() if frame.marks else None
    found: list[Result] = []
    for b, score in enumerate(scores):
        notes: dict[str, Any] = {} if cues is None else {"routing": (cues[b], rule)}
        said = report.objects[frame.ids[b]] = ObjectReport(score, ious=ious[b], taken=taken[b])
        if (before := frame.before[b]) is not None and KEY in before:
            before[KEY].pop("readers", None)  # handed on; it is as large as a frame's features
        if frame.recalls:
            if frame.recalls[b].added is not None:
                notes["readers"] = frame.recalls[b].added
            note_keys(said, frame, b)
        if session.corrections == "keep":
            outputs = frame.outputs[b]
            notes["from"] = parts.made_from(frame.state, outputs, frame.index, frame.reverse)
        if marks is not None:
            mark = mark_on_host(marks[b], score, said.iou)
            notes[NAME] = frame.kept[b].after(
                frame.index, mark, model.num_maskmem - 1, model.memory_temporal_stride_for_eval
            )
        part = {key: _part_of(value, b) for key, value in together.items()}
        found.append(({**part, KEY: notes}, logits[b : b + 1]))
    return found


def _part_of(value: Any, b: int) -> Any:
    """One object's part of a batched result."""
    if isinstance(value, Tensor):
        return value[b : b + 1]
    return [item[b : b + 1] for item in value] if isinstance(value, list) else value


def _to_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the host; what is returned waits for it, but not for what the device is given later."""
    if tensor.device.type != "cuda":
        return lambda: tensor
    copied = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copied.copy_(tensor, non_blocking=True)
    there = torch.cuda.Event()
    there.record(torch.cuda.current_stream(tensor.device))

    def arrived() -> Tensor:
        there.synchronize()
        return copied

    return arrived
