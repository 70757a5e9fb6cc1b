"""The profile that a calibration ends with: the chosen setting, its promise, and how it was found."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import numpy as np

from sparsity.calibration.cost import Cost
from sparsity.calibration.looking import Look, unit_of
from sparsity.calibration.promise import Choice
from sparsity.calibration.request import Request
from sparsity.calibration.traces import Trace
from sparsity.profile import EXACT_TECHNIQUES, Profile, Promise


def stated(
    request: Request,
    chosen: Profile | None,
    choice: Choice,
    outcomes: dict[str, Any],
    traces: Sequence[Trace],
    cost: Cost,
    looks: Sequence[Look],
) -> Profile:
    """Return the chosen setting with its promise; every window and key where none holds.

    Parameters
    ----------
    outcomes
        By clip of the promise and setting, as `sparsity.calibration.runs.Runs` returned them.
    looks
        At the clips of the promise.
    """
    unit = unit_of(looks)
    if chosen is None:
        promise = Promise(
            mean_loss=0.0, upper_bound=0.0, confidence=request.confidence,
            method="every window and key is computed", clips=len(outcomes), unit=unit,
            expected_windows=1.0, expected_keys=1.0, expected_speedup=1.0,
        )  # fmt: skip
        profile = Profile(name="calibrated", techniques=dict.fromkeys(EXACT_TECHNIQUES, True))
    else:
        found = choice.promise
        runs = [of_clip[chosen.name] for of_clip in outcomes.values()]
        windows, keys = (float(np.mean([run[k] for run in runs])) for k in ("windows", "keys"))
        promise = Promise(
            mean_loss=round(found.mean, 4), upper_bound=round(found.upper, 4),
            confidence=found.confidence, method=found.method, clips=found.videos, unit=unit,
            expected_windows=round(windows, 4), expected_keys=round(keys, 4),
            expected_speedup=round(1 / cost(windows, keys), 3),
        )  # fmt: skip
        profile = chosen
    made_by = {
        "versions": {name: version(name) for name in ("efficient-sam2", "sam2", "torch", "mapie")},
        "clips": list(request.clips),
        "recordings": {trace.name: trace.digest for trace in traces},
        "settings": {
            "max_drop": request.max_drop,
            "target_speedup": request.target_speedup,
            "bound": request.bound,
            "budget": request.budget,
            "shortcut": request.shortcut,
            "base": request.base,
        },
        "seed": request.seed,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    return profile.model_copy(update={"name": "calibrated", "promise": promise, "made_by": made_by})
