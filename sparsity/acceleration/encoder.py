"""The image encoder with routed windows (SWR) and exact rewrites.

Two independent switches. *Routing* computes stage 3's blocks after its pooling block on chosen windows
only; the other windows go through a shortcut, and the last global block sees all tokens again (method 2.2).
*Exact* rewrites everything around it (`EarlyStages`, `LateStages`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from probes.seam import Seam
from sparsity.acceleration.blocks import Block, trunk_block
from sparsity.acceleration.derived import Version
from sparsity.acceleration.early import EarlyStages
from sparsity.acceleration.graphs import Run, plainly
from sparsity.acceleration.late import Features, LateStages
from sparsity.acceleration.reuse import CHANGE, LastComputed
from sparsity.acceleration.shortcuts import ShortcutFunction
from sparsity.acceleration.transfer import to_device
from sparsity.acceleration.windows import WindowTokens, cells_within, window_tokens
from sparsity.select import WindowGrid


@dataclass(frozen=True)
class Routing:
    """How one image is encoded.

    Attributes
    ----------
    windows
        Windows of stage 3 to compute; None for all.
    cells
        Cells of 2 x 2 tokens that they are trimmed to; None leaves them whole.
    shortcut
        What the other windows go through; None for the cached one, where `last` has it, and to leave them unchanged.
    keep_change
        Whether to return what the blocks changed (for the cached shortcut).
    techniques
        Calibrated techniques that are on (`sparsity.profile.CALIBRATED_TECHNIQUES`).
    last
        What windows gave before, for techniques that reuse it; it takes what is computed now.
    """

    windows: tuple[int, ...] | None = None
    cells: tuple[int, ...] | None = None
    shortcut: ShortcutFunction | None = None
    keep_change: bool = False
    techniques: frozenset[str] = frozenset()
    last: LastComputed | None = None

    def kept_by(self, technique: str) -> LastComputed | None:
        """Where a technique finds and leaves what windows gave; None where it is off."""
        return self.last if technique in self.techniques else None

    @property
    def kind(self) -> Hashable:
        """All that tells one image's operations from another's, but the sizes of tensors."""
        return self.windows is None, self.techniques, self.keep_change, self.shortcut


@dataclass(frozen=True)
class Places:
    """Where one image is computed, as indices on the device.

    Attributes
    ----------
    stage3
        Tokens of stage 3's routed blocks.
    early
        Squares of 32 x 32 pixels for the early stages; None for all.
    unpooled, pooled
        Tokens of stage 4, before and behind its pooling block.
    beside
        Cells of 2 x 2 tokens that global blocks read as one; None for none.
    """

    stage3: WindowTokens
    early: Tensor | None
    unpooled: WindowTokens
    pooled: WindowTokens
    beside: Tensor | None


Parts = dict[str, tuple[Tensor, ...]]
"""`LastComputed.parts`."""

Given = tuple[Tensor, Places, Parts]

_versions = count()
"""Tell one set of weights from another, also in a state that was copied."""


def window_grid(model: SAM2Base) -> WindowGrid:
    """Stage 3's windows of a model at its image size."""
    return WindowGrid(model.image_size // 16, int(model.image_encoder.trunk.window_spec[2]))


class Encoder:
    """Encodes images with a model's weights in one dtype; see the module's docstring.

    Parameters
    ----------
    model
        Its weights are cast and packed when first used.
    dtype
        Of the products.
    """

    def __init__(self, model: SAM2Base, dtype: torch.dtype, seam: Seam) -> None:
        self.model, self.dtype, self.seam = model, dtype, seam
        self.version: Version = (next(_versions), dtype)
        trunk = model.image_encoder.trunk
        self.first, self.last = trunk.stage_ends[1] + 2, trunk.stage_ends[2]
        self.globals = frozenset(i for i, b in enumerate(trunk.blocks) if b.window_size == 0)

    def __call__(
        self, image: Tensor, routing: Routing, *, exact: bool, run: Run = plainly
    ) -> tuple[Features, Tensor | None]:
        """Encode one image.

        Parameters
        ----------
        image
            Normalised, ``[1, 3, S, S]``.
        run
            Runs all of it, where it is exact: a function of tensors.

        Returns
        -------
        tuple
            sam2's backbone output, and the change that stage 3's blocks made, ``[tokens, C]`` float32,
            where it was asked for.
        """
        if not exact:
            return self._stock_around(image, routing)
        last = routing.last

        def encode(given: Given) -> tuple[Tensor, list[Tensor], Tensor | None, Parts]:
            image, places, parts = given
            how = replace(routing, last=last and replace(last, parts=dict(parts)))
            kept = how.kept_by("reuse_early_stages")
            with torch.autocast(image.device.type, enabled=False):
                with self.seam.joined(places.early):
                    x, high_res = self.early(image, places.early, kept)
                x, change = self.through_stage3(x, how, places)
                kept = how.kept_by("reuse_stage4")
                feature = self.late(x, places.unpooled, places.pooled, kept)
            return feature, high_res, change, how.last.parts if how.last else {}

        given = image, self.places(routing, image.device), last.parts if last else {}
        feature, high_res, change, parts = run(("encoder", routing.kind), encode, given)
        if last is not None:
            last.parts = parts
        return self.late.output(feature, high_res), change

    def places(self, routing: Routing, device: torch.device) -> Places:
        """Find what a routing computes."""
        windows = window_grid(self.model)
        grid, window = windows.tokens, windows.window
        early = beside = late = late_cells = None
        if routing.windows is not None:
            if routing.kept_by("reuse_early_stages"):
                early = cells_within(windows, routing.windows, routing.cells, device)
            if routing.kept_by("reuse_stage4"):
                late, late_cells = routing.windows, routing.cells
            if "pooled_background" in routing.techniques:
                beside = _left_out(windows, routing, device)
        return Places(
            window_tokens(grid, window, routing.windows, device, routing.cells),
            early,
            window_tokens(grid, window, late, device, late_cells),
            window_tokens(grid // 2, window // 2, late, device, late_cells, 1),
            beside,
        )

    def through_stage3(
        self, x: Tensor, routing: Routing, places: Places
    ) -> tuple[Tensor, Tensor | None]:
        """Run stage 3's blocks behind its pooling block on ``[grid, grid, C]`` float32 (method 2.2)."""
        grid, channels = x.shape[0], x.shape[-1]
        where = places.stage3
        whole = len(where.tokens) == grid * grid
        entry = x.reshape(grid * grid, channels)
        others = entry if whole else self._short_cut(entry, routing)
        beside = None
        if places.beside is not None and not whole:
            pooled = others.view(grid // 2, 2, grid // 2, 2, -1).mean((1, 3)).flatten(0, 1)
            beside = pooled.index_select(0, places.beside)
        packed = entry.index_select(0, where.tokens)
        for index in range(self.first, self.last):
            block = self.stage3[index]
            if index in self.globals:
                packed = block.among(packed, where.tokens, beside)
            else:
                packed = block.windowed(packed, where)
        merged = others.index_copy(0, where.tokens, packed)
        change = merged - entry if routing.keep_change else None
        block, kept = self.stage3[self.last], routing.kept_by("reuse_last_block")
        if kept is None:
            out = block.among(merged)
        elif routing.windows is None:
            (out,) = kept.complete("reuse_last_block", None, block.among(merged))
        else:
            fresh = block.read_by(merged, where.tokens)
            (out,) = kept.complete("reuse_last_block", where.tokens, fresh)
        return out.view(grid, grid, channels), change

    def _short_cut(self, entry: Tensor, routing: Routing) -> Tensor:
        """What tokens become that no block changes."""
        if routing.shortcut is not None:
            return routing.shortcut(entry)
        change = routing.last.parts.get(CHANGE) if routing.last else None
        return entry if change is None else entry + change[0]

    def _stock_around(self, image: Tensor, routing: Routing) -> tuple[Features, Tensor | None]:
        """Routed stage 3 inside otherwise stock code; with all windows it is bit-equal to stock."""
        model, trunk = self.model, self.model.image_encoder.trunk
        x = trunk.patch_embed(image)
        x = x + trunk._get_pos_embed(x.shape[1:3])
        levels, change, entry = [], None, x
        for index, block in enumerate(trunk.blocks):
            if routing.windows is not None and self.first <= index <= self.last:
                if index == self.first:
                    with torch.autocast(image.device.type, enabled=False):
                        places = self.places(routing, x.device)
                        out, change = self.through_stage3(x[0].float(), routing, places)
                        x = out[None]
            else:
                if index == self.first:
                    entry = x
                if index == self.last and routing.keep_change:
                    change = (x - entry).flatten(0, 2).float()
                x = block(x)
            if index in trunk.stage_ends:
                levels.append(x.permute(0, 3, 1, 2))
        features, positions = model.image_encoder.neck(levels)
        scalp = model.image_encoder.scalp
        if scalp > 0:
            features, positions = features[:-scalp], positions[:-scalp]
        output: Features = {
            "vision_features": features[-1],
            "vision_pos_enc": positions,
            "backbone_fpn": features,
        }
        if model.use_high_res_features_in_sam:
            features[0] = model.sam_mask_decoder.conv_s0(features[0])
            features[1] = model.sam_mask_decoder.conv_s1(features[1])
        return output, change

    @cached_property
    def stage3(self) -> dict[int, Block]:
        """Blocks of the routed part by index."""
        trunk = self.model.image_encoder.trunk
        span = range(self.first, self.last + 1)
        return {index: trunk_block(trunk, index, self.dtype, self.seam) for index in span}

    @cached_property
    def early(self) -> EarlyStages:
        """Everything before the routed part."""
        return EarlyStages(self.model, self.dtype, self.seam)

    @cached_property
    def late(self) -> LateStages:
        """Everything behind it."""
        return LateStages(self.model, self.dtype, self.seam)


def _left_out(grid: WindowGrid, routing: Routing, device: torch.device) -> Tensor:
    """Cells of 2 x 2 tokens that are not computed, int64, row by row."""
    left_out = torch.ones(grid.cells.count, dtype=torch.bool)
    left_out[cells_within(grid, routing.windows, routing.cells, left_out.device)] = False
    return to_device(torch.nonzero(left_out)[:, 0], device)
