"""Attention as heat: in multiples of the even share, on one logarithmic scale that looks as it does on a frame."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from figures.paint import data_uri, heat_colours
from figures.style import THEMES, ThemeName
from probes.errors import InputError

FLOOR = 0.1
"""Attention below a tenth of the even share is drawn as nothing."""

UNDERNEATH = 85
"""Mean grey level, at most, of what heat is laid over."""

BAR_WIDTH, BAR_GAP = 12, 12
"""Pixels of the scale's bar, and between the pictures and it."""


def even_shares(mass: ArrayLike, even: float | None = None) -> NDArray[np.float64]:
    """Return attention mass ``[h, w]`` as multiples of the even share: 1 everywhere if attention is spread evenly.

    Parameters
    ----------
    even
        Mass of a cell if attention were spread evenly; None: over this map alone, so that its mean is 1.

    >>> even_shares([[0.5, 0.5], [0.0, 0.0]]).tolist()
    [[2.0, 2.0], [0.0, 0.0]]
    """
    values = np.asarray(mass, float)
    if values.ndim != 2 or values.min() < 0 or not np.isfinite(values).all():
        raise InputError(
            f"attention mass of shape {values.shape} given; expected [h, w], finite and not negative; "
            "pass one map on the token grid"
        )
    spread = float(values.mean()) if even is None else even
    return values / spread if spread > 0 else values


def lay_heat(
    figure: go.Figure, shares: NDArray[np.float64], wide: int, tall: int, place: dict[str, int]
) -> None:
    """Lay multiples of the even share over a picture of `wide` x `tall` pixels, at a row and column of the figure."""
    h, w = shares.shape
    figure.add_heatmap(
        z=np.log10(np.maximum(shares, FLOOR)).astype(np.float32),
        customdata=shares.astype(np.float32),
        x0=wide / w / 2,
        dx=wide / w,
        y0=tall / h / 2,
        dy=tall / h,
        coloraxis="coloraxis",
        hovertemplate="%{customdata:.2f} × even share<extra></extra>",
        **place,
    )


def add_scale(figure: go.Figure, peak: float, theme: ThemeName) -> None:
    """Set the colours of all heat from a tenth of the even share to the peak, and draw their bar at the right.

    Little attention is transparent, so the bar is painted over grey, as the maps are.
    """
    top = max(1.0, float(np.ceil(np.log10(max(peak, FLOOR)) * 2) / 2))
    low = float(np.log10(FLOOR))
    table = heat_colours()
    opacity = np.minimum(0.85, 0.12 + 0.95 * np.arange(256) / 255)
    figure.update_layout(
        coloraxis={
            "cmin": low,
            "cmax": top,
            "showscale": False,
            "colorscale": [
                [i / 255, f"rgba({','.join(map(str, table[i]))},{opacity[i]:.2f})"]
                for i in range(0, 256, 15)
            ],
        }
    )
    seen = table * opacity[:, None] + UNDERNEATH * (1 - opacity[:, None])
    width, height = figure.layout.width, figure.layout.height
    margin = figure.layout.margin
    across = width - margin.l - margin.r
    length = 1 - 44 / (height - margin.t - margin.b)  # below the title of the scale
    figure.add_layout_image(
        source=data_uri(np.repeat(seen[::-1, None].astype(np.uint8), BAR_WIDTH, axis=1), 95),
        name="scale",
        xref="paper",
        yref="paper",
        x=1 + BAR_GAP / across,
        y=0,
        yanchor="bottom",
        sizex=BAR_WIDTH / across,
        sizey=length,
        sizing="stretch",
    )
    font = {"size": 12, "color": THEMES[theme].ink}
    beside = {"xref": "paper", "yref": "paper", "x": 1, "xanchor": "left", "showarrow": False}
    figure.add_annotation(
        text="attention /<br>even share", y=1, yanchor="top", yshift=6, xshift=BAR_GAP - 2,
        align="left", font=font, **beside,
    )  # fmt: skip
    for tick in range(-1, int(np.floor(top)) + 1):
        figure.add_annotation(
            text=f"{10.0**tick:g}×", y=length * (tick - low) / (top - low), yanchor="middle",
            xshift=BAR_GAP + BAR_WIDTH + 2, font=font, **beside,
        )  # fmt: skip
