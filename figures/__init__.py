"""Figures of attention, routing, speed and accuracy: data in, plotly figure out.

Needs neither torch nor sam2, so a result opens anywhere. Names are imported when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
