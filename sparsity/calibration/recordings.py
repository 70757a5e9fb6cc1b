"""Read traces out of recordings, as ``efficient-sam2 probe`` writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from probes.errors import InputError
from probes.records import ClipRecord, ModelInfo, load_recording
from sparsity.calibration.traces import MemoryTrace, Trace
from sparsity.select import WindowGrid, keep_count


def read_traces(path: Path) -> list[Trace]:
    """Read the clips of a recording.

    Raises
    ------
    InputError
        It can't be read, or a clip was tracked backwards or with objects that come later.
    """
    recording = load_recording(path)
    header = recording.header
    return [
        _trace(clip, info.name, info.objects, header.model, header.settings.keep_shares)
        for info, clip in recording
    ]


def _trace(
    clip: ClipRecord,
    name: str,
    objects: tuple[int, ...],
    model: ModelInfo,
    shares: tuple[float, ...],
) -> Trace:
    t, o = len(clip.frame), len(objects)
    if bool(clip.reverse.any()) or len(clip.row_frame) != t * o:
        raise InputError(
            f"clip {name} was recorded backwards, or with objects that come later; expected all objects on its "
            "first frame, tracked forward; record it so"
        )
    order = np.lexsort((clip.row_object, clip.row_frame))

    def rows(values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values[order])).reshape(
            t, o, *values.shape[1:]
        )

    return Trace(
        name,
        model.fingerprint,
        WindowGrid(model.grid, model.window),
        tuple(int(frame) for frame in clip.frame),
        candidates=rows(clip.masks("candidates")),
        best=rows(clip.masks("best")),
        saliency=rows(clip.decoder_saliency),
        score=rows(clip.score),
        tracked=~rows(clip.conditioning),
        thumbnails=torch.from_numpy(clip.thumbnail),
        memory=_memory(clip, model, shares),
    )


def _memory(clip: ClipRecord, model: ModelInfo, shares: tuple[float, ...]) -> MemoryTrace | None:
    """Mass recall by age; between the recorded shares it is taken to be straight."""
    age = np.abs(clip.row_frame[:, None] - clip.memory_frame)  # [n, slots]
    there = clip.memory_frame >= 0
    conditioning = np.arange(age.shape[1])[None] == 0
    prunable = there & ~conditioning & (age > 1)
    finite = np.isfinite(clip.recall.astype(np.float32)).all((1, 3))
    ages = sorted({int(a) for a in age[prunable & finite]})
    if not ages:
        return None
    tokens = model.grid**2
    counts = [keep_count(share, tokens) for share in shares]
    curve = np.empty((model.layers, len(ages), tokens))
    for index, wanted in enumerate(ages):
        row, slot = np.nonzero(prunable & finite & (age == wanted))
        mean = clip.recall[row, :, slot].astype(np.float64).mean(0)  # [layers, shares]
        for layer in range(model.layers):
            curve[layer, index] = np.interp(
                np.arange(1, tokens + 1), [0, *counts], [0.0, *mean[layer]]
            )
    called = ~clip.conditioning
    exposure = np.where(prunable[:, None], clip.slot_share[:, :, :-1], 0.0).sum(-1)[called].mean(0)
    # pointers are left out: they are few, and their number isn't recorded
    keys = there.sum(1).astype(np.int64)[called] * tokens
    return MemoryTrace(
        curve, tuple(ages), exposure.astype(np.float32), keys, prunable.sum(1)[called]
    )
