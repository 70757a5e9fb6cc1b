"""Techniques beyond the paper that change results, each a switch of the profile.

`FURTHER` is the table that the benchmark, the quality of `benchmarks/techniques.py`, the page of the docs and
the tests run over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sparsity.profile import Profile, Shortcut
from sparsity.profiles import BUILTIN

Switch = Callable[[Profile], Profile]
"""From a profile to the same with a technique switched on."""


def _memory(profile: Profile, **settings: Any) -> Profile:
    assert profile.memory is not None, "techniques go on top of both methods"
    return profile.model_copy(update={"memory": profile.memory.model_copy(update=settings)})


def _windows(profile: Profile, **settings: Any) -> Profile:
    assert profile.windows is not None, "techniques go on top of both methods"
    return profile.model_copy(update={"windows": profile.windows.model_copy(update=settings)})


def _technique(profile: Profile, name: str) -> Profile:
    return profile.model_copy(update={"techniques": {**profile.techniques, name: True}})


FURTHER: dict[str, Switch] = {
    "routed readers": partial(_memory, readers="routed"),
    "prompt and newest frame pruned": partial(_memory, exempt=("pointers",)),
    "pooled background": partial(_technique, name="pooled_background"),
    "stage 4 reused": partial(_technique, name="reuse_stage4"),
    "last block reused": partial(_technique, name="reuse_last_block"),
    "early stages reused": partial(_technique, name="reuse_early_stages"),
    "rolling refresh": partial(_windows, rolling_refresh=6),
    "trimmed windows": partial(_windows, trimmed=True, margin_px=24.0),
    "cached shortcut": lambda p: p.model_copy(update={"shortcut": Shortcut(kind="cached")}),
}
"""Switches by the name of their row."""


def further_profiles() -> list[Profile]:
    """Make a profile of each technique on top of ``paper``; behind them stands ``recommended``."""
    paper = BUILTIN["paper"]
    alone = [
        switch(paper).model_copy(update={"name": f"+ {name}"}) for name, switch in FURTHER.items()
    ]
    return [*alone, BUILTIN["recommended"]]
