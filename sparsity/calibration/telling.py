"""What a calibration tells beside the profile: every setting replayed or run, and what limited it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsity.calibration.bounds import CERTAIN
from sparsity.calibration.promise import Choice
from sparsity.calibration.replay import replay_windows
from sparsity.calibration.request import Request
from sparsity.calibration.search import Candidate, describe
from sparsity.calibration.thresholds import MARGINS, mask_only
from sparsity.calibration.traces import Trace
from sparsity.profile import Guard


def limits(request: Request, choice: Choice, tested: Sequence[Candidate]) -> list[str]:
    """Say what kept the profile from being faster."""
    if request.target_speedup is not None:
        return []
    failed = [i for i in choice.bounds if i not in choice.held]
    if not failed:
        return ["limit    none: every tested setting holds; a larger --budget tries more"]
    bound = choice.bounds[failed[0]]
    said = (
        f"limit    {describe(tested[failed[0]].profile)}: mean loss {bound.mean:+.2f}, bound {bound.upper:.2f} over "
        f"{request.max_drop:g}"
    )
    if choice.index is not None:
        return [said]
    ways = "more videos, or a larger --max-drop"
    if bound.method in CERTAIN.values():
        ways = (
            "more videos, a larger --max-drop, or --bound approximate, which takes these videos to show every kind "
            "there is"
        )
    return [
        said,
        f"no setting holds: the profile computes every window and reads every key; give {ways}",
    ]


def row(c: Candidate) -> dict[str, Any]:
    """A setting and what replays say of it."""
    return {
        "name": c.profile.name,
        "said": describe(c.profile),
        "windows": c.windows,
        "keys": c.keys,
        "cost": c.cost,
        "recall": c.recall,
    }


def coverage(traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """Windows kept and tokens covered by margin."""
    rows = []
    for which in ("best", "all"):
        for margin in MARGINS:
            found = [replay_windows(t, mask_only(margin, which), Guard()) for t in traces]
            rows.append(
                {
                    "candidates": which,
                    "margin_px": margin,
                    "kept": float(np.mean([r.kept.mean() for r in found])),
                    "recall": float(np.mean([r.recall.mean() for r in found])),
                }
            )
    return rows


def recall(traces: Sequence[Trace]) -> dict[str, Any]:
    """Mass recall by layer at the first and the oldest age, by kept share of tokens."""
    memories = [t.memory for t in traces if t.memory is not None]
    if not memories:
        return {}
    curve = np.mean([m.curve[:, [0, -1]] for m in memories], axis=0)  # [layers, 2, tokens]
    tokens = curve.shape[-1]
    picked = np.unique(np.geomspace(1, tokens, 40).astype(int))
    return {
        "share": (picked / tokens).tolist(),
        "ages": [min(m.ages[0] for m in memories), max(m.ages[-1] for m in memories)],
        "layers": curve[:, :, picked - 1].tolist(),
        "exposure": np.mean([m.exposure for m in memories], axis=0).tolist(),
    }
