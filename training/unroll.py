"""Run the model over a training clip, every target from its mask; or over frames from clicks and boxes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from probes.video import MEAN, STD
from training.teaching import AttentionTeacher, cut_some, hidden_keys

KEPT = (0.05, 0.1, 0.2)  # shares of a memory frame's tokens
CLIP_LENGTH = 64  # told to the model, so that pointers' ages are scaled as in long videos


@dataclass
class Step:
    """What the model said about one frame, for N = clips x targets.

    ``multi`` [N, M, S/4, S/4] candidate logits before absence blanks them, ``ious`` [N, M],
    ``best`` [N, 1, S, S] the chosen mask's logits, ``score`` [N, 1], ``frame`` its place in the
    clip, ``weights`` per layer (empty without a teacher) and ``memory`` the places of the memory
    frames in the order of the keys.
    """

    frame: int
    multi: torch.Tensor
    ious: torch.Tensor
    best: torch.Tensor
    score: torch.Tensor
    weights: list[torch.Tensor] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


class Watcher(Protocol):
    """Sees a clip being tracked and may interfere: for measurements, not for training."""

    def before(self, t: int, memory: list[int]) -> None:
        """Frame ``t`` is about to attend to the frames ``memory``."""

    def after(self, t: int, step: Step | None, memory: dict[str, Any]) -> None:
        """Frame ``t`` is done; ``memory`` is what will be remembered of it."""


@dataclass
class Unrolled:
    """Steps of the frames after the first, and what they came from."""

    steps: list[Step]
    targets: torch.Tensor  # [N, T, S, S]: true masks, 0 or 1
    levels: list[torch.Tensor]  # each [hw, B * T, C]: features before memory, finest first
    places: list[torch.Tensor]  # their positional encodings
    sizes: list[tuple[int, int]]


def point_prompt(mask: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    """Make a click inside each mask, or a (slightly wrong) box around it.

    Parameters
    ----------
    mask : Tensor, float [N, S, S]
    kind : {"click", "box"}
    """
    count, side = mask.shape[0], mask.shape[-1]
    flat = mask.flatten(1) + 1e-6
    if kind == "click":
        chosen = torch.multinomial(flat, 1)[:, 0]
        points = torch.stack([chosen % side, chosen // side], -1).float()[:, None] + 0.5
        return {
            "point_coords": points,
            "point_labels": torch.ones(count, 1, dtype=torch.int32, device=mask.device),
        }
    places = torch.arange(side, device=mask.device).float()
    ends = []
    for axis in (1, 2):  # columns, then rows
        seen = mask.amax(axis) > 0
        ends.append(torch.where(seen, places, places.new_tensor(float(side))).amin(1))
        ends.append(torch.where(seen, places, places.new_tensor(-1.0)).amax(1) + 1)
    left, right, top, bottom = ends
    corners = torch.stack([left, top, right, bottom], -1)
    extent = torch.stack([right - left, bottom - top] * 2, -1)
    corners = corners + extent * torch.randn_like(corners).clamp(-2, 2) * 0.04
    labels = torch.tensor([[2, 3]], dtype=torch.int32, device=mask.device).expand(count, 2)
    return {"point_coords": corners.view(count, 2, 2).clamp(0, side), "point_labels": labels}


def encode(
    model: Any, images: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[tuple[int, int]]]:
    """Return features [hw, N, C] of images [N, 3, S, S] in 0..1, their positions and their sizes, finest first."""
    mean, std = (torch.tensor(values).to(images)[:, None, None] for values in (MEAN, STD))
    _, levels, places, sizes = model._prepare_backbone_features(
        model.forward_image((images - mean) / std)
    )
    return levels, places, sizes


def track_frame(
    model: Any,
    time: int,
    levels: list[torch.Tensor],
    places: list[torch.Tensor],
    sizes: list[tuple[int, int]],
    bank: dict[str, dict],
    points: dict[str, torch.Tensor] | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[dict[str, Any], torch.Tensor, tuple[Any, ...]]:
    """Track one frame with sam2; the frame at time 0 is the prompted one.

    Returns
    -------
    dict
        What sam2 will remember of the frame, its memory not yet encoded.
    Tensor [N, M, S/4, S/4]
        The candidates' logits before absence blanks them.
    tuple
        What sam2's heads say.
    """
    raw: list[torch.Tensor] = []
    hook = model.sam_mask_decoder.register_forward_hook(lambda *a: raw.append(a[2][0]))
    first = time == 0
    out, heads, _, _ = model._track_step(
        time, first, levels, places, sizes, points, mask, bank, CLIP_LENGTH, False, None
    )
    hook.remove()
    return out, raw[-1], heads


def unroll(
    model: Any,
    frames: torch.Tensor,
    masks: torch.Tensor,
    *,
    times: list[int] | None = None,
    forced: float = 0.0,
    hide: float = 0.0,
    cut: float = 0.0,
    teacher: AttentionTeacher | None = None,
    watcher: Watcher | None = None,
) -> Unrolled:
    """Track every target through its clip from its mask on the first frame.

    Parameters
    ----------
    model : SAM2Base
    frames : Tensor, float32 [B, T, 3, S, S]
        RGB in 0..1.
    masks : Tensor, bool [B, T, O, S, S]
        True masks; only frame 0's are shown unless ``forced``.
    times : list of int, optional
        Frame indices told to the model, first 0; gaps train older memory slots.
    forced : float
        Chance that a frame is remembered with its true mask.
    hide : float
        Chance to hide the prompt's and, apart, the newest frame's keys; needs a ``teacher``.
    cut : float
        Chance that a target's memory is cut to salient tokens throughout; needs a ``teacher``.
    """
    clips, length, objects = masks.shape[:3]
    side = masks.shape[-1]
    times = times or list(range(length))
    levels, places, sizes = encode(model, frames.flatten(0, 1))
    truth = masks.transpose(1, 2).flatten(0, 1).float()
    present = truth.flatten(2).any(-1)
    bank: dict[str, dict] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    steps = []
    few, keep = torch.rand(len(truth), device=frames.device) < cut, random.choice(KEPT)
    for t in range(length):
        rows = (torch.arange(clips, device=frames.device) * length + t).repeat_interleave(objects)
        features, positions = [x[:, rows] for x in levels], [x[:, rows] for x in places]
        memory = [0] + [i for i in range(1, t) if times[t] - times[i] <= model.num_maskmem - 1]
        first = t == 0
        if teacher is not None:
            teacher.weights = []
            cells = sizes[-1][0] * sizes[-1][1]
            bias = None if first else hidden_keys(memory, present, cells, hide)
            teacher.bias = cut_some(bias, len(memory), few, keep) if few.any() else bias
        if watcher is not None:
            watcher.before(t, memory)
        given = truth[:, 0, None] if first else None
        out, multi, heads = track_frame(
            model, times[t], features, positions, sizes, bank, mask=given
        )
        _, _, ious, _, best, pointer, score = heads
        if not first:
            weights = [] if teacher is None else teacher.weights
            steps.append(Step(t, multi, ious, best, score, weights, memory))
        shown, certainty = best, score
        if forced > 0 and not first:
            use = torch.rand(len(truth), device=frames.device) < forced
            known = present[:, t, None].float() * 20 - 10
            shown = torch.where(use[:, None, None, None], truth[:, t, None] * 20 - 10, best)
            certainty = torch.where(use[:, None], known, score)
        if t < length - 1:
            model._encode_memory_in_output(features, sizes, None, True, shown, certainty, out)
            out["obj_ptr"] = pointer
            bank["cond_frame_outputs" if first else "non_cond_frame_outputs"][times[t]] = out
        if watcher is not None:
            watcher.after(t, None if first else steps[-1], out)
    if teacher is not None:
        teacher.bias = None
    assert side == model.image_size, f"clip is {side} px, model is set to {model.image_size} px"
    return Unrolled(steps, truth, levels, places, sizes)


def prompt_step(model: Any, out: Unrolled, frames: list[int], kind: str) -> Step:
    """Click or box every target on some frames as if each were the first, without any memory.

    The step's ``N`` are the targets on the first of the frames, then those on the next.
    """
    count, length = out.targets.shape[:2]
    clips = out.levels[-1].shape[1] // length
    starts = torch.arange(clips, device=out.targets.device).repeat_interleave(count // clips)
    rows = torch.cat([starts * length + frame for frame in frames])
    levels, places = [x[:, rows] for x in out.levels], [x[:, rows] for x in out.places]
    points = point_prompt(torch.cat([out.targets[:, frame] for frame in frames]), kind)
    _, multi, heads = track_frame(model, 0, levels, places, out.sizes, {}, points)
    return Step(frames[0], multi, heads[2], heads[4], heads[6])
