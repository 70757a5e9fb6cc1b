"""Weights of a SAM 2 from a file, in sam2's names or transformers', fine-tuned or with LoRA, into a model: all or none."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from probes.errors import InputError
from probes.transformers_format import SHARED, TWICE, Place, is_transformers, transformers_names

FORM = 'a .safetensors file or a .pt file holding {"model": state_dict} or a state dict'

INDEX = "model.safetensors.index.json"
"""transformers' list of which tensor lies in which file, where one file would be too large."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint file.

    Parameters
    ----------
    path
        ``.safetensors``, transformers' index of several of them, or a ``.pt`` whose ``"model"`` is a state dict, whatever
        training left beside it, or that is one. Nothing but tensors and plain values is unpickled.

    Raises
    ------
    InputError
        It can't be read, or holds no state dict.
    """
    if not path.is_file():
        raise InputError(
            f"checkpoint {path} does not exist; expected a .pt or .safetensors file; check the path"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".json":
            return _read_shards(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:
        # torch says first how to run a file's code all the same
        said = str(error).split("WeightsUnpickler error: ")[-1].strip().splitlines()
        reason = said[0].split(". ")[0][:120] if said else type(error).__name__
        raise InputError(
            f"checkpoint {path} can't be read ({reason}); expected {FORM}; fetch or copy it again"
        ) from None
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(
            f"checkpoint {path} holds no state dict under 'model'; expected {FORM}; convert it"
        )
    return state


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Return the tensors of all files that an index names, each of which must hold what the index says."""
    place: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    state: dict[str, Tensor] = {}
    for file in sorted(set(place.values())):
        found = read_checkpoint(index.with_name(Path(file).name))
        said = {name for name, where in place.items() if where == file}
        if odd := sorted(said ^ found.keys()):
            raise InputError(
                f"checkpoint {index} and {file} differ in tensor {odd[0]}; expected files that were saved together; fetch or "
                "copy them again"
            )
        state |= found
    return state


def load_strictly(model: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load `state`, refusing it where a tensor is missing, extra or of another shape.

    Parameters
    ----------
    model
        Of sam2.
    state
        In sam2's names or in transformers'.
    path
        Where it is from, for messages.

    Raises
    ------
    InputError
        It doesn't fit; the tensor is named as the file names it.
    """
    wanted = model.state_dict()
    places = {name: Place(name) for name in wanted}
    if is_transformers(state):
        places = transformers_names(wanted)
        state = _once(state, path)
    shapes: dict[str, list[int]] = {}
    for name, (theirs, row) in places.items():
        shape = list(wanted[name].shape)
        shapes[theirs] = shape if row is None else [shapes.get(theirs, [0])[0] + 1, *shape[1:]]
    misshapen = [k for k in shapes if k in state and list(state[k].shape) != shapes[k]]
    for problem, names in (
        ("lacks", [k for k in shapes if k not in state]),
        ("has the unknown", [k for k in state if k not in shapes]),
        ("has a misshapen", misshapen),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            said = ""
            if names is misshapen:
                said = f" ({list(state[names[0]].shape)} for {shapes[names[0]]})"
            raise InputError(
                f"checkpoint {path} {problem} tensor {names[0]}{said}{more}; expected the weights of "
                "exactly this model; check that model and checkpoint belong together"
            )
    model.load_state_dict(
        {
            name: state[theirs] if row is None else state[theirs][row : row + 1]
            for name, (theirs, row) in places.items()
        }
    )


def _once(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Leave out the copy that transformers may write of one tensor."""
    if TWICE not in state:
        return state
    if SHARED in state and not torch.equal(state[SHARED], state[TWICE]):
        raise InputError(
            f"checkpoint {path} has two tensors of which one is a copy, {SHARED} and {TWICE}, with other numbers; "
            "expected equal ones, as sam2 has but one; write it anew"
        )
    return {SHARED: state[TWICE]} | {name: t for name, t in state.items() if name != TWICE}
