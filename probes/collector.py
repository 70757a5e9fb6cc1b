"""What a recording keeps of a run, gathered call by call and frame by frame."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from probes.consistency import MemoryConsistency
from probes.entries import (
    Seen,
    best_mask,
    decoded,
    even_mass,
    mass_maps,
    memory_read,
    raw_rows,
    recalled,
    row_forms,
    statistics_table,
)
from probes.maps import keys_there, site_of
from probes.mass import attention_weights, token_coverage
from probes.measure import CallStatistics, measure, received, slot_shares
from probes.records import Array, Settings
from probes.seam import AttentionCall, Told
from probes.sites import attention_sites
from probes.video import thumbnail


class Collector:
    """Gathers one clip's record from a run of a predictor, stock or accelerated.

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
        decoder = predictor.sam_mask_decoder
        self.output_tokens = 1 + decoder.num_mask_tokens + int(decoder.pred_obj_scores)
        self.consistency = MemoryConsistency()
        self.frames: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.stored: dict[str, list[tuple[Array, ...]]] = {s: [] for s in settings.row_sites}
        self._pending: dict[tuple[int | None, int], Seen] = {}
        self._coverage: dict[int, dict[int, Tensor]] = {}

    # ------------------------------------------------------------------ while the model runs

    def add(self, call: AttentionCall) -> None:
        """Reduce one attention call; the observer's callback."""
        site, frame = site_of(call), call.moment.frame
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
            if site.kind == "cross":
                compared, shares = self.consistency.add(call, found), slot_shares(found, call)
                for b, entry in enumerate(entries):
                    entry.memory[site.name], entry.shares[site.name] = compared[b], shares[b]
                    entry.readers = call.queries
        if site.kind == "window" and site.stage == 3 and site.grid == self.grid:
            mass = received(call)[0] if found is None else found.mass
            entries[0].stage3[site.name] = even_mass(mass[0], keys_there(call))
        if site.name in self.settings.row_sites:
            for b, entry in enumerate(entries):
                entry.rows[site.name] = raw_rows(call, b, self.settings, self.output_tokens)

    def note_heads(self, told: Told) -> None:
        """Keep what the mask decoder gave for each object last."""
        for b, i in enumerate(told.moment.objects):
            own = tuple(made if made is None else made[b : b + 1] for made in told.what)
            self._pending.setdefault((told.moment.frame, i), Seen()).heads = own

    # ------------------------------------------------------------------ when a frame is done

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
                    **recalled(entry, self.layer_of, len(self.settings.keep_shares)),
                }
            )
            if self.settings.profile is not None:
                self.rows[-1] |= memory_read(entry, self.layer_of, self.grid**2)
            for site in self.settings.row_sites:
                if self.sites[site].part != "encoder":
                    self._store(site, entry)
        union = torch.stack(masks).any(0)
        entry = self._pending.pop((frame, -1), Seen())
        self.frames.append(
            {
                "frame": np.int32(frame),
                "thumbnail": thumbnail(state["images"][frame]).cpu().numpy(),
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
        unread = np.packbits(np.zeros(levels[len(scale) :], bool))
        empty = np.zeros(levels, np.uint8), np.zeros(scale, np.float32), unread
        self.stored[site].append(entry.rows.get(site, empty))

    def _table(self, entry: Seen, of: Literal["encoder", "object"], mask: Tensor, i: int) -> Array:
        names = getattr(self.settings, f"{of}_sites")
        remembered = self._coverage.get(i, {})
        return statistics_table(entry, [self.sites[name] for name in names], mask, remembered)

    def take_arrays(self) -> dict[str, Array]:
        """Hand over everything as the arrays of a shard; what is handed over is no longer held here."""
        most = max(len(row["prompt_frames"]) for row in self.rows)
        for row in self.rows:
            held = row["prompt_frames"]
            row["prompt_frames"] = np.array([*held, *[-1] * (most - len(held))], np.int32)
        merged = {
            name: np.stack([np.asarray(entry.pop(name)) for entry in entries])
            for entries in (self.frames, self.rows)
            for name in list(entries[0])
        }
        for site in list(self.stored):
            parts = self.stored.pop(site)
            groups = ("rows", "row_scale", "row_read")
            for group, arrays in zip(groups, zip(*parts, strict=True), strict=True):
                if group != "row_read" or self.settings.profile is not None:
                    merged[f"{group}/{site}"] = np.stack(arrays)
        return merged
