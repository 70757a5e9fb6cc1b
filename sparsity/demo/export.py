"""Turn a run's best weights into the one file that comes with the project.

python -m sparsity.demo.export RUN/best.pt sparsity/demo/weights.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

LARGEST = 25_000_000  # bytes


def export(checkpoint: Path, target: Path) -> int:
    """Store the weights as float16 safetensors and return the file's size in bytes.

    They are loaded into float32 parameters; the rounding is part of the model.

    Raises
    ------
    ValueError
        A weight is not finite or too large for float16, or the file would be too large.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    half = {name: tensor.to(torch.float16).contiguous() for name, tensor in state.items()}
    bad = [name for name, tensor in half.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{bad[0]} holds values that float16 can't; train on from a better state")
    partial = target.with_name(target.name + ".partial")
    save_file(half, partial)
    size = partial.stat().st_size
    if size > LARGEST:
        partial.unlink()
        raise ValueError(f"the file would have {size} bytes; expected at most {LARGEST}")
    partial.replace(target)
    return size


if __name__ == "__main__":
    print(export(Path(sys.argv[1]), Path(sys.argv[2])), "bytes")
