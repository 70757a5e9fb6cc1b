"""SAM 2's mask decoder with weights cast once for as long as autocast lasts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from sam2.modeling.sam.mask_decoder import MaskDecoder


class CastOnceMaskDecoder(MaskDecoder):
    """Shares all modules of a stock mask decoder and computes the same, bit for bit.

    sam2 runs under inference mode, where autocast casts every weight anew on every call.
    """

    casting_once: Callable[[], AbstractContextManager[None]]

    @classmethod
    def sharing(
        cls, decoder: MaskDecoder, casting_once: Callable[[], AbstractContextManager[None]]
    ) -> CastOnceMaskDecoder:
        """Wrap a mask decoder; names of parameters stay as they are."""
        shared = cls.__new__(cls)
        shared.__dict__ = dict(decoder.__dict__)
        shared.__dict__["casting_once"] = casting_once
        return shared

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Decode masks, like stock."""
        with self.casting_once():
            return super().forward(*args, **kwargs)
