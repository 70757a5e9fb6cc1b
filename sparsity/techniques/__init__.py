"""One technique a file: its settings, its pure rule, and what it remembers from frame to frame."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Share = Annotated[FiniteFloat, Field(gt=0, le=1)]
"""A share in (0, 1]."""


KEY = "efficient"
"""Key of our entry in sam2's dicts: of a video's state, and of an object's result on a frame. In the latter each technique
keeps what it remembers under its own name, so it follows the result when objects are removed, frames are tracked anew or
results are dropped."""


class Settings(BaseModel):
    """Settings of a technique: unknown keys, NaN and values out of range are refused, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
