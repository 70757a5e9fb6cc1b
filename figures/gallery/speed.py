"""What was measured of speed and accuracy, from the files in ``benchmarks/``."""

from __future__ import annotations

import json
from pathlib import Path

import plotly.graph_objects as go

from figures.benchmark import conditions, weights
from figures.scaling import draw_scaling, load_growth
from figures.style import ThemeName, evidence
from figures.times import DIVIDED, draw_times, times_of
from figures.tradeoff import draw_trade_off, trade_offs_of
from sparsity.evaluation.results import load_result

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TIMES = BENCHMARKS / "speed" / "large-bfloat16-default.json"
TRADE_OFFS = BENCHMARKS / "speed" / "demo-float32-default.json"


def _machine() -> str:
    """Say on what the series of growth were measured."""
    stamps = [
        json.loads(path.read_text(encoding="utf-8"))["environment"]
        for path in sorted((BENCHMARKS / "scaling").glob("*.json"))
    ]
    found = [
        f"{s['threads']} threads of {s['cpu']} ({s['capability']}), {s['dtype']}" for s in stamps
    ]
    return " or ".join(dict.fromkeys(found))


def speed(theme: ThemeName) -> dict[str, go.Figure]:
    """Draw times, cost against what is computed, and speed against accuracy, by name."""
    large, demo = load_result(TIMES), load_result(TRADE_OFFS)
    return {
        "times": draw_times(
            times_of(large),
            f"{DIVIDED} One object, 4 of 16 windows where they are routed. {conditions(large)}"
            f"{evidence(weights(large))}",
            theme=theme,
        ),
        "scaling": draw_scaling(
            load_growth(BENCHMARKS / "scaling"),
            f"SAM 2.1 Base+ at 1024 pixels, one object and 6 of 25 windows where they don't vary, {_machine()}; dotted: "
            f"counted operations, scaled to the first time of stock sam2.{evidence('random')}",
            theme=theme,
        ),
        "speed-accuracy": draw_trade_off(
            trade_offs_of(demo),
            "J&F with its 95 % interval over clips; ratios of neighbouring frames with the range of the middle "
            f"four fifths. {conditions(demo)}{evidence(weights(demo))}",
            theme=theme,
        ),
    }
