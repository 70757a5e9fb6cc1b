"""What a recording keeps of a run, gathered call by call and frame by frame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from probes.consistency import MemoryConsistency, MemorySaliency
from probes.mass import attention_weights, foreground_lift
from probes.measure import CallStatistics, measure, slot_shares
from probes.records import SLOTS, STATISTICS, Array, Settings
from probes.seam import AttentionCall
from probes.sites import AttentionSite, attention_sites
from probes.streaming import token_coverage
from probes.video import STD

THUMBNAIL = 16
"""Side of a frame's thumbnail, by which scene changes are noticed."""

CANDIDATES = 3
"""Masks that SAM 2's decoder proposes where it proposes several."""


@dataclass
class _Pending:
    """What was seen of one frame (encoder) or of one object on it so far."""

    statistics: dict[str, tuple[CallStatistics, int]] = field(default_factory=dict)
    saliency: list[Tensor] = field(default_factory=list)
    memory: dict[str, list[MemorySaliency]] = field(default_factory=dict)
    shares: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    heads: tuple[Tensor, ...] | None = None


class Collector:
    """Gathers one clip's record from a run of the stock predictor.

    Parameters
    ----------
    predictor
        That runs.
    settings
        What to keep; `probes.recording` makes them.
    seed
        Of samples of query rows.
    """

    def __init__(self, predictor: Any, settings: Settings, seed: int) -> None:
        self.predictor, self.settings, self.seed = predictor, settings, seed
        self.sites = {site.name: site for site in attention_sites(predictor)}
        self.layers = len(attention_sites(predictor, "memory", "cross"))
        self.grid = predictor.sam_image_embedding_size
        trunk = predictor.image_encoder.trunk
        self.window = int(trunk.window_spec[2])
        decoder = predictor.sam_mask_decoder
        self.output_tokens = 1 + decoder.num_mask_tokens + int(decoder.pred_obj_scores)
        self.consistency = MemoryConsistency()
        self.frames: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.stored: dict[str, list[tuple[Array, Array]]] = {s: [] for s in settings.row_sites}
        self._pending: dict[tuple[int | None, int], _Pending] = {}
        self._coverage: dict[tuple[int, int], Tensor] = {}
        self._stages: dict[int, Tensor] = {}
        self._stages_before: dict[int, Tensor] = {}
        self._changes: dict[int | None, dict[int, Array]] = {}
        self._at: int | None = None
        self._last_heads: tuple[Tensor, ...] | None = None

    # ------------------------------------------------------------------ while the model runs

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note stage outputs and the decoder's candidates as long as the context lasts."""
        trunk = self.predictor.image_encoder.trunk
        heads = self.predictor._forward_sam_heads

        def note_heads(*args: Any, **kwargs: Any) -> Any:
            self._last_heads = out = heads(*args, **kwargs)
            return out

        def note_stage(stage: int) -> Any:
            def note(module: Any, inputs: Any, output: Tensor) -> None:
                self._stages[stage] = output[0].float()

            return note

        handles = [
            trunk.blocks[trunk.stage_ends[stage - 1]].register_forward_hook(note_stage(stage))
            for stage in (2, 3)
        ]
        self.predictor.__dict__["_forward_sam_heads"] = note_heads
        try:
            yield
        finally:
            del self.predictor.__dict__["_forward_sam_heads"]
            for handle in handles:
                handle.remove()

    def add(self, call: AttentionCall) -> None:
        """Reduce one attention call; the observer's callback."""
        site, frame = call.where, call.moment.frame
        assert site is not None, "observe fills it in"
        ids = call.moment.objects or (-1,)
        entries = [self._pending.setdefault((frame, i), _Pending()) for i in ids]
        if site.kind == "token_to_image":
            seen = attention_weights(call.q[:, :, : self.output_tokens], call.k).mean((1, 2))
            for b, entry in enumerate(entries):
                entry.saliency = [*entry.saliency[-2:], seen[b]]
        wanted = self.settings.object_sites
        if site.part == "encoder":
            wanted = self.settings.encoder_sites + self.settings.map_sites
        found = None
        if site.name in wanted or site.kind == "cross":
            found = measure(call, self.settings.query_rows, self.seed + (frame or 0))
            for b, entry in enumerate(entries):
                entry.statistics[site.name] = found, b
        if site.kind == "cross" and found is not None:
            compared = self.consistency.add(call, found)
            shares = slot_shares(found, call)
            for b, entry in enumerate(entries):
                entry.memory[site.name], entry.shares[site.name] = compared[b], shares[b]
        if site.name in self.settings.row_sites:
            for b, entry in enumerate(entries):
                entry.rows[site.name] = raw_rows(call, b, self.settings, self.output_tokens)
        if site.name == "decoder.final.token_to_image":
            for entry in entries:
                entry.heads = None  # those of this run come after it

    # ------------------------------------------------------------------ when a frame is done

    def note_object(self, frame: int, object_id: int) -> None:
        """Keep the decoder's candidates of the object that was just tracked."""
        entry = self._pending.setdefault((frame, object_id), _Pending())
        entry.heads, self._last_heads = self._last_heads, None

    def note_features(self, frame: int) -> None:
        """Compare the stages' outputs of a frame that was just encoded with those of the frame before."""
        if not self._stages:
            return
        changes = {}
        for stage, output in self._stages.items():
            before = self._stages_before.get(stage)
            if before is not None and self._at is not None and abs(frame - self._at) == 1:
                changes[stage] = self._per_window((output - before).abs().mean(-1), stage)
        self._stages_before, self._stages, self._at = self._stages, {}, frame
        self._changes[frame] = changes

    def _per_window(self, change: Tensor, stage: int) -> Array:
        """Mean of a map ``[H, W]`` inside each stage-3 window, ``[W]``; padding left out."""
        size = self.window * (2 if stage == 2 else 1)
        extra = -change.shape[-1] % size
        both = F.pad(torch.stack([change, torch.ones_like(change)])[:, None], (0, extra, 0, extra))
        total, count = F.avg_pool2d(both, size).flatten(1)
        return (total / count).cpu().numpy()

    def finish_frame(self, state: dict[str, Any], frame: int, reverse: bool) -> None:
        """Turn what was seen of a frame into its entries."""
        masks = []
        for index, outputs in state["output_dict_per_obj"].items():
            prompted = frame in outputs["cond_frame_outputs"]
            kind = "cond_frame_outputs" if prompted else "non_cond_frame_outputs"
            object_id = state["obj_idx_to_id"][index]
            entry = self._pending.pop((frame, object_id), _Pending())
            out = outputs[kind][frame]
            mask = out["pred_masks"][0, 0] > 0
            masks.append(mask)
            self._coverage[frame, object_id] = token_coverage(mask, self.grid)
            row = self._row(entry, out, frame, object_id, prompted, reverse)
            self.rows.append(row)
            for site in self.settings.row_sites:
                if self.sites[site].part != "encoder":
                    self._store(site, entry)
        union = torch.stack(masks).any(0)
        image = state["images"][frame].float()
        spread = image.new_tensor(STD).view(3, 1, 1)
        thumbnail = F.adaptive_avg_pool2d(image[None], THUMBNAIL)[0] * spread
        entry = self._pending.pop((frame, -1), _Pending())
        changes = self._changes.pop(frame, {})
        windows = (-(-self.grid // self.window)) ** 2
        missing = np.full(windows, np.nan, dtype=np.float32)
        self.frames.append(
            {
                "frame": np.int32(frame),
                "thumbnail": thumbnail.cpu().numpy(),
                "stage2_change": changes.get(2, missing),
                "stage3_change": changes.get(3, missing),
                "encoder_mass": self._maps(entry),
                "encoder_statistics": self._table(entry, self.settings.encoder_sites, union, None),
            }
        )
        for site in self.settings.row_sites:
            if self.sites[site].part == "encoder":
                self._store(site, entry)
        self._pending = {key: value for key, value in self._pending.items() if key[0] != frame}

    def _store(self, site: str, entry: _Pending) -> None:
        levels, scale = row_forms(self.sites[site], self.settings, self.output_tokens)
        empty = np.zeros(levels, np.uint8), np.zeros(scale, np.float32)
        self.stored[site].append(entry.rows.get(site, empty))

    def _maps(self, entry: _Pending) -> Array:
        maps = np.full((len(self.settings.map_sites), self.grid, self.grid), np.nan, np.float16)
        for i, site in enumerate(self.settings.map_sites):
            if site in entry.statistics:
                mass = entry.statistics[site][0].mass[0].mean(0) * self.grid**2
                maps[i] = mass.view(self.grid, self.grid).cpu().numpy()
        return maps

    def _table(
        self,
        entry: _Pending,
        sites: Sequence[str],
        mask: Tensor,
        of_object: tuple[int, int] | None,
    ) -> Array:
        """Statistics of some sites, ``[sites, H, K]``."""
        heads = max((self.sites[site].heads for site in sites), default=0)
        table = np.full((len(sites), heads, len(STATISTICS)), np.nan, np.float32)
        for i, name in enumerate(sites):
            if name not in entry.statistics:
                continue
            found, b = entry.statistics[name]
            b = min(b, len(found.mass) - 1)  # a call that objects share has one row
            site = self.sites[name]
            values = [found.means[s][b] for s in STATISTICS if s != "lift"]
            lift = self._lift(site, found.mass[b], mask, entry, of_object)
            table[i, : site.heads] = torch.stack([*values, lift], -1).cpu().numpy()
        return table

    def _lift(
        self,
        site: AttentionSite,
        mass: Tensor,
        mask: Tensor,
        entry: _Pending,
        of_object: tuple[int, int] | None,
    ) -> Tensor:
        """Foreground lift of key mass ``[h, keys]``; memory keys against the masks of their own frames."""
        if site.kind == "cross" and of_object is not None:
            known = [
                self._coverage.get((saliency.entry.frame, of_object[1]))
                for saliency in entry.memory.get(site.name, [])
            ]
            if known and all(part is not None for part in known):
                foreground = torch.cat([part for part in known if part is not None])
                return foreground_lift(mass[:, : len(foreground)], foreground.to(mass.device))
        elif mass.shape[-1] == site.grid**2:
            return foreground_lift(mass, token_coverage(mask, site.grid).to(mass.device))
        return mass.new_full(mass.shape[:1], math.nan)

    def _row(
        self,
        entry: _Pending,
        out: dict[str, Any],
        frame: int,
        object_id: int,
        prompted: bool,
        reverse: bool,
    ) -> dict[str, Any]:
        """One object's entry of a frame."""
        best = out["pred_masks"][0, 0] > 0
        side = best.shape[-1]
        candidates = np.zeros((CANDIDATES, side, side), bool)
        iou = np.full(CANDIDATES, np.nan, np.float32)
        candidates[0] = best.cpu().numpy()
        if entry.heads is not None and not prompted:
            several = entry.heads[0][0, :CANDIDATES] > 0
            candidates[: len(several)] = several.cpu().numpy()
            iou[: len(several)] = entry.heads[2][0, :CANDIDATES].float().cpu().numpy()
            best = entry.heads[3][0, 0] > 0
        saliency = np.full((self.grid, self.grid), np.nan, np.float32)
        if entry.saliency:
            looked = torch.stack(entry.saliency).mean(0)
            saliency = looked.view(self.grid, self.grid).cpu().numpy()
        table = self._table(entry, self.settings.object_sites, best, (frame, object_id))
        return {
            "row_frame": np.int32(frame),
            "row_object": np.int32(object_id),
            "conditioning": np.bool_(prompted),
            "reverse": np.bool_(reverse),
            "score": np.float32(out["object_score_logits"].max().item()),
            "iou": iou,
            "candidates": np.packbits(candidates.reshape(CANDIDATES, -1), axis=-1),
            "best": np.packbits(best.cpu().numpy().reshape(-1)),
            "decoder_saliency": saliency,
            "object_statistics": table,
            **self._memory(entry),
        }

    def _memory(self, entry: _Pending) -> dict[str, Any]:
        """An object's memory on a frame: what is in each slot, its share, and how it compares with its first recollection."""
        slots, tokens = len(SLOTS) - 1, self.grid**2
        g = len(self.settings.keep_shares)
        held = np.full(slots, -1, np.int32)
        found: dict[str, Any] = {
            "memory_frame": held,
            "slot_share": np.full((self.layers, slots + 1), np.nan, np.float32),
            "first_frame": np.int32(-1),
            "first_saliency": np.full((self.layers, tokens), np.nan, np.float16),
            "recall": np.full((self.layers, slots, g), np.nan, np.float16),
            "joint_recall": np.full((self.layers, slots, g), np.nan, np.float16),
            "oracle_recall": np.full((self.layers, slots, g), np.nan, np.float16),
            "similarity": np.full((self.layers, slots, 4), np.nan, np.float16),
        }
        for name, entries in entry.memory.items():
            layer = self.sites[name].layer
            found["slot_share"][layer] = entry.shares[name].cpu().numpy()
            nearest = min((e.entry.age for e in entries if e.entry.position == 0), default=None)
            for saliency in entries:
                memory = saliency.entry
                if saliency.first and memory.newest:
                    found["first_frame"] = np.int32(memory.frame)
                    found["first_saliency"][layer] = (saliency.saliency * tokens).cpu().numpy()
                if memory.position == 0 and memory.age != nearest:
                    continue
                held[memory.position] = memory.frame
                for key in ("recall", "joint_recall", "oracle_recall", "similarity"):
                    found[key][layer, memory.position] = getattr(saliency, key).cpu().numpy()
        return found

    def arrays(self) -> dict[str, Array]:
        """Everything as the arrays of a shard."""
        merged = {
            name: np.stack([np.asarray(entry[name]) for entry in entries])
            for entries in (self.frames, self.rows)
            for name in entries[0]
        }
        for site, parts in self.stored.items():
            merged[f"rows/{site}"] = np.stack([levels for levels, _ in parts])
            merged[f"row_scale/{site}"] = np.stack([scale for _, scale in parts])
        return merged


def row_forms(
    site: AttentionSite, settings: Settings, output_tokens: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a site's stored rows and of their maxima, for one frame or object."""
    r = settings.row_grid
    if site.kind == "token_to_image":
        lead: tuple[int, ...] = (output_tokens,)
    elif site.kind == "cross":
        lead = (len(settings.row_queries), len(SLOTS) - 1)
    else:
        lead = (len(settings.row_queries),)
    return (*lead, r, r), lead[:1]


def raw_rows(
    call: AttentionCall, b: int, settings: Settings, output_tokens: int
) -> tuple[Array, Array]:
    """Attention rows of some queries of one object, mean over heads, as 8-bit levels and maxima."""
    site = call.where
    assert site is not None, "observe fills it in"
    r, cell = settings.row_grid, site.grid // settings.row_grid
    shape, _ = row_forms(site, settings, output_tokens)
    if site.kind == "token_to_image":
        q = call.q[b, :, :output_tokens]
    else:
        q = call.q[b][:, torch.tensor(settings.row_queries, device=call.q.device)]
    p = attention_weights(q, call.k[b]).mean(0)  # [Q, Nk]
    cells = p.new_zeros(shape)
    if site.kind == "cross":
        layout = call.moment.layouts[b]
        frames = p[:, : layout.frame_keys].view(len(p), -1, r, cell, r, cell).sum((3, 5))
        for i, entry in enumerate(layout.frames):
            cells[:, entry.position] += frames[:, i]
    else:
        cells += p.view(len(p), r, cell, r, cell).sum((2, 4))
    scale = cells.flatten(1).amax(1)
    levels = (cells / scale.clamp(min=1e-30).view(-1, *(1,) * (cells.ndim - 1))).sqrt() * 255
    return levels.round().byte().cpu().numpy(), scale.cpu().numpy()
