"""What is done to the demo model's memory while it is measured, and what is seen of its attention."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from training.teaching import NEVER, AttentionTeacher
from training.unroll import Step

CELLS = 24 * 24  # tokens of a memory frame at 384 px


@dataclass
class Cut:
    """Hides memory tokens by bias: keeps a share of every frame of a group, chosen by a rule.

    ``group``: "all" frames or the "older" ones (neither prompt nor newest). ``rule``: "salient"
    (highest mean softmax within the frame, per layer) or "random". ``keep`` 0 hides the group.
    """

    teacher: AttentionTeacher
    group: str
    rule: str
    keep: float
    drawn: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def before(self, t: int, memory: list[int]) -> None:
        self.teacher.bias = None if t == 0 else lambda i, logits: self._bias(i, logits, memory)

    def after(self, t: int, step: Step | None, memory: dict[str, Any]) -> None:
        if step is not None:
            step.weights = []

    def _bias(self, layer: int, logits: torch.Tensor, memory: list[int]) -> torch.Tensor:
        count = logits.shape[0]
        frames = logits[:, 0, :, : len(memory) * CELLS].unflatten(-1, (-1, CELLS))
        mass = frames.softmax(-1).mean(1)  # [N, frames, cells]
        bias = torch.zeros(count, len(memory), CELLS)
        kept = round(self.keep * CELLS)
        for place, frame in enumerate(memory):
            if self.group == "older" and place in (0, len(memory) - 1):
                continue
            score = mass[:, place]
            if self.rule == "random":
                score = self.drawn.setdefault((layer, frame), torch.rand(count, CELLS))
            bias[:, place] = NEVER
            if kept:
                bias[:, place].scatter_(1, score.topk(kept, 1).indices, 0.0)
        return bias.flatten(1)


@dataclass
class Swap:
    """Gives every clip of the batch another one's memory."""

    teacher: AttentionTeacher

    def before(self, t: int, memory: list[int]) -> None:
        pass

    def after(self, t: int, step: Step | None, memory: dict[str, Any]) -> None:
        if step is not None:
            step.weights = []
        if "maskmem_features" in memory:
            memory["maskmem_features"] = memory["maskmem_features"].roll(1, 0)
            memory["obj_ptr"] = memory["obj_ptr"].roll(1, 0)


class Survey:
    """Gathers how attention is spread over memory and over the image, frame by frame."""

    def __init__(self, teacher: AttentionTeacher, model: Any) -> None:
        self.teacher = teacher
        self.figures: dict[str, list[Any]] = defaultdict(list)
        self.decoder: list[torch.Tensor] = []
        self.occupied = torch.zeros(0)
        self.last: list[torch.Tensor] = []
        transformer = model.sam_mask_decoder.transformer
        modules = [layer.cross_attn_token_to_image for layer in transformer.layers]
        modules.append(transformer.final_attn_token_to_image)
        self.hooks = [m.register_forward_hook(self._decoder, with_kwargs=True) for m in modules]

    def _decoder(self, module: Any, _: Any, kwargs: dict[str, Any], out: Any) -> None:
        query, key = (
            module._separate_heads(p(kwargs[n]).float(), module.num_heads)
            for n, p in (("q", module.q_proj), ("k", module.k_proj))
        )
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        self.decoder.append(weights[:, :, 2:6].mean((1, 2)))  # the mask tokens, over heads

    def before(self, t: int, memory: list[int]) -> None:
        self.decoder = []

    def after(self, t: int, step: Step | None, memory: dict[str, Any]) -> None:
        if step is None:
            return
        on = (self.occupied[:, t] > 0.5).float()
        seen = on.sum(1) > 0
        if seen.any():
            attention = torch.stack(self.decoder[-3:]).mean(0)
            inside = (attention * on).sum(1) / on.sum(1).clamp(min=1)
            self.figures["decoder_lift"].append((inside / attention.mean(1))[seen].mean().item())
        spatial = len(step.memory) * CELLS
        layers: dict[str, list[float]] = defaultdict(list)
        newest = []
        for i, weights in enumerate(step.weights):
            layers["pointer_mass"].append(weights[:, :, spatial:].sum(-1).mean().item())
            layers["older_mass"].append(
                weights[:, :, CELLS : spatial - CELLS].sum(-1).mean().item()
                if spatial > 2 * CELLS
                else 0
            )
            top = weights.topk(max(1, weights.shape[-1] // 10), -1).values.sum(-1)
            layers["top_10_percent_mass"].append(top.mean().item())
            frames = weights[:, :, :spatial].unflatten(-1, (-1, CELLS))
            frames = frames / frames.sum(-1, keepdim=True).clamp(min=1e-9)
            mass = frames.mean(1)  # [N, frames, cells], sums to 1 in each frame
            newest.append(mass[:, -1])
            if len(self.last) == len(step.weights) and len(step.memory) > 2:
                first, now = self.last[i], mass[:, -2]  # the same frame, one step later
                shuffled = now[:, torch.randperm(CELLS)]
                layers["cs"].append(F.cosine_similarity(first, now).mean().item())
                layers["cs_shuffled"].append(F.cosine_similarity(first, shuffled).mean().item())
                chosen = first.topk(round(0.05 * CELLS), 1).indices
                layers["recall_of_salient_5_percent"].append(
                    now.gather(1, chosen).sum(1).mean().item()
                )
        self.last = newest
        for name, values in layers.items():
            self.figures[name].append(values)
        step.weights = []

    def result(self) -> dict[str, Any]:
        """Return means over frames: one number, or one per layer."""
        for hook in self.hooks:
            hook.remove()
        means = {name: np.mean(values, 0) for name, values in self.figures.items()}
        return {name: np.round(value, 4).tolist() for name, value in means.items()}
