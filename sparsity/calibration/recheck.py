"""Recheck: hold one profile against clips it has not seen, without any search.

Its settings stay as they are, so one is tested, and the clips may all serve: after a fine-tune, with weights of another
size, in another number format, or because the first clips were asked too often. The model's fingerprint in the profile
becomes that of the model it was rechecked with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from probes.errors import InputError
from sparsity.calibration.bounds import Bound, choose
from sparsity.calibration.calibrate import Workplace, asked_of, say
from sparsity.calibration.ledger import level_of
from sparsity.calibration.report import (
    apart,
    certifiable,
    check_reach,
    look,
    made_by_of,
    promise_of,
    unit_of,
)
from sparsity.calibration.request import Request
from sparsity.calibration.sample import losses_of, sample_of
from sparsity.profile import Profile, Promise
from sparsity.work.model import shared_predictor, stamp_of
from sparsity.work.spread import Spread

SETTING = "rechecked"
"""Name of the profile in the runs."""


@dataclass(frozen=True)
class Recheck:
    """What a profile does on fresh clips.

    Attributes
    ----------
    profile
        With its new promise; None where it doesn't hold.
    before
        What it promised, if it was calibrated.
    found
        Bound on these clips.
    said
        Further lines.
    """

    profile: Profile | None
    before: Promise | None
    found: Bound
    said: tuple[str, ...]

    def text(self) -> str:
        """Return what was promised and what was seen, a line each."""
        lines = [f"before   {self.before.text() if self.before else 'promises nothing'}"]
        if self.profile is not None:
            assert self.profile.promise is not None
            lines += ["holds", f"promise  {self.profile.promise.text()}"]
        else:
            tail = self.found.tail
            over = (
                f"{tail.lost} of {self.found.videos} lose more than {tail.over:g}; " if tail else ""
            )
            lines.append(
                f"does not hold: mean loss {self.found.mean:+.2f} over {self.found.videos} clips; {over}calibrate anew"
            )
        return "\n".join([*lines, *self.said])


def accepted_of(profile: Profile, request: Request) -> Request:
    """Return a request with the loss that a profile promises, where none is named.

    Raises
    ------
    InputError
        The profile promises nothing, and no loss is named.
    """
    if request.max_drop is not None or request.max_drift is not None:
        return request
    promise = profile.promise
    if promise is None or not promise.upper_bound > 0:
        raise InputError(
            f"profile {profile.name} promises no loss; expected one that was calibrated, or a loss to hold it against; "
            "add --max-drop or --max-drift"
        )
    if promise.risk == "drift":
        return replace(request, max_drift=promise.upper_bound)
    return replace(request, max_drop=promise.upper_bound)


def recheck(profile: Profile, request: Request, work: Path, spread: Spread) -> Recheck:
    """Test one profile on clips.

    Parameters
    ----------
    request
        Its loss where one is named, else that of the profile's promise.
    work
        Folder for what is done clip by clip; a second start goes on there.

    Raises
    ------
    InputError
        Something given can't be used, a clip failed, or clips of the profile's own calibration are among them.
    """
    request = accepted_of(profile, request)
    request.check()
    known = set((profile.made_by or {}).get("clips", ())) & set(request.clips)
    if known:
        raise InputError(
            f"{len(known)} clips given that the profile was calibrated on ({min(known)}); expected fresh ones; leave them out"
        )
    looks = look(request.source, request.clips)
    sample = sample_of(request, looks)
    request, names = sample.request, sample.request.clips
    count = len(sample.counted(names))
    check_reach(request, count)
    predictor = shared_predictor(request.choice)
    place = Workplace(request, work, spread, stamp_of(predictor, request.choice))
    setting = profile.model_copy(update={"name": SETTING, "promise": None, "made_by": None})
    settings = setting.model_dump(mode="json", by_alias=True, exclude={"adapter": {"file"}})
    question = asked_of(place, names, {"recheck": settings, "accepted": request.accepted})
    confidence = level_of(question, request.confidence)
    say(certifiable(request, count, question))
    outcomes = place.runs("recheck", names, [setting])
    losses = sample.pooled(losses_of(outcomes, [SETTING], request.risk), names)
    choice = choose(losses, [0], [1.0], confidence, request.level, request.bound)
    runs = place.runs("apart", sample.apart, [setting]) if sample.apart else {}
    said = tuple(apart(request, losses_of(runs, [SETTING], "drift")[:, 0].tolist() if runs else []))
    if choice.index is None:
        return Recheck(None, profile.promise, choice.bounds[0], said)
    unit = unit_of((looks[name] for name in names), request.risk)
    promise = promise_of(
        request, choice, [of_clip[SETTING] for of_clip in outcomes.values()], unit, question
    )
    expected = profile.promise and profile.promise.expected_speedup
    renewed = {
        "promise": promise.model_copy(update={"expected_speedup": expected}),
        "made_by": {**made_by_of(request), "before": profile.made_by},
        "model": place.stamp["model"],
        "image_size": predictor.image_size,
    }
    return Recheck(profile.model_copy(update=renewed), profile.promise, choice.bounds[0], said)
