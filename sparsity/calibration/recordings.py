"""Read traces out of recordings, as ``efficient-sam2 probe`` writes them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from probes.errors import InputError
from probes.records import ClipInfo, ClipRecord, Header, ModelInfo, load_recording
from probes.tracking import hash_of_frames
from sparsity.calibration.clips import CalibrationClip, ClipSource
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
    return [_trace(clip, info, recording.header) for info, clip in recording]


def matching_traces(
    paths: Sequence[Path], source: ClipSource, names: Sequence[str]
) -> dict[str, Trace]:
    """Read what recordings hold of the clips `names`, and say on stderr which of theirs are none of these.

    Raises
    ------
    InputError
        A recording can't be read, or one of these names is of another clip there.
    """
    found: dict[str, Trace] = {}
    unused: list[str] = []
    for path in paths:
        recording = load_recording(path)
        for info in recording.header.clips:
            if info.name not in names:
                unused.append(info.name)
                continue
            recorded = recording.clip(info.name)
            _check_same(path, info, recorded, source.open(info.name))
            found[info.name] = _trace(recorded, info, recording.header)
    if unused:
        print(
            f"Recordings of {', '.join(unused)} are not used: the search is on other clips.",
            file=sys.stderr,
        )
    return found


def _check_same(path: Path, info: ClipInfo, recorded: ClipRecord, clip: CalibrationClip) -> None:
    """Refuse a recording of another clip by the same name, of a part of it, or of other objects."""
    video = clip.video
    given = {
        "frames": video.num_frames,
        "width": video.width,
        "height": video.height,
        "objects": clip.objects,
    }
    differing = [
        f"{what} {getattr(info, what)}, where the clip has {value}"
        for what, value in given.items()
        if getattr(info, what) != value
    ]
    if not differing and hash_of_frames(video, recorded.frame.tolist()) != info.video:
        differing = ["other pictures than the clip"]
    if differing:
        raise InputError(
            f"recording {path} has {info.name} with {differing[0]}; expected the clip itself; record it anew, or leave "
            "the recording out"
        )


def _trace(clip: ClipRecord, info: ClipInfo, header: Header) -> Trace:
    t, o, model = len(clip.frame), len(info.objects), header.model
    if bool(clip.reverse.any()) or len(clip.row_frame) != t * o:
        raise InputError(
            f"clip {info.name} was recorded backwards, or with objects that come later; expected all objects on its "
            "first frame, tracked forward; record it so"
        )
    order = np.lexsort((clip.row_object, clip.row_frame))

    def rows(values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values[order])).reshape(
            t, o, *values.shape[1:]
        )

    return Trace(
        info.name,
        model.fingerprint,
        WindowGrid(model.grid, model.window),
        tuple(int(frame) for frame in clip.frame),
        candidates=rows(clip.masks("candidates")),
        best=rows(clip.masks("best")),
        saliency=rows(clip.decoder_saliency),
        score=rows(clip.score),
        tracked=~rows(clip.conditioning),
        thumbnails=torch.from_numpy(clip.thumbnail),
        memory=_memory(clip, model, header.settings.keep_shares),
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
