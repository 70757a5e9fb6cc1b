"""What probing every site costs on Large at 1024 pixels, and how close default statistics come to all rows.

Run ``python benchmarks/probing.py --out benchmarks/results/probing.json``; it says first how long it will
take. Key mass comes from every row by definition, so its total variation says how far the blocks' float32 sums
are from float64; beside it stands what a sample of as many rows as the means use would have missed. Weights
are random: time and memory do not depend on them, attention does, so accuracy is that of random attention,
and of the demo model at 1024 pixels (which it was not trained for).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from probes.files import write_text
from probes.mass import key_mass, sample_queries
from probes.measure import measure, slot_shares
from probes.models import build_predictor
from probes.observing import AttentionCall, observe
from probes.records import QUERY_ROWS
from probes.tracking import begin_video
from sparsity.clips.sources import made_clip
from sparsity.evaluation.meters import environment


def begin(predictor: Any, frames: int) -> dict[str, Any]:
    """Begin a made clip on a stock predictor."""
    clip = made_clip(frames, None, (480, 854))
    state = begin_video(predictor, clip.video)
    clip.give_to(predictor, state)
    return state


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tell(text: str) -> None:
    """Say something at once, on stderr."""
    print(text, file=sys.stderr, flush=True)


def cost(predictor: Any, frames: int, warm: int) -> dict[str, Any]:
    """Time of probed and plain frames, in turn on two states of the same clip; peak memory before and after.

    Memory is measured from the last plain frame with a full bank on.
    """
    names = ("plain", "probed")
    runs = {name: predictor.propagate_in_video(begin(predictor, frames)) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}

    def reduce(call: AttentionCall) -> None:
        found = measure(call)
        if call.where is not None and call.where.kind == "cross":
            slot_shares(found, call)

    before = 0.0
    for frame in range(frames):
        for name, run in runs.items():
            start = time.perf_counter()
            if name == "probed" and frame >= warm:
                with observe(predictor, reduce, "*"):
                    next(run)
            else:
                next(run)
            taken = time.perf_counter() - start
            if frame >= warm:
                seconds[name].append(taken)
        if frame == 1:
            expected = 2 * taken * (frames - 2) * 1.2
            tell(
                f"a frame takes {taken:.1f} s now; cost takes about {expected / 60:.1f} minutes more"
            )
        if frame == warm - 1:
            before = peak_mb()
    after = peak_mb()
    ratios = [b / a for a, b in zip(seconds["plain"], seconds["probed"], strict=True)]
    return {
        "ms_plain": round(1000 * statistics.median(seconds["plain"]), 1),
        "ms_probed": round(1000 * statistics.median(seconds["probed"]), 1),
        "ratio": {
            "median": round(statistics.median(ratios), 3),
            "low": round(min(ratios), 3),
            "high": round(max(ratios), 3),
        },
        "extra_memory_mb": round(after - before, 1),
        "frames": len(ratios),
    }


def exact_mass(call: AttentionCall) -> torch.Tensor:
    """Key mass in float64, plainly, over all rows of each window, ``[B, h, Nk]``."""
    q, k = call.q.double() * call.q.shape[-1] ** -0.5, call.k.double().mT
    total = sum((rows @ k).softmax(-1).sum(2) for rows in q.split(32, 2))
    assert isinstance(total, torch.Tensor)
    return total / q.shape[2]


def total_variation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Half the absolute difference of two masses ``[B, h, keys]``, normalised, mean over heads."""
    a, b = (mass.double() / mass.double().sum(-1, keepdim=True) for mass in (a, b))
    return float((a - b).abs().sum(-1).mean() / 2)


def accuracy(predictor: Any, frames: int, sites: list[str]) -> dict[str, Any]:
    """Differences of default statistics to all rows on the last frame, by site, and the largest."""
    found: dict[str, dict[str, float]] = {}

    def compare(call: AttentionCall) -> None:
        if call.moment.frame != frames - 1 or call.where is None:
            return
        sample, whole = measure(call), measure(call, None)
        row = found.setdefault(call.site, {})
        for name in ("entropy", "top10"):
            a, b = sample.means[name].mean(), whole.means[name].mean()
            row[f"{name}_relative"] = float((a - b).abs() / b)
        row["rows"] = sample.rows
        exact, rows = exact_mass(call), call.q.shape[2]
        drawn = sample_queries(len(call.q), rows, sample.rows, 0)
        drawn = drawn[:, None, :, None].expand(-1, call.q.shape[1], -1, call.q.shape[3])
        row["mass_tv"] = total_variation(key_mass(call.q, call.k), exact)
        row["sampled_mass_tv"] = total_variation(key_mass(call.q.gather(2, drawn), call.k), exact)
        if call.where.kind == "cross":
            shares = slot_shares(sample, call), slot_shares(replace(sample, mass=exact), call)
            row["slots_absolute"] = float((shares[0] - shares[1]).abs().max())

    with observe(predictor, compare, sites):
        list(predictor.propagate_in_video(begin(predictor, frames)))
    names = sorted({name for row in found.values() for name in row} - {"rows"})
    worst = {name: max((row.get(name, 0.0), site) for site, row in found.items()) for name in names}
    by_site = {
        site: {name: float(f"{value:.3g}") for name, value in row.items()}
        for site, row in found.items()
    }
    return {
        "query_rows": QUERY_ROWS,
        "worst": {name: float(f"{value:.3g}") for name, (value, _) in worst.items()},
        "at": {name: site for name, (_, site) in worst.items()},
        "sites": by_site,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="sam2.1-large")
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument(
        "--frames", type=int, default=12, help="of which the first 8 fill the memory"
    )
    parser.add_argument("--part", choices=["cost", "accuracy", "both"], default="both")
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    with torch.inference_mode():
        if options.part != "accuracy":
            large = build_predictor(
                options.model, weights="random", image_size=options.image_size, device="cpu"
            )
            found["cost"] = {
                "model": f"{options.model}, random weights, {options.image_size} px, float32"
            }
            found["cost"] |= cost(large, options.frames, warm=min(8, options.frames - 2))
            found["environment"] = environment(torch.device("cpu"), "float32")
        if options.part != "cost":
            tell("accuracy takes about 5 minutes on 2 cores at 1024 px")
            sites = ["encoder.stage3.*", "memory.*", "decoder.*"]
            found["accuracy"] = {}
            for model in ("sam2.1-tiny", "demo"):
                weights: Literal["random"] | None = None if model == "demo" else "random"
                predictor = build_predictor(
                    model, weights=weights, image_size=options.image_size, device="cpu"
                )
                named = f"{model}{', random weights' if weights else ''}, {options.image_size} px"
                found["accuracy"][named] = accuracy(predictor, 3, sites)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
