"""Look inside SAM 2 while it tracks: models, videos, attention, and statistics of it.

Names are imported when they are first used, so that ``probes.records`` opens without torch or sam2.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
