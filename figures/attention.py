"""Where the encoder and the decoder look over the frame, and how broad and how far attention is, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from figures.paint import even_shares, stretch
from figures.style import THEMES, ThemeName, error_bars, finish
from figures.tiles import Tile, draw_tiles
from probes.errors import InputError


def draw_encoder_and_decoder(
    frame: ArrayLike,
    masks: Mapping[int, ArrayLike],
    encoder: Mapping[int, ArrayLike],
    decoder: Mapping[int, ArrayLike],
    caption: str,
    *,
    title: str = "The decoder looks at the object; does the encoder?",
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw, for each object, what its pixels attend to in the encoder and what its tokens read in the decoder.

    Parameters
    ----------
    frame
        uint8 ``[H, W, 3]``.
    masks
        Bool ``[H', W']`` by object id.
    encoder, decoder
        Attention mass on the token grid, ``[h, w]``, by object id.

    Notes
    -----
    The lift below a picture is the mass on the object over its share of the area: 1 is chance.
    """
    if not masks or masks.keys() != encoder.keys() or masks.keys() != decoder.keys():
        raise InputError(
            f"masks of objects {sorted(masks)}, encoder maps of {sorted(encoder)} and decoder maps of "
            f"{sorted(decoder)} given; expected the same objects, at least one; pass all three for each"
        )
    rows = []
    for identity, mask in masks.items():
        only = {identity: mask}
        rows.append(
            [
                Tile(frame, masks=only),
                Tile(frame, encoder[identity], only, f"lift {lift(encoder[identity], mask):.1f}×"),
                Tile(frame, decoder[identity], only, f"lift {lift(decoder[identity], mask):.1f}×"),
            ]
        )
    return draw_tiles(
        rows,
        title,
        caption,
        theme=theme,
        row_names=[f"object {identity}" for identity in masks],
        column_names=["frame", "encoder: from the object's pixels", "decoder: from its tokens"],
    )


def lift(mass: ArrayLike, mask: ArrayLike) -> float:
    """Attention mass on an object over its share of the area; 1 is chance, NaN for an empty mask.

    Cells that took no part are NaN, and count neither as mass nor as area.

    >>> lift([[0.5, 0.5], [0.0, 0.0]], [[1, 1], [0, 0]])
    2.0
    """
    shares = even_shares(mass)
    inside = np.asarray(mask) > 0
    h, w = shares.shape
    # each token counts by the part of its area that the object covers
    fine = stretch(inside, h * 8, w * 8).reshape(h, 8, w, 8).mean(axis=(1, 3))
    fine = np.where(np.isnan(shares), 0, fine)
    return float(np.nansum(shares * fine) / fine.sum()) if fine.any() else float("nan")


@dataclass(frozen=True)
class Breadth:
    """One block's attention.

    Attributes
    ----------
    site
        Its dotted name, such as ``encoder.stage3.block12.global``.
    support
        Among how many keys a query's attention is spread, from 1: the exponential of its entropy. Mean over queries,
        median over what the range is over. Normalised entropies can't stand side by side where blocks have windows of
        other sizes, that is, other numbers of keys.
    distance
        Mean attention distance in input pixels; None where keys have no place.
    support_range, distance_range
        Quartiles, between which half of the heads or frames lie, and the value too; None to leave it out.
    """

    site: str
    support: float
    distance: float | None = None
    support_range: tuple[float, float] | None = None
    distance_range: tuple[float, float] | None = None


def draw_breadth(
    blocks: Sequence[Breadth],
    caption: str,
    *,
    title: str = "How broad attention is, and how far it reaches",
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw effective support and mean attention distance, block by block, a colour a stage.

    Parameters
    ----------
    blocks
        In the order of the model; the first two parts of a site's name are its stage.

    Raises
    ------
    InputError
        No blocks, or a value outside its range.
    """
    if not blocks:
        raise InputError("no blocks given; expected at least one; probe an encoder site")
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.09)
    stages = list(dict.fromkeys(_stage(block.site) for block in blocks))
    names = [_short(block.site) for block in blocks]
    for n, stage in enumerate(stages):
        shade = THEMES[theme].nth(n)
        mine = [i for i, block in enumerate(blocks) if _stage(block.site) == stage]
        for row, kind in enumerate(("support", "distance"), 1):
            found = [i for i in mine if getattr(blocks[i], kind) is not None]
            figure.add_scatter(
                x=found,
                y=[getattr(blocks[i], kind) for i in found],
                error_y=_bars([blocks[i] for i in found], kind),
                mode="lines+markers",
                line={"color": shade, "width": 1.5},
                marker={
                    "size": 9,
                    "symbol": ["square" if "global" in blocks[i].site else "circle" for i in found],
                },
                name=stage,
                legendgroup=stage,
                showlegend=row == 1,
                text=[blocks[i].site for i in found],
                hovertemplate="%{text}<br>%{y:.3g}<extra></extra>",
                row=row,
                col=1,
            )
    figure.update_yaxes(title="effective support / keys", type="log", dtick=1, row=1, col=1)
    figure.update_yaxes(title="distance / px", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(
        tickvals=list(range(len(names))), ticktext=names, showgrid=False, zeroline=False
    )
    figure.update_xaxes(title="block (■ global attention)", row=2, col=1)
    return finish(figure, title, caption, theme, height=600, below=62, top=86, legend="above")


def _stage(site: str) -> str:
    """The first parts of a name: ``encoder.stage3``, or ``memory`` where there are no stages."""
    parts = site.split(".")
    return ".".join(parts[:2]) if parts[1].startswith("stage") else parts[0]


def _short(site: str) -> str:
    """The block's number, or the rest of the name."""
    parts = [part for part in site.split(".") if not part.startswith("stage")]
    return ".".join(parts[1:2]).replace("block", "").replace("layer", "L")


def _bars(blocks: Sequence[Breadth], kind: str) -> dict[str, object] | None:
    """Error bars from the ranges, where there are any."""
    ranges = [getattr(block, f"{kind}_range") for block in blocks]
    middle = [getattr(block, kind) for block in blocks]
    for block, m, r in zip(blocks, middle, ranges, strict=True):
        if r and not r[0] <= m <= r[1]:
            raise InputError(
                f"{kind} {m:.3g} of {block.site} lies outside its range {r[0]:.3g} to {r[1]:.3g}; expected a value "
                "inside; pass the median with quartiles"
            )
    return error_bars(middle, ranges, thickness=1, width=3)
