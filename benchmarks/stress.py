"""Made clips that break routing: what the guard rescues, against the same profile without it.

    python benchmarks/stress.py demo --out benchmarks/stress.json

A row a difficulty, mean over seeds that nothing was chosen on: J&F of the dense run on true masks, the loss with the
guard and without it in points, and the frames that the guard rescued, clip by clip with its rule.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TQDM_DISABLE", "1")

from probes.files import write_text
from probes.models import fingerprint
from sparsity.clips.sources import ClipSource
from sparsity.evaluation.evaluate import ClipWork
from sparsity.profile import Profile, load_profile
from sparsity.techniques.routing import Guard
from sparsity.work.model import ModelChoice, shared_predictor

NAMES = ("scene_cut", "leave_and_return", "distractors")
SEEDS = (900, 901, 902, 903)

EXACT = "exact"
"""The run that the others are compared with."""


def stress(profile: Profile, model: str, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """Run each clip densely, with the profile and with the profile's guard taken away."""
    guarded = profile.model_copy(update={"name": "guard"})
    bare = profile.model_copy(update={"name": "no guard", "guard": Guard()})
    work = ClipWork(ClipSource(), ModelChoice(model), (guarded, bare), dense=EXACT)
    rows = []
    for name in NAMES:
        for seed in seeds:
            clip = f"made-{name}-{seed}"
            found = {run: {**one.pop("quality"), **one} for run, one in work(clip).items()}
            rows.append({"difficulty": name, "clip": clip, **found})
            print(clip, {run: round(row["loss"], 2) for run, row in found.items()}, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means by difficulty."""
    found = {}
    for name in NAMES:
        of_name = [row for row in rows if row["difficulty"] == name]

        def mean(run: str, key: str, part: list[dict[str, Any]] = of_name) -> float:
            return round(float(np.mean([row[run][key] for row in part])), 2)

        found[name] = {
            "dense_j_and_f": mean(EXACT, "j_and_f"),
            "loss_with_guard": mean("guard", "loss"),
            "loss_without_guard": mean("no guard", "loss"),
            "agreement_with_guard": mean("guard", "agreement"),
            "agreement_without_guard": mean("no guard", "agreement"),
            "windows_with_guard": mean("guard", "windows_kept"),
            "windows_without_guard": mean("no guard", "windows_kept"),
            "rescued": {row["clip"]: row["guard"]["rescued"] for row in of_name},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    profile = load_profile(arguments.profile)
    rows = stress(profile, arguments.model, tuple(arguments.seeds))
    found = {
        "model": fingerprint(shared_predictor(ModelChoice(arguments.model))),
        "profile": profile.model_dump(mode="json", by_alias=True),
        "data": "made clips of 16 frames with test textures",
        "seeds": list(arguments.seeds),
        "table": table(rows),
        "rows": rows,
    }
    write_text(arguments.out, json.dumps(found, indent=1))
    print(json.dumps(found["table"], indent=1))


if __name__ == "__main__":
    main()
