"""Weights of a model: read from a file, loaded strictly, and told apart by a fingerprint."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from probes.errors import InputError


def fingerprint(model: torch.nn.Module) -> str:
    """Return ``"sha256:…"`` over the names, shapes, types and bytes of all weights, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return f"sha256:{digest.hexdigest()}"


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint file."""
    if not path.is_file():
        raise InputError(
            f"checkpoint {path} does not exist; expected a .pt or .safetensors file; check the path"
        )
    form = 'a .safetensors file or a .pt file holding {"model": state_dict}'
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch says first how to run a file's code all the same
        said = str(error).split("WeightsUnpickler error: ")[-1].strip().splitlines()
        reason = said[0].split(". ")[0][:120] if said else type(error).__name__
        raise InputError(
            f"checkpoint {path} can't be read ({reason}); expected {form}; fetch or copy it again"
        ) from None
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(
            f"checkpoint {path} holds no state dict under 'model'; expected {form}; convert it"
        )
    return state


def load_strictly(model: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load `state`, refusing it where a tensor is missing, extra or of another shape."""
    wanted = model.state_dict()
    misshapen = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    for problem, names in (
        ("lacks", [k for k in wanted if k not in state]),
        ("has the unknown", [k for k in state if k not in wanted]),
        ("has a misshapen", misshapen),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            shapes = ""
            if names is misshapen:
                shapes = f" ({list(state[names[0]].shape)} for {list(wanted[names[0]].shape)})"
            raise InputError(
                f"checkpoint {path} {problem} tensor {names[0]}{shapes}{more}; expected the weights of "
                "exactly this model; check that model and checkpoint belong together"
            )
    model.load_state_dict(state)
