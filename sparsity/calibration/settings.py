"""What calibration varies, and what it takes over from the built-in profile that its settings build on."""

from __future__ import annotations

from dataclasses import dataclass

from sparsity.profile import EXACT_TECHNIQUES, Guard, Memory, Profile, Router, Shortcut, Windows
from sparsity.profiles import BUILTIN

BASES = tuple(name for name, profile in BUILTIN.items() if profile.windows and profile.memory)
"""Built-in profiles that settings may build on."""


@dataclass(frozen=True)
class Setting:
    """The parts of a profile that calibration varies."""

    windows: Windows | None
    guard: Guard = Guard()
    memory: Memory | None = None
    router: Router | None = None


def built_on(base: Profile, name: str, setting: Setting, shortcut: Shortcut) -> Profile:
    """Make a profile of a setting.

    Parameters
    ----------
    base
        Says what becomes of windows that are left out: techniques, rolling refresh and readers of memory.
    shortcut
        Of those windows.
    """
    windows, memory = setting.windows, setting.memory
    if windows is None:
        exact = dict.fromkeys(EXACT_TECHNIQUES, True)
        return Profile(name=name, memory=memory, guard=setting.guard, techniques=exact)
    assert base.windows is not None and base.memory is not None, "bases have both methods"
    if base.memory.readers == "routed":
        memory = (memory or Memory(keep=1.0)).model_copy(update={"readers": "routed"})
    return Profile(
        name=name,
        windows=windows.model_copy(update={"rolling_refresh": base.windows.rolling_refresh}),
        memory=memory,
        shortcut=shortcut,
        guard=setting.guard,
        router=setting.router,
        techniques=base.techniques,
    )
