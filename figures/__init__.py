"""Figures of attention, routing, speed and accuracy: data in, plotly figure out.

Needs neither torch nor sam2, so a result opens anywhere. Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from figures.export import save as save

_HOME = {
    "save": "figures.export",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'figures' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
