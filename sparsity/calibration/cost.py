"""What a frame costs as windows and keys are left out: from multiplications, and from measured time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.calibration.clips import CalibrationClip
from sparsity.calibration.settings import Setting, built_on
from sparsity.evaluation.flops import counted_flops
from sparsity.profile import Memory, Profile, Shortcut, Windows
from sparsity.profiles import BUILTIN

FRAMES = 12
"""Tracked for a measurement; the memory bank fills up on the way."""


def probed(base: Profile, shortcut: Shortcut) -> tuple[Profile, ...]:
    """Profiles that are measured: with all, with few windows, and with few keys too."""
    few = Setting(Windows())
    fewer = Setting(Windows(), memory=Memory(keep=0.05))
    return (
        BUILTIN["exact"],
        built_on(base, "few windows", few, shortcut),
        built_on(base, "few windows and keys", fewer, shortcut),
    )


@dataclass(frozen=True)
class Cost:
    """A plane: the cost of a frame against one with every window and key.

    Attributes
    ----------
    fixed
        What neither windows nor keys change.
    windows, keys
        What all windows and all keys of a full bank add.
    """

    fixed: float
    windows: float
    keys: float

    def __call__(self, windows: float, keys: float) -> float:
        """Cost at shares of windows computed and keys read, 1 at ``(1, 1)``."""
        return self.fixed + self.windows * windows + self.keys * keys


def fit_cost(
    windows: NDArray[np.float64], keys: NDArray[np.float64], amount: NDArray[np.float64]
) -> Cost:
    """Fit the plane to frames.

    Parameters
    ----------
    windows, keys
        Shares by frame, ``[n]``.
    amount
        Operations or seconds by frame, ``[n]``.

    Examples
    --------
    >>> shares = np.array([1.0, 0.25, 1.0]), np.array([1.0, 1.0, 0.3])
    >>> cost = fit_cost(*shares, np.array([100.0, 70.0, 86.0]))
    >>> round(cost(1, 1), 6), round(cost(0.5, 0.5), 6)
    (1.0, 0.7)
    """
    table = np.stack([np.ones_like(windows), windows, keys], 1)
    fixed, by_window, by_key = np.linalg.lstsq(table, amount, rcond=None)[0]
    by_window, by_key = max(by_window, 0.0), max(by_key, 0.0)
    whole = fixed + by_window + by_key
    return Cost(float(fixed / whole), float(by_window / whole), float(by_key / whole))


def measure_cost(
    predictor: EfficientSAM2VideoPredictor,
    clip: CalibrationClip,
    base: Profile,
    shortcut: Shortcut,
) -> tuple[Cost, Cost]:
    """Track the objects of a clip's start with every, few windows and few keys.

    A first time goes by unmeasured: weights are packed then, and formulations of attention are tried.

    Parameters
    ----------
    base, shortcut
        What settings build on, and what windows go through that are not computed; both cost something.

    Returns
    -------
    tuple
        The cost in operations and the cost in time on this machine.
    """
    _, operations, seconds = (
        [
            row
            for profile in probed(base, shortcut)
            for row in _frames(predictor, clip, profile, counted)
        ]
        for counted in (False, True, False)
    )
    return fit_cost(*np.array(operations).T), fit_cost(*np.array(seconds).T)


def _frames(
    predictor: EfficientSAM2VideoPredictor, clip: CalibrationClip, profile: Profile, counted: bool
) -> list[tuple[float, float, float]]:
    """Windows, keys and amount of each tracked frame, from where frames may be routed."""
    amounts = []
    with predictor.use(profile, force=True):
        state = predictor.init_state(clip.video)
        for object_id, mask in clip.prompts().items():
            predictor.add_new_mask(state, 0, object_id, mask)
        if profile.windows is not None:
            predictor.choose_windows(state, lambda frame: (0,) if frame > 1 else None)
        tracked = predictor.propagate_in_video(state, max_frame_num_to_track=FRAMES)
        while True:
            with _amount(counted) as amount:
                if next(tracked, None) is None:
                    break
            amounts.append(amount[0])
        frames = predictor.report(state).frames
    full = max(item.keys_total for f in frames for item in f.objects.values())
    return [
        (
            f.windows_kept / f.windows_total,
            float(np.mean([item.keys_used for item in f.objects.values()])) / full,
            amount,
        )
        for f, amount in zip(frames, amounts, strict=True)
        if f.frame > 1
    ]


@contextmanager
def _amount(counted: bool) -> Iterator[list[float]]:
    """Collect what the context does, in operations or in seconds, into a list that is filled when it ends."""
    amount: list[float] = []
    if counted:
        with counted_flops() as counter:
            yield amount
        amount.append(float(counter.get_total_flops()))
    else:
        start = time.perf_counter()
        yield amount
        amount.append(time.perf_counter() - start)
