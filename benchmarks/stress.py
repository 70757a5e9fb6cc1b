"""Made clips that break routing: what the guard rescues, against the same profile without it.

    python benchmarks/stress.py PROFILE --out benchmarks/stress.json

Loss is in points of J&F against the dense run on true masks, mean over clips of a name.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

os.environ.setdefault("TQDM_DISABLE", "1")

from probes.models import fingerprint
from sparsity.calibration.clips import ClipSource
from sparsity.calibration.runs import run_clip, shared_predictor
from sparsity.options import ModelChoice
from sparsity.profile import Guard, load_profile
from sparsity.runs import write_text

NAMES = ("scene_cut", "leave_and_return", "distractors")
SEEDS = (900, 901, 902)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    predictor = shared_predictor(ModelChoice(arguments.model))
    guarded = load_profile(arguments.profile).model_copy(update={"name": "guard"})
    if guarded.guard == Guard():
        rules = Guard(mask_jump=0.5, scene_cut=0.15, score_below=0.0)
        guarded = guarded.model_copy(update={"guard": rules})
    bare = guarded.model_copy(update={"name": "no guard", "guard": Guard()})
    rows = []
    for name in NAMES:
        for seed in SEEDS:
            clip = ClipSource().open(f"made-{name}-{seed}")
            found = run_clip(predictor, clip, (guarded, bare))
            rows.append({"clip": clip.name, **{k: asdict(v) for k, v in found.items()}})
    means = {
        name: {
            run: round(float(np.mean([r[run]["loss"] for r in rows if name in r["clip"]])), 2)
            for run in ("guard", "no guard")
        }
        for name in NAMES
    }
    about = {
        "model": fingerprint(predictor),
        "profile": arguments.profile,
        "guard": guarded.guard.model_dump(),
    }
    write_text(arguments.out, json.dumps({**about, "means": means, "rows": rows}, indent=1))
    print(means)


if __name__ == "__main__":
    main()
