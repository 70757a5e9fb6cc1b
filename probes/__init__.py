"""Look inside SAM 2 while it tracks: models, videos, attention, and statistics of it.

Names are imported when they are first used, so that ``probes.records`` opens without torch or sam2.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.errors import InputError as InputError
    from probes.maps import attention_map as attention_map
    from probes.models import MODEL_NAMES as MODEL_NAMES
    from probes.models import build_predictor as build_predictor
    from probes.models import fingerprint as fingerprint
    from probes.models import name_of as name_of
    from probes.observing import observe as observe
    from probes.recording import record as record
    from probes.sites import attention_sites as attention_sites
    from probes.video import open_video as open_video

_HOME = {
    "InputError": "probes.errors",
    "MODEL_NAMES": "probes.models",
    "attention_map": "probes.maps",
    "attention_sites": "probes.sites",
    "build_predictor": "probes.models",
    "fingerprint": "probes.models",
    "name_of": "probes.models",
    "observe": "probes.observing",
    "open_video": "probes.video",
    "record": "probes.recording",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'probes' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
