"""The pictures of the README and the docs, made anew: of made clips, the demo model and committed measurements.

    python benchmarks/gallery.py

Needs the demo model's weights and a Chrome or Chromium; writes ``figures/gallery/NAME.png``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

import figures
from figures import MemoryTile, RoutedFrame, evidence, readings
from figures.benchmark import DIVIDED, conditions, losses_of, weights
from figures.style import THEMES, ThemeName, finish
from probes import build_predictor, observe, record
from probes.errors import InputError
from probes.records import Recording
from probes.video import open_video
from sparsity import accelerate
from sparsity.clips.made import Clip, make_clip, photographed_cat
from sparsity.clips.sources import clip_of
from sparsity.evaluation.evaluate import track
from sparsity.evaluation.results import load_result

HERE = Path(__file__).parent
PICTURES = HERE.parent / "figures" / "gallery"

BUDGET = 150_000
"""Bytes of a picture."""

SLIMMER = (
    *((share, 256) for share in (0.63, 0.58, 0.54, 0.5, 0.46, 0.42)),
    *((0.42, colours) for colours in (128, 96, 64)),
)
"""Shares of a picture's sides and numbers of colours that are tried, in order."""

ONE, TWO = "smooth", "distractors"
OBJECTS = {ONE: 1, TWO: 2, "fast": 1, "changing_look": 1, "occlusion": 1, "leave_and_return": 1}
"""Objects by kind of the clips that are recorded."""

SEEDS = (1, 2, 3)
"""A clip of each kind each; the first ones are shown."""

FRAMES, FRAME, KEEP = 12, 8, 0.05
BLOCK, LAYER = "encoder.stage3.block9.global", 2

ROUTED = 12
"""The frame whose windows and memory tokens are shown, the last of the run."""

READ = "memory.layer0.cross"
"""Site whose keys are the memory tokens that are shown."""

GLOBAL = "encoder.stage3.block5.global"
"""Block whose attention is compared."""

TIMES = HERE / "speed" / "large-bfloat16-default.json"
TRADE_OFFS = HERE / "speed" / "demo-float32-default.json"


# What the encoder, the decoder and memory attend to


def made(kind: str, seed: int = SEEDS[0]) -> Clip:
    """One of the clips that are recorded."""
    return make_clip(kind, seed=seed, frames=FRAMES, objects=OBJECTS[kind])


def recorded(out: Path) -> Recording:
    """Track the clips with the demo model and record what it attends to."""
    predictor = build_predictor("demo")
    for (kind, count), seed in product(OBJECTS.items(), SEEDS):
        clip = made(kind, seed)
        recording = record(
            predictor,
            clip.frames,
            {k: clip.masks[0] == k for k in range(1, count + 1)},
            out=out,
            name=kind if seed == SEEDS[0] else f"{kind}-{seed}",
            statistics=["encoder.*", "memory.*.cross"],
            rows=[BLOCK, "memory.*.cross"],
            model="demo",
        )
    return recording


def attention(recording: Recording) -> dict[str, go.Figure]:
    """Draw the figures that a recording holds, by name."""
    over = f"{len(recording.names)} made clips of {FRAMES} frames"
    return {
        "encoder-decoder": _encoder_and_decoder(recording),
        "breadth": figures.draw_breadth(
            readings.breadths(recording),
            f"Median and quartiles over {over} and over heads; support: among how many keys a query's attention is "
            f"spread; distance is in pixels of the model's input.{evidence('demo')}",
        ),
        "film-strip": _film_strip(recording),
        "concentration": figures.draw_concentration(
            {
                f"layer {layer}": readings.key_mass(recording, f"memory.layer{layer}.cross")
                for layer in range(recording.header.model.layers)
            },
            f"Memory cross-attention, all frames of a full memory, mean of the frames' curves over {over}; approximate: "
            f"read from {readings.row_sampling(recording)}.{evidence('demo')}",
        ),
        "recall": figures.draw_recall(
            readings.recall_curves(recording, KEEP),
            KEEP,
            f"The top {KEEP:.0%} of a memory frame's tokens, chosen when it is first recalled: the share of its "
            f"attention that they still catch. Bands: 95 % over {over}.{evidence('demo')}",
        ),
    }


def _encoder_and_decoder(recording: Recording) -> go.Figure:
    clip, shot = made(TWO), recording.clip(TWO)
    queries = recording.header.settings.row_queries
    at = {k: shot.row(FRAME, k) for k in range(1, OBJECTS[TWO] + 1)}
    return figures.draw_encoder_and_decoder(
        clip.frames[FRAME],
        {k: clip.masks[FRAME] == k for k in at},
        {k: readings.object_map(shot, queries, BLOCK, i) for k, i in at.items()},
        {k: shot.decoder_saliency[i] for k, i in at.items()},
        f"Made clip, frame {FRAME}; outlined: the true objects; encoder: stage 3, block 9, queries on the object; "
        "decoder: mean over layers, heads and output tokens; lift: attention on the object over its share of the "
        f"area.{evidence('demo')}",
    )


def _film_strip(recording: Recording) -> go.Figure:
    clip, times = made(ONE), [FRAME - 1, FRAME, FRAME + 1]
    return figures.draw_memory_filmstrip(
        clip.frames,
        readings.recollections(recording.clip(ONE), 1, times, f"memory.layer{LAYER}.cross"),
        f"Made clip, memory layer {LAYER}, mean over heads, {readings.row_sampling(recording)}; outlined: the true "
        "object. CS: cosine with the first recollection, from all queries, beside the same by chance."
        f"{evidence('demo')}",
        masks={t: {1: clip.masks[t] == 1} for t in range(FRAMES)},
    )


def compared(out: Path) -> go.Figure:
    """Lay the stock run of a made clip beside the one at profile `paper`."""
    clip, predictor = made(ONE), build_predictor("demo")
    stock, routed = (
        record(
            runs, clip.frames, {1: clip.masks[0] == 1}, out=out / name, name=ONE, statistics=READ, rows=[GLOBAL],
            model="demo",
        )
        for name, runs in (("stock", predictor), ("paper", accelerate(predictor, "paper")))
    )  # fmt: skip
    return figures.compare(stock, routed, clip.frames, frame=FRAME)


# What profile `paper` computes


@dataclass(frozen=True)
class Tracked:
    """A routed run: each frame, the memory that the last one read, and a window's share of the grid's side."""

    frames: list[RoutedFrame]
    memory: list[MemoryTile]
    window_share: float


def tracked() -> Tracked:
    """Track the photographed clip with the demo model at profile `paper`."""
    clip = photographed_cat(ROUTED + 1)
    predictor = accelerate(build_predictor("demo"), "paper")
    reads: list[Any] = []

    def note(call: Any) -> None:
        if call.moment.frame == ROUTED:
            reads.append(call)

    with observe(predictor, note, READ):
        run = track(predictor, clip_of(clip.name, open_video(clip.frames), clip.masks[0]))
    shown = figures.routed_frames(clip.frames, run.masks, run.report)
    grid = predictor.image_size // 16
    share = predictor.image_encoder.trunk.window_spec[2] / grid
    return Tracked(shown, figures.memory_tiles(clip.frames, reads[0]), share)


def routing(run: Tracked) -> dict[str, go.Figure]:
    """Draw the overview, which opens the README, and the player, by name."""
    last = run.frames[-1]
    return {
        "hero": figures.draw_overview(
            last.frame,
            last.masks,
            last.windows,
            run.window_share,
            run.memory,
            f"Frame {ROUTED} of a photograph under a moving camera, profile paper. Dark windows take the shortcut; of older "
            "memory frames only the tokens that stood out when the frame was first recalled are read, the prompted and the "
            f"newest frame are read whole.{evidence('demo')}",
        ),
        "window-player": figures.draw_window_player(
            run.frames,
            run.window_share,
            f"A photograph under a moving camera, profile paper. Dark windows take the shortcut.{evidence('demo')}",
            shown=len(run.frames) // 2,
        ),
    }


# What was measured


def speed() -> dict[str, go.Figure]:
    """Draw times, cost against what is computed, and speed against accuracy, by name."""
    large, demo = load_result(TIMES), load_result(TRADE_OFFS)
    return {
        "times": figures.draw_times(
            figures.times_of(large),
            f"{DIVIDED} One object, 4 of 16 windows where they are routed. {conditions(large)}"
            f"{evidence(weights(large))}",
        ),
        "scaling": draw_scaling(
            load_growth(HERE / "scaling"),
            f"SAM 2.1 Base+ at 1024 pixels, one object and 6 of 25 windows where they don't vary, {_machine()}; dotted: "
            f"counted operations, scaled to the first time of stock sam2.{evidence('random')}",
        ),
        "speed-accuracy": figures.draw_trade_off(
            figures.trade_offs_of(demo),
            f"{losses_of(demo)} Ratios of neighbouring frames with the range of the middle four fifths. "
            f"{conditions(demo)}{evidence(weights(demo))}",
        ),
    }


def _machine() -> str:
    """Say on what the series of growth were measured."""
    stamps = [
        json.loads(path.read_text(encoding="utf-8"))["environment"]
        for path in sorted((HERE / "scaling").glob("*.json"))
    ]
    found = [
        f"{s['threads']} threads of {s['cpu']} ({s['capability']}), {s['dtype']}" for s in stamps
    ]
    return " or ".join(dict.fromkeys(found))


def make(folder: Path) -> list[Path]:
    """Make all pictures."""
    with TemporaryDirectory() as work:
        drawn = attention(recorded(Path(work) / "made.recording")) | routing(tracked()) | speed()
        drawn["compare"] = compared(Path(work))
        return [
            _slim(figures.save(figure, Path(work) / f"{name}.png"), folder / f"{name}.png")
            for name, figure in drawn.items()
        ]


def _slim(large: Path, path: Path) -> Path:
    """Write a PNG again at the largest size, then with the most colours, that keep it within `BUDGET`; return its path."""
    with Image.open(large) as opened:
        picture = opened.convert("RGB")
    for share, colours in SLIMMER:
        size = round(share * picture.width), round(share * picture.height)
        small = picture.resize(size, Image.Resampling.LANCZOS)
        small.quantize(colours, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= BUDGET:
            break
    return path


AXES = {
    "windows": ("windows", "windows computed / %", 100.0),
    "keys": ("keys", "memory keys read / %", 100.0),
    "objects": ("objects", "objects", 1.0),
    "size": ("size", "side of the input / pixels", 1.0),
}
"""By series: the field that grows, the title of its axis, and a factor."""


@dataclass(frozen=True)
class Growth:
    """One series, ascending in x.

    Attributes
    ----------
    ms, stock_ms
        Milliseconds a frame, accelerated and stock.
    gflop, stock_gflop
        Operations a frame.
    """

    x: tuple[float, ...]
    ms: tuple[float, ...]
    gflop: tuple[float, ...]
    stock_ms: tuple[float, ...]
    stock_gflop: tuple[float, ...]


def load_growth(folder: Path) -> dict[str, Growth]:
    """Read the series of a folder; those that were not measured are left out.

    Raises
    ------
    InputError
        A file is no such series.
    """
    found = {}
    for name, (field, _, factor) in AXES.items():
        try:
            files = sorted(folder.glob(f"{name}*.json"))
            rows = [row for file in files for row in json.loads(file.read_text())["rows"]]
            rows.sort(key=lambda row: row[field])
            columns = {
                key: tuple(float(row[key]) for row in rows)
                for key in ("ms", "gflop", "stock_ms", "stock_gflop")
            }
            x = tuple(factor * row[field] for row in rows)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"a {name} file in {folder} can't be read ({error}); expected what benchmarks/scaling.py "
                "writes; measure it again"
            ) from None
        if rows:
            found[name] = Growth(x, **columns)
    return found


def draw_scaling(
    series: Mapping[str, Growth],
    caption: str,
    *,
    title: str = "How a frame's cost grows",
    theme: ThemeName = "light",
) -> go.Figure:
    """Draw one panel a series: time beside counted operations, for both predictors.

    Operations are scaled so that stock's first point of each panel lies on its time: where the two lines of
    a predictor run together, operations explain its time.
    """
    wanted: Sequence[str] = [name for name in AXES if name in series]
    if not wanted:
        raise InputError(
            "no series given; expected one of windows, keys, objects, size; measure them first"
        )
    look = THEMES[theme]
    columns = 2 if len(wanted) > 1 else 1
    height = -(-len(wanted) // columns)
    figure = make_subplots(height, columns, horizontal_spacing=0.1, vertical_spacing=0.2)
    for n, name in enumerate(wanted):
        growth, place = series[name], {"row": n // columns + 1, "col": n % columns + 1}
        scale = growth.stock_ms[0] / growth.stock_gflop[0]
        for label, ms, gflop, colour in (
            ("stock sam2", growth.stock_ms, growth.stock_gflop, look.skipped),
            ("accelerated", growth.ms, growth.gflop, look.kept),
        ):
            figure.add_scatter(
                x=growth.x, y=ms, mode="lines+markers", name=f"{label}, time", line={"color": colour},
                showlegend=n == 0, hovertemplate="%{x:.3g}: %{y:.0f} ms<extra></extra>", **place,
            )  # fmt: skip
            figure.add_scatter(
                x=growth.x, y=[scale * value for value in gflop], customdata=gflop, mode="lines",
                name=f"{label}, operations", line={"color": colour, "dash": "dot"}, showlegend=n == 0,
                hovertemplate="%{x:.3g}: %{customdata:.0f} GFLOP<extra></extra>", **place,
            )  # fmt: skip
        figure.update_xaxes(title=AXES[name][1], **place)
        figure.update_yaxes(title="time / ms per frame", rangemode="tozero", **place)
    return finish(figure, title, caption, theme, height=150 + 300 * height, top=96, legend="above")


if __name__ == "__main__":
    for path in make(PICTURES):
        print(path.name, path.stat().st_size // 1000, "kB")
