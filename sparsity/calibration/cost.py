"""What a setting costs: a frame's operations and time as windows and keys are left out, and agreement between dense frames.

A product in int8 is as many operations as one in float32 and takes less time, so int8 is counted by the CPU seconds of whole
frames in it, as a share of those without it: a factor of the cost, measured once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from probes.tracking import without_bar
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.clips.sources import Clip
from sparsity.evaluation.meters import counted_flops
from sparsity.profile import BUILTIN, Profile
from sparsity.techniques.adapter import Adapter
from sparsity.techniques.retrieval import ALL_TOKENS, Retrieval
from sparsity.techniques.routing import Guard, Routing

BASES = tuple(name for name, profile in BUILTIN.items() if profile.routing and profile.retrieval)
"""Built-in profiles that settings may build on."""

WHOLE = "exact"
"""Built-in profile that settings build on which leave no window out: of memory, and of whole frames every second frame."""

SECOND = Routing(unit="frame", every=2)
"""Whole frames, every second one."""

ROUNDS = 5
"""In which the same frames are tracked with int8 and without, in turn."""

FRAMES = 12
"""Tracked for a measurement; the memory bank fills up on the way."""

TOLERATED = 3.0
"""Points of agreement that may be lost since the last dense frame before another one comes."""

SMOOTH = 3
"""Distances that are averaged before they are compared with `TOLERATED`."""


@dataclass(frozen=True)
class Setting:
    """The parts of a profile that calibration varies."""

    routing: Routing | None
    guard: Guard = Guard()
    retrieval: Retrieval | None = None
    quantize: Literal["int8"] | None = None


def built_on(base: Profile, name: str, setting: Setting, adapter: Adapter) -> Profile:
    """Make a profile of a setting.

    Parameters
    ----------
    base
        Says what becomes of windows that are left out: what is reused, rolling refresh and readers of memory.
    adapter
        What it goes through.
    """
    routing, retrieval = setting.routing, setting.retrieval
    exact = Profile(
        name=name, exact=True, graphs=True, retrieval=retrieval, guard=setting.guard, quantize=setting.quantize
    )  # fmt: skip
    if routing is None or routing.unit == "frame":
        return exact.model_copy(update={"routing": routing})
    assert base.routing is not None and base.retrieval is not None, "bases have both methods"
    if base.retrieval.readers == "routed":
        retrieval = (retrieval or ALL_TOKENS).model_copy(update={"readers": "routed"})
    return exact.model_copy(
        update={
            "routing": routing.model_copy(update={"refresh": base.routing.refresh}),
            "retrieval": retrieval,
            "adapter": adapter,
            "reuse": base.reuse,
            "resize": base.resize,
        }
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


def probed(base: Profile, adapter: Adapter) -> tuple[Profile, ...]:
    """Profiles that are measured: with all, with few windows or none on every second frame, and with few keys too."""
    routing = SECOND if base.routing is None else Routing()
    few, fewer = Setting(routing), Setting(routing, retrieval=Retrieval(keep=0.05))
    return (
        BUILTIN[WHOLE],
        built_on(base, "few windows", few, adapter),
        built_on(base, "few windows and keys", fewer, adapter),
    )


def measure_cost(
    predictor: EfficientSAM2VideoPredictor, clip: Clip, base: Profile, adapter: Adapter
) -> tuple[Cost, Cost]:
    """Track the objects of a clip's start with every, few windows and few keys.

    A first time goes by unmeasured: weights are packed then, and formulations of attention are tried.

    Parameters
    ----------
    base, adapter
        What settings build on, and what windows go through that are not computed; both cost something.

    Returns
    -------
    tuple
        The cost in operations and the cost in time on this machine.
    """
    _, operations, seconds = (
        [
            row
            for profile in probed(base, adapter)
            for row in _frames(predictor, clip, profile, counted)
        ]
        for counted in (False, True, False)
    )
    return fit_cost(*np.array(operations).T), fit_cost(*np.array(seconds).T)


def share_in_int8(predictor: EfficientSAM2VideoPredictor, clip: Clip) -> float:
    """CPU seconds of a frame with every window and key in int8 over those of the same in the run's number format.

    Of the process, so that what else the machine does counts little; the median over rounds, to two digits.
    """
    plain = BUILTIN[WHOLE]
    pair = plain, plain.model_copy(update={"name": "int8", "quantize": "int8"})

    def seconds(profile: Profile) -> float:
        with predictor.use(profile, force=True):
            state = clip.from_start.begin(predictor)
            start = time.process_time()
            for _ in predictor.propagate_in_video(state, max_frame_num_to_track=FRAMES):
                pass
            return time.process_time() - start

    for profile in pair:  # weights are packed
        seconds(profile)
    plain_and_int8 = np.array([[seconds(profile) for profile in pair] for _ in range(ROUNDS)])
    return round(float(np.median(plain_and_int8[:, 1] / plain_and_int8[:, 0])), 2)


def _frames(
    predictor: EfficientSAM2VideoPredictor, clip: Clip, profile: Profile, counted: bool
) -> list[tuple[float, float, float]]:
    """Windows, keys and amount of each tracked frame, from where frames may be routed."""
    amounts = []
    with predictor.use(profile, force=True):
        state = clip.from_start.begin(predictor)
        if profile.routing is not None and profile.routing.unit != "frame":
            predictor.choose_windows(state, lambda frame: (0,) if frame > 1 else None)
        tracked = without_bar(predictor.propagate_in_video(state, max_frame_num_to_track=FRAMES))
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


@dataclass(frozen=True)
class Drift:
    """Agreement lost since the last dense frame.

    Attributes
    ----------
    lost
        Points of agreement lost against the first routed frame after a dense one, mean over clips, at 1, 2, …
        frames since the dense one; never below 0.
    """

    lost: tuple[float, ...]

    @property
    def refresh(self) -> int | None:
        """The largest distance of dense frames within which no more than `TOLERATED` is lost; None for any."""
        found = [float(np.mean(self.lost[s : s + SMOOTH])) for s in range(len(self.lost))]
        over = [s for s, points in enumerate(found) if points > TOLERATED]
        return max(2, over[0]) if over else None

    def kept(self, every: int | None) -> float:
        """Share of agreement that is kept on average with a dense frame every so many frames."""
        part = self.lost if every is None else self.lost[:every]
        return 1 - float(np.mean(part)) / 100 if part else 1.0


def drift_of(clips: Sequence[Sequence[tuple[int, float]]]) -> Drift:
    """Average what `since_dense` found, first by clip.

    Examples
    --------
    >>> drift_of([[(1, 98.0), (2, 96.0), (3, 90.0)], [(1, 90.0), (2, 92.0)]]).lost
    (0.0, 0.0, 8.0)
    """
    lost: dict[int, list[float]] = {}
    for rows in clips:
        by_distance: dict[int, list[float]] = {}
        for distance, agreed in rows:
            by_distance.setdefault(distance, []).append(agreed)
        for distance, values in by_distance.items():
            first = float(np.mean(by_distance[min(by_distance)]))
            lost.setdefault(distance, []).append(first - float(np.mean(values)))
    longest = max(lost, default=0)
    means = [float(np.mean(lost.get(s, [0.0]))) for s in range(1, longest + 1)]
    return Drift(tuple(max(0.0, mean) for mean in means))
