"""The five shortcuts on clips that they were not fitted on: error of stage 3, J&F against the dense run, cost.

    python benchmarks/shortcuts.py --videos DIR --prompts DIR [--clips list.txt] --out benchmarks/shortcuts.json

Shortcuts are fitted on every other clip and judged on the rest, and the other way round.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

os.environ.setdefault("TQDM_DISABLE", "1")

from probes.models import fingerprint
from sparsity.acceleration.shortcuts import load_shortcut
from sparsity.calibration.capture import capture
from sparsity.calibration.clips import ClipSource
from sparsity.calibration.runs import run_clip, shared_predictor
from sparsity.calibration.shortcuts import (
    FITTED,
    KINDS,
    against_identity,
    collect,
    fit_shortcut,
    stage3_error,
    write_shortcut,
)
from sparsity.options import ModelChoice
from sparsity.profile import EXACT_TECHNIQUES, Profile, Shortcut, Windows
from sparsity.runs import write_text

WINDOWS = Windows()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--made", type=int, default=0)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    predictor = shared_predictor(ModelChoice(arguments.model))
    source = ClipSource(arguments.videos, arguments.prompts)
    only = arguments.clips.read_text(encoding="utf-8").split() if arguments.clips else None
    clips = [source.open(name) for name in source.names(arguments.made, only)]
    traces = [capture(predictor, clip) for clip in clips]
    pairs = [collect(predictor, c, t, WINDOWS) for c, t in zip(clips, traces, strict=True)]
    channels = pairs[0].entry.shape[1]
    errors: list[dict[str, float]] = []
    outcomes: list[dict[str, Any]] = []
    seconds = dict.fromkeys(KINDS, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for half in (0, 1):
            shortcuts = {kind: Shortcut(kind=kind) for kind in KINDS if kind not in FITTED}
            for kind in FITTED:
                path = Path(folder) / f"{kind}-{half}.safetensors"
                start = time.perf_counter()
                write_shortcut(fit_shortcut(kind, pairs[half::2]), path)
                seconds[kind] += time.perf_counter() - start
                shortcuts[kind] = Shortcut(kind=kind, file=str(path))
            functions = {
                kind: load_shortcut(s, channels, torch.device("cpu"))
                for kind, s in shortcuts.items()
            }
            profiles = tuple(
                Profile(
                    name=kind,
                    windows=WINDOWS,
                    shortcut=shortcut,
                    techniques=dict.fromkeys(EXACT_TECHNIQUES, True),
                )
                for kind, shortcut in shortcuts.items()
            )
            for clip, trace in zip(clips[1 - half :: 2], traces[1 - half :: 2], strict=True):
                errors.append(stage3_error(predictor, clip, trace, WINDOWS, functions))
                found = run_clip(predictor, clip, profiles)
                outcomes.append({kind: found[kind] for kind in KINDS})
    rows = []
    for kind in KINDS:
        mean, interval = against_identity(errors, kind)
        rows.append(
            {
                "shortcut": kind,
                "stage3_error": float(np.mean([e[kind] for e in errors])),
                "against_identity": mean,
                "interval_95": list(interval),
                "loss": float(np.mean([o[kind].loss for o in outcomes])),
                "agreement": float(np.mean([o[kind].agreement for o in outcomes])),
                "macs_per_token": {"identity": 0, "mean": 0, "ridge": channels**2, "cached": 0}.get(
                    kind, channels**2
                ),
                "seconds_to_fit": round(seconds[kind] / 2, 2),
            }
        )
    found_all = {
        "model": fingerprint(predictor),
        "clips": [clip.name for clip in clips],
        "note": "demo model: illustrates the method; evidence about SAM 2 itself needs an official checkpoint",
        "rows": rows,
    }
    write_text(arguments.out, json.dumps(found_all, indent=1))
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
