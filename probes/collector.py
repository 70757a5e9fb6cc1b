"""What a recording keeps of a run, gathered call by call and frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from probes.consistency import MemoryConsistency
from probes.entries import Seen, best_mask, decoded, mass_maps, recalled, statistics_table
from probes.mass import attention_weights
from probes.measure import CallStatistics, measure, received, slot_shares
from probes.rawrows import raw_rows, row_forms
from probes.records import Array, Settings
from probes.seam import AttentionCall
from probes.sites import attention_sites
from probes.streaming import token_coverage
from probes.video import STD

THUMBNAIL = 16
"""Side of a frame's thumbnail, by which scene changes are noticed."""


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
        cross = attention_sites(predictor, "memory", "cross")
        self.layer_of = {site.name: layer for layer, site in enumerate(cross)}
        self.grid = predictor.sam_image_embedding_size
        trunk = predictor.image_encoder.trunk
        self.window = int(trunk.window_spec[2])
        decoder = predictor.sam_mask_decoder
        self.output_tokens = 1 + decoder.num_mask_tokens + int(decoder.pred_obj_scores)
        self.consistency = MemoryConsistency()
        self.frames: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.stored: dict[str, list[tuple[Array, Array]]] = {s: [] for s in settings.row_sites}
        self._pending: dict[tuple[int | None, int], Seen] = {}
        self._coverage: dict[int, dict[int, Tensor]] = {}
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
        entries = [self._pending.setdefault((frame, i), Seen()) for i in ids]
        if site.kind == "token_to_image":
            seen = attention_weights(call.q[:, :, : self.output_tokens], call.k).mean((1, 2))
            for b, entry in enumerate(entries):
                entry.saliency = [*entry.saliency[-2:], seen[b]]
        wanted = self.settings.object_sites
        if site.part == "encoder":
            wanted = self.settings.encoder_sites + self.settings.map_sites
        found: CallStatistics | None = None
        if site.name in wanted or site.kind == "cross":
            found = measure(call, self.settings.query_rows, self.seed + (frame or 0))
            for b, entry in enumerate(entries):
                entry.statistics[site.name] = found, b
        if site.kind == "window" and site.stage == 3 and site.grid == self.grid:
            mass = received(call)[0] if found is None else found.mass
            entries[0].stage3.append(mass[0].mean(0))
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
        entry = self._pending.setdefault((frame, object_id), Seen())
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
            entry = self._pending.pop((frame, object_id), Seen())
            out = outputs[kind][frame]
            mask = out["pred_masks"][0, 0] > 0
            masks.append(mask)
            covered = self._coverage.setdefault(object_id, {})
            # prompted frames are remembered while they are still ahead
            for t, result in (*outputs["cond_frame_outputs"].items(), (frame, out)):
                if t not in covered:
                    covered[t] = token_coverage(result["pred_masks"][0, 0] > 0, self.grid)
            best = best_mask(entry, out, prompted)
            self.rows.append(
                {
                    "row_frame": np.int32(frame),
                    "row_object": np.int32(object_id),
                    "conditioning": np.bool_(prompted),
                    "reverse": np.bool_(reverse),
                    **decoded(entry, out, prompted, self.grid),
                    "object_statistics": self._table(entry, "object", best, object_id),
                    **recalled(entry, self.layer_of, self.grid**2, len(self.settings.keep_shares)),
                }
            )
            for site in self.settings.row_sites:
                if self.sites[site].part != "encoder":
                    self._store(site, entry)
        union = torch.stack(masks).any(0)
        image = state["images"][frame].float()
        spread = image.new_tensor(STD).view(3, 1, 1)
        thumbnail = F.adaptive_avg_pool2d(image[None], THUMBNAIL)[0] * spread
        entry = self._pending.pop((frame, -1), Seen())
        changes = self._changes.pop(frame, {})
        windows = (-(-self.grid // self.window)) ** 2
        missing = np.full(windows, np.nan, dtype=np.float32)
        self.frames.append(
            {
                "frame": np.int32(frame),
                "thumbnail": thumbnail.cpu().numpy(),
                "stage2_change": changes.get(2, missing),
                "stage3_change": changes.get(3, missing),
                **mass_maps(entry, self.settings.map_sites, self.grid),
                "encoder_statistics": self._table(entry, "encoder", union, -1),
            }
        )
        for site in self.settings.row_sites:
            if self.sites[site].part == "encoder":
                self._store(site, entry)
        self._pending = {key: value for key, value in self._pending.items() if key[0] != frame}

    def _store(self, site: str, entry: Seen) -> None:
        levels, scale = row_forms(self.sites[site], self.settings, self.output_tokens)
        empty = np.zeros(levels, np.uint8), np.zeros(scale, np.float32)
        self.stored[site].append(entry.rows.get(site, empty))

    def _table(self, entry: Seen, of: Literal["encoder", "object"], mask: Tensor, i: int) -> Array:
        names = getattr(self.settings, f"{of}_sites")
        remembered = self._coverage.get(i, {})
        return statistics_table(entry, [self.sites[name] for name in names], mask, remembered)

    def take_arrays(self) -> dict[str, Array]:
        """Hand over everything as the arrays of a shard; what is handed over is no longer held here."""
        merged = {
            name: np.stack([np.asarray(entry.pop(name)) for entry in entries])
            for entries in (self.frames, self.rows)
            for name in list(entries[0])
        }
        for site in list(self.stored):
            parts = self.stored.pop(site)
            merged[f"rows/{site}"] = np.stack([levels for levels, _ in parts])
            merged[f"row_scale/{site}"] = np.stack([scale for _, scale in parts])
        return merged
