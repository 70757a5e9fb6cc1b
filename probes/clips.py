"""One clip of a recording: its arrays, their forms, and the strict reader of its shard. No torch.

Sizes: T tracked frames, n rows (a tracked object on a frame), L layers of memory attention, g tokens per side
of the token grid (N = g * g), W windows of encoder stage 3, P memory slots (0: nearest conditioning frame,
1 oldest to 6 newest), G keep shares, H most heads, K statistics, M candidate masks, s = 4 g pixels per side
of a low-resolution mask.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from probes.errors import InputError
from probes.header import SLOTS, Array, ClipInfo, Header


@dataclass(frozen=True)
class ClipRecord:
    """What was observed on one clip. Rows are in the order of tracking; NaN and -1 mean "does not exist".

    Attributes
    ----------
    frame
        int32 ``[T]``: indices of the tracked frames, in the order of tracking.
    thumbnail
        float32 ``[T, 3, 16, 16]`` in units of full scale.
    stage2_change, stage3_change
        float32 ``[T, W]``: mean |difference| of the stage's output to the frame before, per stage-3 window.
    encoder_mass
        float16 ``[T, map_sites, g, g]``: key mass times N (1 is uniform), mean over heads.
    stage3_mass
        float16 ``[T, g, g]``: the same, mean over the windowed blocks of encoder stage 3.
    encoder_statistics
        float32 ``[T, encoder_sites, H, K]``.
    row_frame, row_object
        int32 ``[n]``: which object on which frame a row is.
    conditioning, reverse
        bool ``[n]``: prompted, tracked backwards.
    score
        float32 ``[n]``: object-score logit.
    iou
        float32 ``[n, M]``: predicted IoU of the candidates; NaN where there are fewer.
    candidates, best
        uint8 ``[n, M, s * s / 8]`` and ``[n, s * s / 8]``: masks (logit > 0) as packed bits; see `masks`.
    decoder_saliency
        float32 ``[n, g, g]``: token-to-image attention, mean over layers, heads and output tokens; sums
        to one.
    object_statistics
        float32 ``[n, object_sites, H, K]``; `lift` is against the row's own mask.
    memory_frame
        int32 ``[n, P]``: frame in each memory slot.
    slot_share
        float32 ``[n, L, P + 1]``: joint attention mass of each slot and of the pointers; sums to one.
    first_frame, first_saliency
        int32 ``[n]`` and float16 ``[n, L, N]``: the memory frame recalled for the first time now, and its
        conditional key mass times N (method of SMR: softmax over that frame's own keys).
    recall
        float16 ``[n, L, P, G]``: conditional key mass that the top tokens of the *first* recollection catch now.
    joint_recall
        The same of the frame's joint mass (softmax over all keys), renormalised inside the frame.
    oracle_recall
        The same with the top tokens chosen anew now.
    similarity
        float16 ``[n, L, P, 4]``: cosine (the paper's CS), cosine with the tokens shuffled, Pearson correlation,
        Jaccard of the top-10 % sets; each between first recollection and now.
    rows, row_scale
        By site, raw attention rows as uint8 and their maxima as float32; see `attention_rows`.
    """

    frame: Array
    thumbnail: Array
    stage2_change: Array
    stage3_change: Array
    encoder_mass: Array
    stage3_mass: Array
    encoder_statistics: Array
    row_frame: Array
    row_object: Array
    conditioning: Array
    reverse: Array
    score: Array
    iou: Array
    candidates: Array
    best: Array
    decoder_saliency: Array
    object_statistics: Array
    memory_frame: Array
    slot_share: Array
    first_frame: Array
    first_saliency: Array
    recall: Array
    joint_recall: Array
    oracle_recall: Array
    similarity: Array
    rows: dict[str, Array]
    row_scale: dict[str, Array]

    def masks(self, which: Literal["best", "candidates"] = "best") -> Array:
        """Unpack masks: bool ``[n, s, s]``, or ``[n, M, s, s]`` for the candidates."""
        packed: Array = getattr(self, which)
        side = 4 * self.decoder_saliency.shape[-1]
        bits = np.unpackbits(packed, axis=-1, count=side * side)
        return bits.reshape(*packed.shape[:-1], side, side).astype(bool)

    def row(self, frame: int, object_id: int) -> int:
        """Index of the row of an object on a frame, the last one where it was tracked twice.

        Raises
        ------
        InputError
            It was not tracked there.
        """
        found = np.flatnonzero((self.row_frame == frame) & (self.row_object == object_id))
        if not len(found):
            raise InputError(
                f"object {object_id} on frame {frame} was asked for; the clip has objects "
                f"{sorted(set(self.row_object.tolist()))} on frames {self.row_frame.min()} to "
                f"{self.row_frame.max()}; choose one of them"
            )
        return int(found[-1])

    def attention_rows(self, site: str, index: int) -> Array:
        """Raw rows of a site on a frame (encoder: index into `frame`) or row (else), float32.

        Encoder ``[Q, r, r]``, memory ``[Q, P, r, r]``, decoder ``[output tokens, r, r]``: mean over heads,
        summed inside each of r x r cells.
        """
        levels = self.rows[site][index].astype(np.float32) / 255
        scale = self.row_scale[site][index]
        return levels**2 * scale.reshape(*scale.shape, *(1,) * (levels.ndim - scale.ndim))


def read_shard(path: Path, header: Header, info: ClipInfo) -> ClipRecord:
    """Read a clip's arrays and hold them against the header."""
    damaged = f"recording shard {path} is damaged"
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != info.sha256:
            raise InputError(
                f"{damaged}: its hash differs from the header's; record the clip again"
            )
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{damaged} ({type(error).__name__}); record the clip again") from None
    expected = array_forms(header, arrays)
    for name, (dtype, shape) in expected.items():
        array = arrays.get(name)
        if array is None or array.dtype != dtype or array.shape != shape:
            found = "absent" if array is None else f"{array.dtype} {array.shape}"
            raise InputError(
                f"{damaged}: {name} is {found}; expected {dtype} {shape}; record the clip again"
            )
    unknown = [name for name in arrays if name not in expected and "/" not in name]
    if unknown:
        raise InputError(f"{damaged}: it holds unknown arrays {unknown}; record the clip again")
    parts: dict[str, Any] = {"rows": {}, "row_scale": {}}
    for name, array in arrays.items():
        if "/" in name:
            group, site = name.split("/", 1)
            parts[group][site] = array
        else:
            parts[name] = array
    return ClipRecord(**parts)


def array_forms(header: Header, arrays: dict[str, Array]) -> dict[str, tuple[np.dtype, tuple]]:
    """Dtype and shape of every array of a shard, by the header and the numbers of frames, rows and heads."""
    model, settings = header.model, header.settings
    t, n = len(arrays.get("frame", ())), len(arrays.get("row_frame", ()))
    heads = [arrays[k].shape[2] for k in ("encoder_statistics", "object_statistics") if k in arrays]
    h_encoder, h_object = (*heads, 0, 0)[:2]
    candidates = arrays["iou"].shape[1] if "iou" in arrays else 0
    g, layers, slots = model.grid, model.layers, len(SLOTS) - 1
    windows = (-(-g // model.window)) ** 2
    bits, k, shares = -(-16 * g * g // 8), len(settings.statistics), len(settings.keep_shares)
    recall = ("float16", (n, layers, slots, shares))
    forms: dict[str, tuple[str, tuple]] = {
        "frame": ("int32", (t,)),
        "thumbnail": ("float32", (t, 3, 16, 16)),
        "stage2_change": ("float32", (t, windows)),
        "stage3_change": ("float32", (t, windows)),
        "encoder_mass": ("float16", (t, len(settings.map_sites), g, g)),
        "stage3_mass": ("float16", (t, g, g)),
        "encoder_statistics": ("float32", (t, len(settings.encoder_sites), h_encoder, k)),
        "row_frame": ("int32", (n,)),
        "row_object": ("int32", (n,)),
        "conditioning": ("bool", (n,)),
        "reverse": ("bool", (n,)),
        "score": ("float32", (n,)),
        "iou": ("float32", (n, candidates)),
        "candidates": ("uint8", (n, candidates, bits)),
        "best": ("uint8", (n, bits)),
        "decoder_saliency": ("float32", (n, g, g)),
        "object_statistics": ("float32", (n, len(settings.object_sites), h_object, k)),
        "memory_frame": ("int32", (n, slots)),
        "slot_share": ("float32", (n, layers, slots + 1)),
        "first_frame": ("int32", (n,)),
        "first_saliency": ("float16", (n, layers, g * g)),
        "recall": recall,
        "joint_recall": recall,
        "oracle_recall": recall,
        "similarity": ("float16", (n, layers, slots, 4)),
    }
    assert set(forms) == {f.name for f in fields(ClipRecord)} - {"rows", "row_scale"}
    return {name: (np.dtype(dtype), shape) for name, (dtype, shape) in forms.items()}
