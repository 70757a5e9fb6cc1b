"""Techniques beyond the paper that change results: each is a switch of the profile, off in every built-in one.

`FURTHER` is the table that the benchmark, the quality of `benchmarks/techniques.py`, the page of the docs and
the tests run over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

from sparsity.profile import BUILTIN, Profile, Shortcut

Switch = Callable[[Profile], Profile]
"""From a profile to the same with a technique switched on."""


def _memory(profile: Profile, **settings: Any) -> Profile:
    assert profile.memory is not None, "techniques go on top of both methods"
    return profile.model_copy(update={"memory": profile.memory.model_copy(update=settings)})


def _technique(profile: Profile, name: str) -> Profile:
    return profile.model_copy(update={"techniques": {**profile.techniques, name: True}})


FURTHER: dict[str, Switch] = {
    "routed readers": partial(_memory, readers="routed"),
    "prompt and newest frame pruned": partial(_memory, exempt=("pointers",)),
    "pooled background": partial(_technique, name="pooled_background"),
    "stage 4 reused": partial(_technique, name="reuse_stage4"),
    "last block reused": partial(_technique, name="reuse_last_block"),
    "early stages reused": partial(_technique, name="reuse_early_stages"),
    "cached shortcut": lambda p: p.model_copy(update={"shortcut": Shortcut(kind="cached")}),
}
"""Switches by the name of their row."""

TOGETHER = ("cached shortcut", "stage 4 reused", "last block reused", "early stages reused")
"""Those that pay together; docs/techniques.md says what they lose."""

REFRESH = 6
"""Every so many frames all windows of the recommended profile are computed, so that none grows old."""

RECOMMENDED = "recommended"


def further_profiles(base: Profile = BUILTIN["paper"]) -> list[Profile]:
    """Make a profile of each technique on top of `base`, and one of those that pay together."""
    alone = [
        switch(base).model_copy(update={"name": f"+ {name}"}) for name, switch in FURTHER.items()
    ]
    together = reduce(lambda profile, name: FURTHER[name](profile), TOGETHER, base)
    guard = base.guard.model_copy(update={"refresh_every": REFRESH})
    return [*alone, together.model_copy(update={"name": RECOMMENDED, "guard": guard})]
