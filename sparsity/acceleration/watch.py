"""A watch over a promise while it is used: on a small share of frames the dense result is computed beside the accelerated one.

A *shadow* is a frame that is tracked once more with every window and key, from the memory that the accelerated run has, and
thrown away. What the two masks differ by is what leaving out cost on this frame. It isn't what the video lost: masks that went
wrong earlier are in the memory of both. So a watch can find that a promise is broken, and shows that it holds for what a frame
loses; how far the video has drifted it doesn't see.

What a frame loses goes into a test by betting that may be looked at after every frame and stopped at any: Waudby-Smith and
Ramdas, "Estimating means of bounded random variables by betting" (JRSS B 2024, section 4), with a stake of which
a part is laid anew as one goes (as in Shin, Ramdas and Rinaldo, "E-detectors", 2023, but parts that add up to one, so that
Ville's inequality bounds false alarms over any length), for a promise that held for long breaks too.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.errors import BeyondPromise, InputError
from sparsity.profile import Profile, parse_profile
from sparsity.techniques.adapter import Adapter
from sparsity.techniques.routing import Decision

SHARE = 0.02
"""Of frames that are tracked a second time, where nothing is said."""

ALPHA = 0.05
"""Chance of an alarm, however long one watches, where no frame is expected to lose more than the level; and of "holds" where
every one is."""

LEVEL = 5.0
"""Points of agreement that a frame may lose on average where the profile doesn't say: what calibration accepts by default."""

LEAST_LEVEL = 0.5
"""Points that are always allowed: rounding moves pixels at edges."""

BETS = np.array([0.05, 0.3, 0.9])
"""Shares of the stake that are bet against "no more than the level", from which the winning ones stand out."""

LAID = 0.2, 0.01
"""Share of what is left of the stake that is laid anew: where something seems wrong, and where nothing does."""

RECENT = 12
"""Frames whose cues are held against those of the calibration."""

UNDER_SUSPICION = 0.5
"""Share of frames that are looked at while something seems wrong, as far as there is credit."""

MOST_CREDIT = 30.0
"""Shadows that can be saved for then; where so many are, the whole share is drawn, and half of it where none are."""

UNEVEN = 0.2
"""Share of the usual distance of two shadows by which it is shorter or longer at random: nothing that comes back at even
distances stays between them, and a jump isn't waited for in vain as long as with draws that know nothing of each other."""

LAST_KEPT = 10_000
"""Shadows that the report keeps."""


@dataclass(frozen=True)
class Shadow:
    """One frame that was tracked densely too.

    Attributes
    ----------
    frame, reverse
        Index and direction.
    profile
        Name of the one whose masks were given out.
    loss
        100 less agreement (J) of the two masks in per cent, mean over objects, as the calibration's drift counts it.
    objects
        The same by object id.
    evidence
        That frames lose more than the level, after this one: 20 is an alarm.
    """

    frame: int
    reverse: bool
    profile: str
    loss: float
    objects: dict[int, float]
    evidence: float


class Stakes:
    """Two bets on what frames lose, of one run or of many at once: that it is more than the level, and that it is less.

    Parameters
    ----------
    level
        Share of agreement, in (0, 1).
    shape
        Of the runs; of one unless given.
    """

    def __init__(self, level: float, shape: tuple[int, ...] = ()) -> None:
        self.level, self.count = level, 0
        self.waiting = np.ones(shape)
        """Stake against "no frame is expected to lose more" that isn't laid yet."""
        self.more = np.zeros((*shape, len(BETS)))
        """What became of the stake that was laid, by bet."""
        self.less = np.full((*shape, len(BETS)), 1 / len(BETS))
        """The same against "every frame is expected to lose as much", laid at once."""
        self.after_loss = np.zeros(shape, bool)
        """Whether the last frame lost more than the level."""
        self.since = np.zeros(shape, int)
        """Place of the frame with which the bets in `more` began that count."""

    def add(self, loss: NDArray[np.float64] | float, doubted: bool = False) -> None:
        """Take what the next frame lost, as a share of agreement ``[runs]``; stakes are laid before it is looked at.

        `doubted` says that something seemed wrong before this frame.
        """
        lost = np.asarray(loss, float)
        laid = self.waiting * np.where(self.after_loss | doubted, *LAID)
        self.since = np.where(self.more.sum(-1) < laid, self.count, self.since)
        over = (lost - self.level)[..., None]
        self.more = (self.more + laid[..., None] / len(BETS)) * (1 + BETS / self.level * over)
        self.less = self.less * (1 - BETS / (1 - self.level) * over)
        self.waiting = self.waiting - laid
        self.after_loss = lost > self.level
        self.count += 1

    @property
    def evidence(self) -> NDArray[np.float64]:
        """That frames lose more than the level, ``[runs]``: an e-value, on average at most 1 whatever one waits for."""
        found: NDArray[np.float64] = self.more.sum(-1) + self.waiting
        return found

    @property
    def shown(self) -> NDArray[np.bool_]:
        """Whether frames were shown to lose less than the level, ``[runs]``."""
        found: NDArray[np.bool_] = self.less.sum(-1) >= 1 / ALPHA
        return found


@dataclass
class Watch:
    """What is watched of a video, and what was found.

    Attributes
    ----------
    share
        Of frames that may be tracked densely too.
    level
        Points that a frame may lose on average, see `level_of`.
    ladder
        The profile, and what comes after it if its promise is broken: what calibration left as safer, then every window and
        key.
    step
        Which of these is in use.
    stakes
        On the setting in use.
    shadows
        The latest 10,000 of them.
    looked
        How many there were.
    alarm, since
        Frame on which the promise was found broken, and the shadow with which that began; None while it isn't.
    suspicious
        What seems wrong and isn't proof: cues of the last frames that lie outside those of the calibration, or a frame that
        lost more than the level.
    credit
        Shadows that may be taken now.
    waited
        Tracked frames since the last one.
    seed
        Of the draws of frames.
    """

    share: float
    level: float
    ladder: tuple[Profile, ...]
    stakes: Stakes
    step: int = 0
    shadows: list[Shadow] = field(default_factory=list)
    looked: int = 0
    alarm: int | None = None
    since: int | None = None
    suspicious: list[str] = field(default_factory=list)
    credit: float = 0.0
    waited: int = 0
    seed: int = 0
    found: dict[int, float] = field(default_factory=dict)
    tracked: bool = False

    @property
    def profile(self) -> Profile:
        """The profile in use."""
        return self.ladder[self.step]

    @property
    def verdict(self) -> str:
        """``"holds"`` (shown at 95 %), ``"broken since frame …"``, or ``"unknown"``."""
        if self.since is not None:
            return f"broken since frame {self.since}"
        nothing = not leaves_out(self.ladder[0])
        return (
            "holds" if nothing or (bool(self.stakes.shown) and not self.suspicious) else "unknown"
        )

    def text(self) -> str:
        """The verdict in a line, with what it rests on."""
        said = f"{self.verdict}: "
        if not leaves_out(self.ladder[0]):
            return f"{said}every window and key is computed"
        if not self.looked:
            return f"{said}no frame was tracked densely too; a larger share looks at more"
        mean = sum(shadow.loss for shadow in self.shadows) / len(self.shadows)
        said += (
            f"{self.looked} frame{'s' * (self.looked > 1)} tracked densely too lost {mean:.1f} points of agreement on "
            f"average, {self.level:.1f} allowed"
        )
        if self.alarm is not None:
            return f"{said}; found on frame {self.alarm}, and from there on {self.profile.name}"
        return "; ".join([said, *self.suspicious])

    def as_json(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "verdict": self.verdict,
            "said": self.text(),
            "share": self.share,
            "level": self.level,
            "looked": self.looked,
            "since": self.since,
            "alarm": self.alarm,
            "evidence": float(self.stakes.evidence),
            "suspicious": self.suspicious,
            "profile": self.profile.name,
            "shadows": [
                {**asdict(one), "objects": {str(i): lost for i, lost in one.objects.items()}}
                for one in self.shadows
            ],
        }

    def looks_at(self, frame: int, reverse: bool, decision: Decision) -> bool:
        """Whether a frame is tracked densely too; the same however often it is asked, and in every run.

        It is drawn before anything of the frame is known but what is left out of it: where nothing is, there is nothing
        to compare.
        """
        self.tracked = True
        left_out = self.profile.quantize is not None or decision.cells is not None
        left_out |= self.profile.retrieval is not None and not decision.rescued
        usual = 2 / (self.share * (1 + self.credit / MOST_CREDIT))
        apart, soonest, latest = self.waited + 1, usual * (1 - UNEVEN), usual * (1 + UNEVEN)
        chance = 0.0 if apart < soonest else 1 / max(1.0, latest - apart)
        if self.suspicious:
            chance = max(chance, UNDER_SUSPICION)
        drawn = Random(f"{self.seed} {frame} {reverse}").random() < chance
        return left_out and self.credit >= 1 and drawn

    def close(self, frame: int, reverse: bool, beyond: Sequence[str]) -> None:
        """Take what was found on a frame, once all its objects are tracked.

        Parameters
        ----------
        beyond
            In what cues of the last frames lie outside those of the calibration.
        """
        if self.found:
            self._enter(frame, reverse)
        if self.tracked:
            self.credit = min(self.credit + self.share, MOST_CREDIT)
            self.waited = 0 if self.found else self.waited + 1
        self.suspicious = list(beyond)
        if self.shadows and self.shadows[-1].loss > self.level:
            last = self.shadows[-1]
            self.suspicious.append(f"frame {last.frame} lost {last.loss:.1f} points")
        self.found, self.tracked = {}, False

    def _enter(self, frame: int, reverse: bool) -> None:
        """Bet on what a frame lost; go on with the next safer setting where that raises the alarm."""
        loss = sum(self.found.values()) / len(self.found)
        self.stakes.add(loss / 100, bool(self.suspicious))
        self.credit -= 1
        self.looked += 1
        found = Shadow(
            frame, reverse, self.profile.name, loss, self.found, float(self.stakes.evidence)
        )
        self.shadows.append(found)
        del self.shadows[:-LAST_KEPT]
        if self.stakes.evidence < 1 / ALPHA:
            return
        if self.alarm is None:
            first = int(self.stakes.since) - self.stakes.count
            since = self.shadows[max(first, -len(self.shadows))]
            self.alarm, self.since = frame, since.frame
        self.step += 1
        self.stakes = Stakes(self.stakes.level)
        warnings.warn(
            f"profile {self.ladder[0].name}: its promise is {self.verdict}, found on frame {frame}; from there on "
            f"{self.profile.name}",
            BeyondPromise,
            stacklevel=2,
        )


def watch_over(profiles: Sequence[Profile], share: float) -> Watch:
    """Begin to watch over the promise of the first of `safer_than`'s profiles."""
    level = level_of(profiles[0])
    return Watch(share, level, tuple(profiles), Stakes(level / 100))


def safer_than(profile: Profile) -> list[Profile]:
    """What comes after a profile whose promise is broken: what its calibration left as safer, then every window and key.

    Raises
    ------
    InputError
        What calibration left is no profile.
    """
    whole = profile.model_copy(
        update={
            "name": "every window and key", "routing": None, "retrieval": None, "quantize": None, "reuse": False,
            "adapter": Adapter(), "promise": None, "made_by": None,
        }
    )  # fmt: skip
    left = (profile.made_by or {}).get("safer")
    if left is None:
        return [whole]
    safer = parse_profile(json.dumps(left))
    return [safer.model_copy(update={"adapter": profile.adapter}), whole]


def level_of(profile: Profile) -> float:
    """Points of agreement that a frame may lose on average: what the promise accepts, and what the clip behind it that lost most
    lost; `LEVEL` where that isn't known."""
    promise = profile.promise
    if promise is None:
        return LEVEL
    worst = None if promise.seen is None else promise.seen.drift
    known = max(promise.upper_bound, promise.over or 0.0, LEVEL if worst is None else worst)
    return min(max(known, LEAST_LEVEL), 50.0)


def leaves_out(profile: Profile) -> bool:
    """Whether a profile computes anything less than a dense run."""
    return any((profile.routing, profile.retrieval, profile.quantize))


def check_share(share: float | None) -> float | None:
    """Return the share of frames to watch; refuse what is none.

    Raises
    ------
    InputError
        It is no number in (0, 1]; True would be all frames.
    """
    number = isinstance(share, Real) and not isinstance(share, bool)
    if share is not None and not (number and 0 < share <= 1):
        raise InputError(
            f"watch {share} given; expected a share of frames above 0 and up to 1, such as {SHARE:g}; leave it out not to watch"
        )
    return share
