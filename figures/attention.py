"""Where the encoder and the decoder look, over the frame: the paper's first observation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from figures.heat import even_shares
from figures.paint import stretch
from figures.style import ThemeName
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

    >>> lift([[0.5, 0.5], [0.0, 0.0]], [[1, 1], [0, 0]])
    2.0
    """
    shares = even_shares(mass)
    inside = np.asarray(mask) > 0
    h, w = shares.shape
    # each token counts by the part of its area that the object covers
    fine = stretch(inside, h * 8, w * 8).reshape(h, 8, w, 8).mean(axis=(1, 3))
    return float((shares * fine).sum() / fine.sum()) if fine.any() else float("nan")
