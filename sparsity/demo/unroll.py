"""Run the model over a training clip, with its memory attention written out so it can be taught."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
CLIP_LENGTH = 64  # told to the model, so that pointers' ages are scaled as in long videos
NEVER = -1e4  # added to the logits of hidden keys


class _Explicit(TorchFunctionMode):
    """Replace the one attention call inside a module by an explicit softmax."""

    def __init__(self, teacher: AttentionTeacher) -> None:
        super().__init__()
        self.teacher = teacher

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        logits = (query @ key.transpose(-1, -2)).float() / math.sqrt(query.shape[-1])
        bias = self.teacher.bias
        if callable(bias):
            bias = bias(len(self.teacher.weights), logits)
        if bias is not None:
            spare = logits.shape[-1] - bias.shape[-1]
            logits = logits + F.pad(bias, (0, spare))[:, None, None]
        weights = logits.softmax(-1)
        self.teacher.weights.append(weights[:, 0])
        return weights.to(value.dtype) @ value


@dataclass
class AttentionTeacher:
    """Collects the weights of every memory cross-attention layer and can hide keys.

    Attributes
    ----------
    weights : list of Tensor, float32 [N, queries, keys]
        One per layer since the list was last emptied; rows sum to 1.
    bias : Tensor, float32 [N, spatial keys], or a function that returns one, or None
        Added to the logits; keys it does not reach (pointers come last) are not hidden. The
        function is given the layer's number and its logits [N, 1, queries, keys].
    """

    weights: list[torch.Tensor] = field(default_factory=list)
    bias: torch.Tensor | Callable[[int, torch.Tensor], torch.Tensor | None] | None = None

    def attach(self, model: Any) -> None:
        """Write out the softmax of the model's memory cross-attention."""
        for layer in model.memory_attention.layers:
            module = layer.cross_attn_image
            module.forward = self._explicit(module, type(module).forward)

    def detach(self, model: Any) -> None:
        """Give the model its own attention back."""
        for layer in model.memory_attention.layers:
            del layer.cross_attn_image.forward

    def _explicit(self, module: nn.Module, original: Callable) -> Callable:
        def forward(*args, **kwargs):
            with _Explicit(self):
                return original(module, *args, **kwargs)

        return forward


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
    """Steps of the frames after the first (and of the first, if it was clicked or boxed)."""

    steps: list[Step]
    tokens: torch.Tensor  # [hw, B * T, C]: stride-16 features before memory
    targets: torch.Tensor  # [N, T, S, S]: true masks, 0 or 1


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
    return {
        "point_coords": corners.view(count, 2, 2).clamp(0, side),
        "point_labels": labels,
    }


def hidden_keys(
    memory: list[int], now: int, present: torch.Tensor, cells: int, chance: float
) -> torch.Tensor | None:
    """Choose, clip by clip, to hide the prompt's and the newest frame's keys.

    A frame is hidden only where another memory frame shows the target.

    Parameters
    ----------
    memory : list of int
        Places of the memory frames.
    present : Tensor, bool [N, T]
    cells : int
        Keys of a memory frame.

    Returns
    -------
    Tensor or None, float32 [N, len(memory) * cells]
    """
    if chance == 0 or len(memory) < 2:
        return None
    shown = present[:, memory]
    bias = torch.zeros(len(present), len(memory), device=present.device)
    for place in (0, len(memory) - 1):
        usable = (bias == 0) & shown
        others = usable.sum(1) - usable[:, place].long()
        hide = (torch.rand(len(present), device=present.device) < chance) & (others > 0)
        bias[:, place] = torch.where(hide, NEVER, bias[:, place])
    return bias.repeat_interleave(cells, 1)


def unroll(
    model: Any,
    frames: torch.Tensor,
    masks: torch.Tensor,
    *,
    times: list[int] | None = None,
    prompt: str = "mask",
    forced: float = 0.0,
    hide: float = 0.0,
    teacher: AttentionTeacher | None = None,
    watcher: Watcher | None = None,
) -> Unrolled:
    """Track every target through its clip, the first frame prompted.

    Parameters
    ----------
    model : SAM2Base
    frames : Tensor, float32 [B, T, 3, S, S]
        RGB in 0..1.
    masks : Tensor, bool [B, T, O, S, S]
        True masks; only frame 0's are shown unless ``forced``.
    times : list of int, optional
        Frame indices told to the model, first 0; gaps train older memory slots.
    prompt : {"mask", "click", "box"}
    forced : float
        Chance that a frame is remembered with its true mask.
    hide : float
        Chance to hide the prompt's and, apart, the newest frame's keys; needs a ``teacher``.
    """
    clips, length, objects = masks.shape[:3]
    side = masks.shape[-1]
    times = times or list(range(length))
    normal = (frames - MEAN.to(frames)) / STD.to(frames)
    _, levels, places, sizes = model._prepare_backbone_features(
        model.forward_image(normal.flatten(0, 1))
    )
    truth = masks.transpose(1, 2).flatten(0, 1).float()
    present = truth.flatten(2).any(-1)
    raw: list[torch.Tensor] = []
    hook = model.sam_mask_decoder.register_forward_hook(lambda *a: raw.append(a[2][0]))
    bank: dict[str, dict] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    steps = []
    for t in range(length):
        rows = (torch.arange(clips, device=frames.device) * length + t).repeat_interleave(objects)
        features, positions = [x[:, rows] for x in levels], [x[:, rows] for x in places]
        memory = [0] + [i for i in range(1, t) if times[t] - times[i] <= model.num_maskmem - 1]
        first = t == 0
        if teacher is not None:
            teacher.weights = []
            cells = sizes[-1][0] * sizes[-1][1]
            teacher.bias = None if first else hidden_keys(memory, t, present, cells, hide)
        if watcher is not None:
            watcher.before(t, memory)
        raw.clear()
        out, heads, _, _ = model._track_step(
            times[t],
            first,
            features,
            positions,
            sizes,
            point_prompt(truth[:, 0], prompt) if first and prompt != "mask" else None,
            truth[:, 0, None] if first and prompt == "mask" else None,
            bank,
            CLIP_LENGTH,
            False,
            None,
        )
        _, _, ious, _, best, pointer, score = heads
        if not first or prompt != "mask":
            weights = [] if teacher is None else teacher.weights
            steps.append(Step(t, raw[-1], ious, best, score, weights, memory))
        shown, certainty = best, score
        if forced > 0 and (not first or prompt != "mask"):
            use = torch.rand(len(truth), device=frames.device) < forced
            known = present[:, t, None].float() * 20 - 10
            shown = torch.where(use[:, None, None, None], truth[:, t, None] * 20 - 10, best)
            certainty = torch.where(use[:, None], known, score)
        if t < length - 1:
            model._encode_memory_in_output(features, sizes, None, True, shown, certainty, out)
            out["obj_ptr"] = pointer
            bank["cond_frame_outputs" if first else "non_cond_frame_outputs"][times[t]] = out
        if watcher is not None:
            watcher.after(t, steps[-1] if steps and steps[-1].frame == t else None, out)
    hook.remove()
    if teacher is not None:
        teacher.bias = None
    assert side == model.image_size, f"clip is {side} px, model is set to {model.image_size} px"
    return Unrolled(steps, levels[-1], truth)
