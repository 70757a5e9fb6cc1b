"""What each key of memory attention is: memory frame, age, slot, pointer. Derived from SAM 2's own rules.

The memory bank is not "seven frames": all conditioning frames come first, in the order in which they were
added, then the remembered frames from oldest to newest, then the object pointers, several tokens each
(sam2 1.1.0, ``modeling/sam2_base.py``, ``_prepare_memory_conditioned_features``).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import select_closest_cond_frames
from torch import Tensor


@dataclass(frozen=True)
class MemoryFrame:
    """One frame of the memory bank.

    Attributes
    ----------
    frame
        Its index in the video.
    position
        Temporal position: 0 for conditioning frames, else 1 (oldest) to 6 (newest).
    age
        Distance to the current frame, in frames.
    conditioning
        Whether the frame was prompted.
    newest
        Whether it is the frame adjacent to the current one.
    """

    frame: int
    position: int
    age: int
    conditioning: bool
    newest: bool

    @property
    def slot(self) -> str:
        """``"prompt"``, or ``"1"`` (oldest) to ``"6"`` (newest)."""
        return "prompt" if self.position == 0 else str(self.position)


@dataclass(frozen=True)
class Pointer:
    """One object pointer: its frame, its signed distance in frames as the encoder sees it, and whether it is a prompt's."""

    frame: int
    distance: int
    conditioning: bool


@dataclass(frozen=True)
class MemoryLayout:
    """The keys of one memory cross-attention call, in order.

    Frame ``i`` holds keys ``[i * tokens, (i + 1) * tokens)``; pointer ``j`` the next `pointer_tokens` each.
    `pointer_limit` is the greatest number of pointers, by which their distances are scaled.
    """

    frames: tuple[MemoryFrame, ...]
    pointers: tuple[Pointer, ...]
    tokens: int
    pointer_tokens: int
    pointer_limit: int

    @cached_property
    def kind(self) -> Hashable:
        """All but which frames these are: layouts of which it is equal have keys that mean the same."""
        positions = tuple([entry.position for entry in self.frames])
        distances = tuple([pointer.distance for pointer in self.pointers])
        return positions, distances, self.tokens, self.pointer_tokens, self.pointer_limit

    @property
    def frame_keys(self) -> int:
        """Number of keys that belong to memory frames."""
        return len(self.frames) * self.tokens

    @property
    def keys(self) -> int:
        """Number of all keys."""
        return self.frame_keys + len(self.pointers) * self.pointer_tokens


def memory_layout(
    model: SAM2Base,
    frame: int,
    output_dict: Mapping[str, Mapping[int, Any]],
    num_frames: int,
    reverse: bool,
    chosen: Sequence[int] | None = None,
) -> MemoryLayout:
    """Lay out the memory bank that SAM 2 reads when it tracks an object into a frame.

    Parameters
    ----------
    model
        Gives the number of memory frames, the stride, the pointer rules and the grid.
    frame
        Index of the frame to be tracked.
    output_dict
        The object's results: ``cond_frame_outputs`` and ``non_cond_frame_outputs`` by frame.
    num_frames
        Frames of the video (it caps the number of pointers).
    reverse
        Whether tracking runs backwards.
    chosen
        Tracked frames for the positions after the conditioning ones, the newest last, at most
        ``num_maskmem - 1``; by default those that SAM 2's rule names.
    """
    selected, unselected = select_closest_cond_frames(
        frame, output_dict["cond_frame_outputs"], model.max_cond_frames_in_attn
    )
    remembered = output_dict["non_cond_frame_outputs"]
    sign = -1 if reverse else 1
    frames = [(t, 0, abs(frame - t), True, t == frame - sign) for t in selected]
    if chosen is None:
        chosen = [_bank_frame(model, frame, p, reverse) for p in range(1, model.num_maskmem)]
    for position, t in enumerate(chosen, model.num_maskmem - len(chosen)):
        if t in remembered or t in unselected:
            conditioning = t in unselected and t not in remembered
            frames.append((t, position, abs(frame - t), conditioning, t == frame - sign))

    pointers = []
    limit = min(num_frames, model.max_obj_ptrs_in_encoder)
    if model.use_obj_ptrs_in_encoder:
        past_only = not model.training and model.only_obj_ptrs_in_the_past_for_eval
        for t in selected:
            if not past_only or (t >= frame if reverse else t <= frame):
                signed = (frame - t) * sign
                seen = signed if model.use_signed_tpos_enc_to_obj_ptrs else abs(signed)
                pointers.append((t, seen, True))
        for distance in range(1, limit):
            t = frame - sign * distance
            if t < 0 or t >= num_frames:
                break
            if t in remembered or t in unselected:
                pointers.append((t, distance, t not in remembered))
    tokens, split = model.sam_image_embedding_size**2, max(1, model.hidden_dim // model.mem_dim)
    return _laid_out(tuple(frames), tuple(pointers), tokens, split, limit)


@lru_cache(maxsize=64)
def _laid_out(
    frames: tuple[tuple[int, int, int, bool, bool], ...],
    pointers: tuple[tuple[int, int, bool], ...],
    *sizes: int,
) -> MemoryLayout:
    """A layout of these entries: the same one for all objects of which they are the same."""
    entries = tuple(MemoryFrame(*entry) for entry in frames)
    return MemoryLayout(entries, tuple(Pointer(*entry) for entry in pointers), *sizes)


def stored_result(
    output_dict: Mapping[str, Mapping[int, Any]], entry: MemoryFrame | Pointer
) -> Any:
    """The stored result of a frame of the layout, where a frame has both the one that is meant."""
    kind = "cond_frame_outputs" if entry.conditioning else "non_cond_frame_outputs"
    return output_dict[kind][entry.frame]


def stored_results(output_dict: Mapping[str, Mapping[int, Any]], layout: MemoryLayout) -> list[Any]:
    """`stored_result` of each memory frame of a layout, then of each pointer."""
    entries: list[MemoryFrame | Pointer] = [*layout.frames, *layout.pointers]
    return [stored_result(output_dict, entry) for entry in entries]


def check_memory(given: Mapping[str, Any], layout: MemoryLayout, results: Any) -> None:
    """Hold a layout against the memory that it describes: every frame and pointer is where it says.

    Parameters
    ----------
    given
        To memory attention, sam2's or transformers': ``memory`` ``[keys, 1, C]``, and how many keys are of pointers.
    results
        The object's, which the layout was made of.

    Raises
    ------
    RuntimeError
        It is laid out otherwise.
    """
    memory: Tensor = given["memory"]
    pointer_tokens = given.get("num_obj_ptr_tokens", given.get("num_object_pointer_tokens"))
    frames, stored = len(layout.frames), stored_results(results, layout)
    parts = [out["maskmem_features"][0].flatten(1).t() for out in stored[:frames]]
    parts += [out["obj_ptr"].reshape(layout.pointer_tokens, -1) for out in stored[frames:]]
    right = sum(map(len, parts)) == len(memory) == layout.keys
    right = right and pointer_tokens == layout.keys - layout.frame_keys
    if not right or not all(
        torch.equal(held, part.to(held))
        for held, part in zip(memory[:, 0].split([len(p) for p in parts]), parts, strict=True)
    ):
        raise RuntimeError(
            f"the memory bank of {len(memory)} keys is not laid out as expected ({layout.keys} keys of "
            f"{frames} frames and {len(layout.pointers)} pointers), as in sam2 1.1.0; install that version"
        )


def _bank_frame(model: SAM2Base, frame: int, position: int, reverse: bool) -> int:
    """Index of the frame at a temporal position: the adjacent one, then every stride-th before it."""
    stride = 1 if model.training else model.memory_temporal_stride_for_eval
    back = model.num_maskmem - position
    if back == 1:
        return frame + 1 if reverse else frame - 1
    if reverse:
        return -(-(frame + 2) // stride) * stride + (back - 2) * stride
    return ((frame - 2) // stride) * stride - (back - 2) * stride
