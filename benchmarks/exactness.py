"""How far the exact rewrites, and routing that keeps every window, are from stock at 1024 pixels in float32.

    python benchmarks/exactness.py

All four sizes with random weights, one frame of a made clip. The result is ``benchmarks/exactness.json``:
for each size the relative error (root of summed squares) of the three feature levels under the profile
``exact``, and of stage 3's output with all windows kept; beside it, what leaving out one window does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probes import build_predictor
from probes.files import write_text
from probes.observing import Seam, Told, listen
from sparsity import accelerate
from sparsity.acceleration.model.encoder import Encoder, Encoding
from sparsity.acceleration.model.windows import window_tokens
from sparsity.clips.made import make_clip
from sparsity.evaluation.meters import environment

MODELS = ("sam2.1-tiny", "sam2.1-small", "sam2.1-base-plus", "sam2.1-large")


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative error."""
    return float((found - expected).norm() / expected.norm())


def levels(predictor: Any, frames: Any) -> list[Tensor]:
    """Feature levels of the first frame."""
    noted: list[Told] = []
    with listen(predictor, encoded=noted.append):
        predictor.init_state(frames)
    _, encoded, *_ = noted[0].what
    return encoded["backbone_fpn"]


def measure(name: str, frames: Any) -> dict[str, Any]:
    """Measure one size."""
    stock = build_predictor(name, weights="random", device="cpu")
    trunk = stock.image_encoder.trunk
    encoder = Encoder(stock, torch.float32, Seam())
    noted: list[Tensor] = []
    handles = [
        trunk.blocks[encoder.first].register_forward_pre_hook(
            lambda module, args: noted.append(args[0].detach())
        ),
        trunk.blocks[encoder.last].register_forward_hook(
            lambda module, args, out: noted.append(out.detach())
        ),
    ]
    expected = levels(accelerate(stock, "dense"), frames)
    for handle in handles:
        handle.remove()
    entry, dense = noted
    every = torch.ones(encoder.grid.count, dtype=torch.bool)
    fewer = every.clone()
    fewer[0] = False

    def through_stage3(windows: Tensor) -> Tensor:
        cells = encoder.grid.cells_of(windows)
        where = window_tokens(encoder.grid, cells, entry.device)
        return encoder.through_stage3(entry[0].clone(), Encoding(cells), where)[0]

    with torch.inference_mode():
        all_kept, one_less = through_stage3(every), through_stage3(fewer)
    found = levels(accelerate(stock, "exact"), frames)
    return {
        "levels": [distance(a, b) for a, b in zip(found, expected, strict=True)],
        "stage3_all_windows_kept": distance(all_kept, dense[0]),
        "stage3_one_window_left_out": distance(one_less, dense[0]),
    }


def main() -> None:
    """Measure all sizes and write the file."""
    frames = make_clip("smooth", seed=1, frames=1).frames
    result = {
        "environment": environment(torch.device("cpu"), "float32"),
        "image_size": 1024,
        "models": {name: measure(name, frames) for name in MODELS},
    }
    text = json.dumps(result, indent=1)
    write_text(Path(__file__).with_suffix(".json"), text)
    print(text)


if __name__ == "__main__":
    main()
