"""Figures of attention, routing, speed and accuracy: data in, plotly figure out.

Needs neither torch nor sam2, so a result opens anywhere. Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from figures.ablation import KeptCurve as KeptCurve
    from figures.ablation import draw_ablation as draw_ablation
    from figures.attention import draw_encoder_and_decoder as draw_encoder_and_decoder
    from figures.breadth import Breadth as Breadth
    from figures.breadth import draw_breadth as draw_breadth
    from figures.concentration import draw_concentration as draw_concentration
    from figures.explorer.widget import explore as explore
    from figures.export import save as save
    from figures.filmstrip import Recollection as Recollection
    from figures.filmstrip import draw_memory_filmstrip as draw_memory_filmstrip
    from figures.overview import MemoryTile as MemoryTile
    from figures.overview import draw_overview as draw_overview
    from figures.player import RoutedFrame as RoutedFrame
    from figures.player import draw_window_player as draw_window_player
    from figures.recall import RecallCurve as RecallCurve
    from figures.recall import draw_recall as draw_recall
    from figures.style import evidence as evidence
    from figures.tiles import Tile as Tile
    from figures.tiles import draw_tiles as draw_tiles
    from figures.times import draw_times as draw_times
    from figures.times import times_of as times_of
    from figures.tradeoff import TradeOff as TradeOff
    from figures.tradeoff import draw_trade_off as draw_trade_off
    from figures.tradeoff import trade_offs_of as trade_offs_of

_HOME = {
    "Breadth": "figures.breadth",
    "KeptCurve": "figures.ablation",
    "MemoryTile": "figures.overview",
    "RecallCurve": "figures.recall",
    "Recollection": "figures.filmstrip",
    "RoutedFrame": "figures.player",
    "Tile": "figures.tiles",
    "TradeOff": "figures.tradeoff",
    "draw_ablation": "figures.ablation",
    "draw_breadth": "figures.breadth",
    "draw_concentration": "figures.concentration",
    "draw_encoder_and_decoder": "figures.attention",
    "draw_memory_filmstrip": "figures.filmstrip",
    "draw_overview": "figures.overview",
    "draw_recall": "figures.recall",
    "draw_tiles": "figures.tiles",
    "draw_times": "figures.times",
    "draw_trade_off": "figures.tradeoff",
    "draw_window_player": "figures.player",
    "evidence": "figures.style",
    "explore": "figures.explorer.widget",
    "save": "figures.export",
    "times_of": "figures.times",
    "trade_offs_of": "figures.tradeoff",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'figures' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
