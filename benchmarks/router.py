"""The learnt router against the paper's rule, on clips that it has not seen.

    python benchmarks/router.py --videos DIR --prompts DIR --clips calibrate.txt --made 20 --out benchmarks/router.json

Each clip is left out in turn; the threshold is the one at which the predictions for left-out clips recall as many object
tokens as the paper's rule. Judged on all clips, and on the given videos alone. Traces stay in `--work`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probes.models import fingerprint
from sparsity.calibration.capture import capture, load_trace, save_trace
from sparsity.calibration.clips import ClipSource
from sparsity.calibration.replay import replay_windows
from sparsity.calibration.router import Verdict, judge, names_of_cues
from sparsity.calibration.runs import shared_predictor
from sparsity.calibration.thresholds import mask_only
from sparsity.calibration.traces import Trace
from sparsity.options import ModelChoice
from sparsity.profile import Guard
from sparsity.runs import write_text

DRAWS = 10_000
"""Of the bootstrap over clips."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--made", type=int, default=20)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--work", type=Path, default=Path("router.work"))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    predictor = shared_predictor(ModelChoice(given.model, dtype="float32"))
    model = fingerprint(predictor)
    folder = given.work / model.removeprefix("sha256:")[:12]
    folder.mkdir(parents=True, exist_ok=True)
    source = ClipSource(given.videos, given.prompts)
    only = given.clips.read_text(encoding="utf-8").split() if given.clips else None
    real = source.names(0, only) if given.videos else []
    traces = []
    for name in source.names(given.made, only):
        path = folder / f"{name}.safetensors"
        trace = load_trace(path)
        if trace is None:
            trace = capture(predictor, source.open(name))
            save_trace(trace, path)
            print(f"{name}: {len(trace.frames)} frames", flush=True)
        traces.append(trace)
    sets = {"all clips": traces}
    if len(real) > 1 and given.made:
        sets["videos alone"] = [trace for trace in traces if trace.name in real]
    report: dict[str, Any] = {
        "model": model,
        "note": "demo model: illustrates the method; evidence about SAM 2 itself needs an official checkpoint",
        "cues": names_of_cues(traces),
        "sets": {name: judged(chosen) for name, chosen in sets.items()},
    }
    write_text(given.out, json.dumps(report, indent=1))
    for name, found in report["sets"].items():
        print(name, {k: found[k] for k in ("paper", "router", "oracle", "saved", "saved_interval")})


def judged(traces: Sequence[Trace]) -> dict[str, Any]:
    """A verdict as JSON holds it."""
    verdict = judge(traces)
    masks = mask_only(8.0, "all")
    alone = [replay_windows(trace, masks, Guard(kept_share=1.0)) for trace in traces]
    return {
        "clips": [trace.name for trace in traces],
        "paper": means(verdict.paper),
        "paper_without_saliency": means(
            np.array([(r.kept[1:].mean(), r.recall[1:].mean()) for r in alone])
        ),
        "router": means(verdict.router),
        "oracle": means(verdict.oracle),
        "needed": round(verdict.needed, 4),
        "saved": round(verdict.saved, 4),
        "saved_interval": [round(float(v), 4) for v in interval_of_saved(verdict)],
        "by_clip": {
            trace.name: {
                who: getattr(verdict, who)[i].round(4).tolist()
                for who in ("paper", "router", "oracle")
            }
            for i, trace in enumerate(traces)
        },
        **{
            name: getattr(verdict, name).round(4).tolist()
            for name in ("curve", "precision", "reliability")
        },
    }


def means(by_clip: np.ndarray) -> dict[str, float]:
    """Windows kept and tokens recalled, means over clips."""
    kept, recall = by_clip.mean(0)
    return {"kept": round(float(kept), 4), "recall": round(float(recall), 4)}


def interval_of_saved(verdict: Verdict) -> tuple[float, float]:
    """95 % interval over draws of clips, the router's threshold as it is."""
    kept = np.stack([verdict.router[:, 0], verdict.paper[:, 0]], 1)
    rng = np.random.default_rng(0)
    drawn = kept[rng.integers(0, len(kept), (DRAWS, len(kept)))].mean(1)
    low, high = np.quantile(1 - drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    return float(low), float(high)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
