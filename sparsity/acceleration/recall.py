"""Memory attention of a tracked frame: each object's memory is laid out, collected, read, and what was chosen remembered."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from probes.layout import stored_results
from sparsity.acceleration.model.bank import collect, plan
from sparsity.acceleration.model.memory_attention import Readers
from sparsity.acceleration.model.saliency import query_sample
from sparsity.acceleration.model.windows import window_tokens
from sparsity.acceleration.parts import Parts
from sparsity.acceleration.report import ObjectReport
from sparsity.acceleration.session import Frame
from sparsity.techniques import KEY
from sparsity.techniques.retrieval import (
    ALL_TOKENS,
    Retrieval,
    kept_tokens,
    prunable_frames,
    remember_choice,
)
from sparsity.techniques.routing import RESCUES


def recall(
    parts: Parts, frame: Frame, num_frames: int, feature: Tensor, position: Tensor
) -> Tensor:
    """Condition a frame's features on the memory of each tracked object.

    Parameters
    ----------
    num_frames
        Frames of the video.
    feature, position
        Of the frame, ``[tokens, C]``.

    Returns
    -------
    Tensor
        ``[objects, tokens, C]`` float32; the frame gets what is kept by a policy, the layouts and the recalls.
    """
    attention, model, now = parts.attention, parts.model, parts.seam.now
    retrieval = parts.here.used.retrieval if frame.objects else ALL_TOKENS
    stride, reverse = model.memory_temporal_stride_for_eval, frame.reverse
    frame.kept, frame.layouts = [], ()
    for outputs in frame.outputs:
        kept = parts.kept(outputs, frame.index, reverse)
        frame.kept += [] if kept is None else [kept]
        frame.layouts += (parts.layout(outputs, frame.index, num_frames, reverse, kept),)
    now.moment = replace(now.moment, layouts=frame.layouts)
    stored = list(map(stored_results, frame.outputs, frame.layouts))
    with torch.autocast(model.device.type, enabled=False):
        plans = []
        for outputs, layout, known in zip(frame.outputs, frame.layouts, stored, strict=True):
            tokens, measure = kept_tokens(layout, known, retrieval, stride, reverse)
            if frame.decision.reason in RESCUES:
                tokens = [None] * len(tokens)
            prompts = outputs["cond_frame_outputs"].values()
            plans.append(plan(model, layout, known, prompts, tokens, measure, attention.version))
        banks = collect(model, attention.dtype, plans)
        readers = _readers(retrieval, frame)
        queries = len(feature) if readers is None else len(readers.places)
        x, frame.recalls = attention(
            feature, position, banks, retrieval,
            exact=parts.here.used.exact, readers=readers, run=parts.run,
            sample=query_sample(queries, retrieval.queries, frame.index, feature.device),
        )  # fmt: skip
    counts = retrieval.counts(len(attention.layers), len(feature))
    for known, found in zip(stored, frame.recalls, strict=True):
        for f, chosen in found.chosen.items():
            remember_choice(known[f], chosen, counts, retrieval, reverse)
    return x


def _readers(retrieval: Retrieval, frame: Frame) -> Readers | None:
    """The tokens that read memory on a routed frame, where the profile asks for that and it can be had."""
    cells = frame.decision.cells
    if retrieval.readers == "all" or cells is None:
        return None
    added = [(before or {}).get(KEY, {}).get("readers") for before in frame.before]
    known = [one for one in added if one is not None]
    if len(known) < len(added):
        return None
    where = window_tokens(frame.grid, cells, known[0].device)
    return Readers(where.tokens, torch.stack(known))


def note_keys(said: ObjectReport, frame: Frame, b: int) -> None:
    """Enter into an object's report how many keys were read."""
    recall, layout = frame.recalls[b], frame.layouts[b]
    prunable = prunable_frames(layout)
    said.keys_used, said.keys_total = recall.keys_used, layout.keys
    said.memory_frames = [entry.frame for entry in layout.frames]
    said.pruned_frames, said.queries_share = recall.pruned_frames, recall.queries_share
    said.prunable_keys_total = prunable * layout.tokens
    kept = sum(recall.prunable_used) / max(1, len(recall.prunable_used))
    said.prunable_keys_used = kept + (prunable - said.pruned_frames) * layout.tokens
