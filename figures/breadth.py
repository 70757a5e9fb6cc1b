"""How broad and how far the attention of each block is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from figures.style import THEMES, ThemeName, finish
from probes.errors import InputError


@dataclass(frozen=True)
class Breadth:
    """One block's attention.

    Attributes
    ----------
    site
        Its dotted name, such as ``encoder.stage3.block12.global``.
    entropy
        Normalised, in [0, 1]: 0 is one key, 1 is an even spread. Mean over queries, median over what the range
        is over.
    distance
        Mean attention distance in input pixels; None where keys have no place.
    entropy_range, distance_range
        Quartiles, between which half of the heads or frames lie, and the value too; None to leave it out.
    """

    site: str
    entropy: float
    distance: float | None = None
    entropy_range: tuple[float, float] | None = None
    distance_range: tuple[float, float] | None = None


def draw_breadth(
    blocks: Sequence[Breadth],
    caption: str,
    *,
    title: str = "How broad attention is, and how far it reaches",
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw normalised entropy and mean attention distance, block by block, a colour a stage.

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
        shade = THEMES[theme].series[n % len(THEMES[theme].series)]
        mine = [i for i, block in enumerate(blocks) if _stage(block.site) == stage]
        for row, kind in enumerate(("entropy", "distance"), 1):
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
    figure.update_yaxes(title="entropy, normalised", range=[0, 1.05], row=1, col=1)
    figure.update_yaxes(title="distance / px", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(
        tickvals=list(range(len(names))), ticktext=names, showgrid=False, zeroline=False
    )
    figure.update_xaxes(title="block (■ global attention)", row=2, col=1)
    finish(figure, title, caption, theme, height=600, below=62, top=86)
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0})
    return figure


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
    if not any(ranges):
        return None
    middle = [getattr(block, kind) for block in blocks]
    for block, m, r in zip(blocks, middle, ranges, strict=True):
        if r and not r[0] <= m <= r[1]:
            raise InputError(
                f"{kind} {m:.3g} of {block.site} lies outside its range {r[0]:.3g} to {r[1]:.3g}; expected a value "
                "inside; pass the median with quartiles"
            )
    return {
        "array": [r[1] - m if r else 0 for r, m in zip(ranges, middle, strict=True)],
        "arrayminus": [m - r[0] if r else 0 for r, m in zip(ranges, middle, strict=True)],
        "thickness": 1,
        "width": 3,
    }
