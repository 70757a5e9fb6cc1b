"""LoRA, as PEFT writes it, merged into the weights of a model: W + s B A (Hu et al., LoRA, arXiv:2106.09685, section 4.1).

The adapter may have been trained on sam2's model or on transformers': its tensors are found under either's names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probes.errors import InputError
from probes.transformers_format import transformers_names
from probes.weights import read_checkpoint

SETTINGS, TENSORS = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's files."""

ROOT = "base_model.model."
"""What PEFT puts before the names of the model that it adapted."""

_AS_IT_IS = (True, False, "gaussian", "eva", "orthogonal", None)
"""Ways to begin an adapter that leave the base weights as they are."""

_OTHER = ("use_dora", "use_qalora", "lora_bias", "target_parameters", "layer_replication")
"""Settings under which the product isn't all there is to add."""


def lora_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of an adapter.

    Raises
    ------
    InputError
        The folder holds no adapter of PEFT, or one of another kind than LoRA's product.
    """
    missing = [name for name in (SETTINGS, TENSORS) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} holds no {' and no '.join(missing)}; expected a folder that PEFT wrote with both; give that one"
        )
    try:
        given = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        kind = given.get("peft_type")
    except (ValueError, AttributeError):
        given, kind = {}, None
    begun = given.get("init_lora_weights", True)
    others = [name for name in _OTHER if given.get(name)]
    others += [f"init_lora_weights={begun}"] if begun not in _AS_IT_IS else []
    if kind != "LORA" or others:
        raise InputError(
            f"{folder / SETTINGS} describes {', '.join([str(kind), *others])}; expected plain LoRA; merge it with PEFT "
            "itself and save the whole model"
        )
    return dict(given)


@torch.no_grad()
def merge_lora(model: nn.Module, folder: Path) -> None:
    """Add an adapter to the weights of a model, in place.

    Linear and convolution layers take ``W += s * B A`` with A ``[r, in, …]`` and B ``[out, r, …]``, where s is
    ``lora_alpha / r`` or with rank-stabilised LoRA ``lora_alpha / sqrt(r)``; what was trained as a whole
    (``modules_to_save``, biases) is put in place.

    Parameters
    ----------
    model
        Of sam2.
    folder
        With PEFT's ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises
    ------
    InputError
        It is another kind of adapter, or a tensor of it doesn't fit the model.
    """
    settings, path = lora_settings(folder), folder / TENSORS
    given = read_checkpoint(path)
    weights = model.state_dict()
    known = {name: name for name in weights}
    known |= {
        place.name: n for n, place in transformers_names(weights).items() if place.row is None
    }
    for key, tensor in given.items():
        name = key.removeprefix(ROOT).replace(".base_layer.", ".")
        found = re.fullmatch(r"(.*)\.lora_([AB])\.weight", name)
        target = known.get(f"{found[1]}.weight" if found else name)
        if target is None:
            raise InputError(
                f"{path} has the unknown tensor {key}; expected layers of exactly this model; check that model and adapter "
                "belong together"
            )
        weight = weights[target]
        if found is None:
            change, put = tensor.to(weight), weight.zero_
        elif found[2] == "A":
            continue  # comes with its B
        else:
            first = given.get(key.replace(".lora_B.", ".lora_A."))
            change, put = _product(first, tensor, found[1], settings), None
        if change.shape != weight.shape:
            raise InputError(
                f"{path} has a misshapen tensor {key} (it changes {list(change.shape)}, the model has "
                f"{list(weight.shape)}); expected layers of exactly this model; check that model and adapter belong together"
            )
        if put is not None:
            put()
        weight += change.to(weight)


def _product(
    first: Tensor | None, second: Tensor, module: str, settings: Mapping[str, Any]
) -> Tensor:
    """What a pair of tensors adds to a layer's weight, float32."""
    if first is None or first.shape[0] != second[0].numel():
        return second.new_zeros(0)
    rank = _of_module(settings, "rank_pattern", module, settings.get("r", 8))
    alpha = _of_module(settings, "alpha_pattern", module, settings.get("lora_alpha", 8))
    scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    change = torch.einsum("or,r...->o...", second.float().flatten(1), first.float()) * scale
    return change.T if settings.get("fan_in_fan_out") else change


def _of_module(settings: Mapping[str, Any], what: str, module: str, otherwise: float) -> float:
    """A module's own rank or alpha: the first pattern that ends its name, as PEFT looks for it."""
    for pattern, value in (settings.get(what) or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return float(value)
    return float(otherwise)
