from .attention import Breadth as Breadth
from .attention import draw_breadth as draw_breadth
from .attention import draw_encoder_and_decoder as draw_encoder_and_decoder
from .benchmark import TradeOff as TradeOff
from .benchmark import draw_times as draw_times
from .benchmark import draw_trade_off as draw_trade_off
from .benchmark import times_of as times_of
from .benchmark import trade_offs_of as trade_offs_of
from .comparison import compare as compare
from .explorer.widget import explore as explore
from .export import save as save
from .filmstrip import Recollection as Recollection
from .filmstrip import draw_memory_filmstrip as draw_memory_filmstrip
from .kept import KeptCurve as KeptCurve
from .kept import RecallCurve as RecallCurve
from .kept import draw_ablation as draw_ablation
from .kept import draw_recall as draw_recall
from .overview import MemoryTile as MemoryTile
from .overview import draw_overview as draw_overview
from .overview import memory_tiles as memory_tiles
from .picker import Picker as Picker
from .picker import pick as pick
from .player import RoutedFrame as RoutedFrame
from .player import draw_window_player as draw_window_player
from .player import routed_frames as routed_frames
from .statistics import draw_concentration as draw_concentration
from .statistics import draw_statistic as draw_statistic
from .style import evidence as evidence
from .tiles import Tile as Tile
from .tiles import draw_tiles as draw_tiles
from .tracker import Tracker as Tracker
from .tracker import track as track

__all__ = [
    "Breadth",
    "KeptCurve",
    "MemoryTile",
    "Picker",
    "RecallCurve",
    "Recollection",
    "RoutedFrame",
    "Tile",
    "Tracker",
    "TradeOff",
    "compare",
    "draw_ablation",
    "draw_breadth",
    "draw_concentration",
    "draw_encoder_and_decoder",
    "draw_memory_filmstrip",
    "draw_overview",
    "draw_recall",
    "draw_statistic",
    "draw_tiles",
    "draw_times",
    "draw_trade_off",
    "draw_window_player",
    "evidence",
    "explore",
    "memory_tiles",
    "pick",
    "routed_frames",
    "save",
    "times_of",
    "track",
    "trade_offs_of",
]
