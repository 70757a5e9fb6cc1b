"""The image encoder with routed windows (SWR) and exact rewrites.

Two independent switches. *Routing* computes stage 3's blocks after its pooling block on chosen windows
only; the other windows go through the adapter, and the last global block sees all tokens again (method 2.2).
*Exact* rewrites everything around it (`EarlyStages`, `LateStages`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from probes.seam import Seam
from sparsity.acceleration.model.blocks import Block, trunk_block
from sparsity.acceleration.model.graphs import Run, plainly
from sparsity.acceleration.model.linear import Linear
from sparsity.acceleration.model.stages import (
    EarlyStages,
    Features,
    LateStages,
    early_modules,
    late_modules,
    stage3_modules,
)
from sparsity.acceleration.model.weights import new_version
from sparsity.acceleration.model.windows import WindowTokens, to_device, window_tokens
from sparsity.techniques.adapter import AdapterFunction
from sparsity.techniques.reuse import CHANGE, LastComputed
from sparsity.techniques.select import WindowGrid


@dataclass(frozen=True)
class Encoding:
    """How one image is encoded.

    Attributes
    ----------
    cells
        Cells of 2 x 2 tokens of stage 3 to compute; None for all.
    adapter
        What the other tokens go through; None for the cached one, where `last` has it, and to leave them unchanged.
    keep_change
        Whether to return what the blocks changed (for the cached adapter).
    reused
        Parts that are taken over where they are not computed (`sparsity.techniques.reuse.REUSED_PARTS`).
    last
        What tokens gave before, for parts that are taken over; it takes what is computed now.
    """

    cells: tuple[int, ...] | None = None
    adapter: AdapterFunction | None = None
    keep_change: bool = False
    reused: frozenset[str] = frozenset()
    last: LastComputed | None = None

    def kept_by(self, part: str) -> LastComputed | None:
        """Where a part finds and leaves what tokens gave; None where it is not taken over."""
        return self.last if part in self.reused else None

    @property
    def kind(self) -> Hashable:
        """All that tells one image's operations from another's, but the sizes of tensors."""
        return self.cells is None, self.reused, self.keep_change, self.adapter


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
    """

    stage3: WindowTokens
    early: Tensor | None
    unpooled: WindowTokens
    pooled: WindowTokens


Kept = dict[str, tuple[Tensor, ...]]
"""`LastComputed.parts`."""

Given = tuple[Tensor, Places, Kept]


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
    linear
        Kind of the blocks' linear layers.
    """

    def __init__(
        self, model: SAM2Base, dtype: torch.dtype, seam: Seam, linear: type[Linear] = Linear
    ) -> None:
        self.model, self.dtype, self.seam, self.linear = model, dtype, seam, linear
        self.version = new_version(dtype)
        trunk, self.grid = model.image_encoder.trunk, window_grid(model)
        self.first, self.last = trunk.stage_ends[1] + 2, trunk.stage_ends[2]
        self.globals = frozenset(
            i for i, b in enumerate(trunk.blocks) if getattr(b, "window_size", 1) == 0
        )

    def __call__(
        self,
        image: Tensor,
        encoding: Encoding,
        *,
        exact: bool,
        changed: Collection[str] = (),
        run: Run = plainly,
    ) -> tuple[Features, Tensor | None]:
        """Encode one image, or several whose windows are all computed, where it is exact.

        Parameters
        ----------
        image
            Normalised, ``[B, 3, S, S]``.
        changed
            Parts that run through the modules themselves, as `sparsity.acceleration.model.changes` names them; all
            windows are computed where there are any, and one image at a time.
        run
            Runs all of it, where it is exact: a function of tensors.

        Returns
        -------
        tuple
            sam2's backbone output, and the change that stage 3's blocks made, ``[B * tokens, C]`` float32,
            where it was asked for.
        """
        if not exact:
            return self._stock_around(image, encoding)
        last = encoding.last

        def encode(given: Given) -> tuple[Tensor, list[Tensor], Tensor | None, Kept]:
            image, places, kept = given
            how = replace(encoding, last=last and replace(last, parts=dict(kept)))
            with torch.autocast(image.device.type, enabled=False):
                if "early stages" in changed:
                    x, high_res = self._plainly(early_modules, image)
                else:
                    with self.seam.joined(places.early):
                        x, high_res = self.early(image, places.early, how.kept_by("early"))
                if "stage 3" in changed:
                    x, change = self._plainly(stage3_modules, x), None
                else:
                    x, change = self.through_stage3(x, how, places.stage3)
                if "late stages" in changed:
                    feature = self._plainly(late_modules, x)
                else:
                    feature = self.late(x, places.unpooled, places.pooled, how.kept_by("stage4"))
            return feature, high_res, change, how.last.parts if how.last else {}

        places = self.places(encoding, image.device, len(image))
        given = image, places, last.parts if last else {}
        feature, high_res, change, kept = run(("encoder", encoding.kind), encode, given)
        if last is not None:
            last.parts = kept
        return self.late.output(feature, high_res), change

    def _plainly(self, function: Callable[[SAM2Base, Tensor], Any], x: Tensor) -> Any:
        """Run modules themselves, in the run's number format."""
        cast = self.dtype != next(self.model.parameters()).dtype
        with torch.autocast(x.device.type, self.dtype, enabled=cast):
            return function(self.model, x)

    def places(self, encoding: Encoding, device: torch.device, pictures: int = 1) -> Places:
        """Find what is computed in each picture."""
        cells, grid = encoding.cells, self.grid
        early, late = None, cells if encoding.kept_by("stage4") else None
        if cells is not None and encoding.kept_by("early"):
            early = to_device(torch.tensor(cells), device)
        tokens = grid.tokens**2
        return Places(
            window_tokens(grid, cells, device).in_each(pictures, tokens),
            early,
            window_tokens(grid, late, device).in_each(pictures, tokens),
            window_tokens(grid.half, late, device, 1).in_each(pictures, tokens // 4),
        )

    def through_stage3(
        self, x: Tensor, encoding: Encoding, where: WindowTokens
    ) -> tuple[Tensor, Tensor | None]:
        """Run stage 3's blocks behind its pooling block on ``[B * grid, grid, C]`` float32 (method 2.2)."""
        below, grid, channels = x.shape
        pictures, whole = below // grid, len(where.tokens) == below * grid
        entry = x.reshape(below * grid, channels)
        others = entry if whole else self._adapted(entry, encoding)
        packed = entry.index_select(0, where.tokens)
        for index in range(self.first, self.last):
            block = self.stage3[index]
            if index in self.globals:
                packed = block.among(packed, where.tokens, pictures)
            else:
                packed = block.windowed(packed, where)
        merged = others.index_copy(0, where.tokens, packed)
        change = merged - entry if encoding.keep_change else None
        block, kept = self.stage3[self.last], encoding.kept_by("last_block")
        if kept is None:
            out = block.among(merged, pictures=pictures)
        elif encoding.cells is None:
            fresh = block.among(merged, pictures=pictures)
            (out,) = kept.complete("last_block", None, fresh)
        else:
            fresh = block.read_by(merged, where.tokens)
            (out,) = kept.complete("last_block", where.tokens, fresh)
        return out.view(below, grid, channels), change

    def _adapted(self, entry: Tensor, encoding: Encoding) -> Tensor:
        """What tokens become that no block changes."""
        if encoding.adapter is not None:
            return encoding.adapter(entry)
        change = encoding.last.parts.get(CHANGE) if encoding.last else None
        return entry if change is None else entry + change[0]

    def _stock_around(self, image: Tensor, encoding: Encoding) -> tuple[Features, Tensor | None]:
        """Routed stage 3 inside otherwise stock code; with all windows it is bit-equal to stock."""
        model, trunk = self.model, self.model.image_encoder.trunk
        x = trunk.patch_embed(image)
        x = x + trunk._get_pos_embed(x.shape[1:3])
        levels, change, entry = [], None, x
        for index, block in enumerate(trunk.blocks):
            if encoding.cells is not None and self.first <= index <= self.last:
                if index == self.first:
                    with torch.autocast(image.device.type, enabled=False):
                        where = window_tokens(self.grid, encoding.cells, x.device)
                        out, change = self.through_stage3(x[0].float(), encoding, where)
                        x = out[None]
            else:
                if index == self.first:
                    entry = x
                if index == self.last and encoding.keep_change:
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
        return {
            index: trunk_block(trunk, index, self.dtype, self.seam, self.linear) for index in span
        }

    @cached_property
    def early(self) -> EarlyStages:
        """Everything before the routed part."""
        return EarlyStages(self.model, self.dtype, self.seam, self.linear)

    @cached_property
    def late(self) -> LateStages:
        """Everything behind it."""
        return LateStages(self.model, self.dtype, self.seam, self.linear)
