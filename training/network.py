"""The network that is trained: sam2's classes from the config, how its weights start, how they are stored.

    python -m training.network RUN/best.pt sparsity/demo/weights.safetensors

turns a run's best weights into the one file that comes with the project.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file

from probes.files import whole

CONFIG = Path(__file__).parents[1] / "sparsity" / "demo" / "config.yaml"
FEATURE_SCALE = 1 / 6  # makes features before memory as large as those after it
COARSEST = 0.08  # standard deviation of the lowest place frequencies; sam2 draws all with 1
LARGEST = 25_000_000  # bytes of the file that comes with the project


def set_size(model: Any, size: int) -> None:
    """Change the working resolution (pixels); every weight is kept."""
    cells = size // 16
    model.image_size, model.sam_image_embedding_size = size, cells
    prompts = model.sam_prompt_encoder
    prompts.image_embedding_size = (cells, cells)
    prompts.input_image_size = (size, size)
    prompts.mask_input_size = (4 * cells, 4 * cells)


def build_model() -> Any:
    """Build ``config.yaml`` with sam2's classes, weights as sam2 draws them."""
    return instantiate(OmegaConf.load(CONFIG).model, _recursive_=True)


@torch.no_grad()
def prepare_weights(model: Any, gain: float = 0.75) -> None:
    """Start memory attention as a comparison of looks, the decoder's of places; "present" for all.

    The memory carries an orthonormal projection P of the frame's features; each layer's queries
    and keys compare P f with P f', softened by ``gain``. SAM 2 has to learn this; with a few
    hours it does not. The decoder's tokens and the image start out attending to each other where
    their places agree, so that a click says where from the first step.
    """
    model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(2.0)
    wide, narrow = model.hidden_dim, model.mem_dim
    projection = torch.linalg.qr(torch.randn(wide, wide))[0][:narrow]
    spread = torch.linalg.qr(torch.randn(wide, wide))[0][:, :narrow]
    encoder = model.memory_encoder
    encoder.pix_feat_proj.weight.copy_(torch.eye(wide)[:, :, None, None])
    encoder.out_proj.weight.copy_(projection[:, :, None, None])
    encoder.pix_feat_proj.bias.zero_()
    encoder.out_proj.bias.zero_()
    for layer in model.memory_attention.layers:
        attention = layer.cross_attn_image
        attention.q_proj.weight.copy_(gain * spread @ projection)
        attention.k_proj.weight.copy_(gain * spread)
        attention.q_proj.bias.zero_()
        attention.k_proj.bias.zero_()
    match_places(model)
    scale_features(model)
    spread_frequencies(model)


def relative_rate(name: str) -> float:
    """Return how much faster than others a parameter moves: as much as it was scaled."""
    if name.startswith(("image_encoder.neck.convs.0.", "image_encoder.neck.convs.1.")):
        return FEATURE_SCALE
    writers = ("self_attn.out_proj.", "cross_attn_image.out_proj.", "linear2.")
    if name.startswith("memory_attention.layers.") and any(w in name for w in writers):
        return FEATURE_SCALE
    return 1 / FEATURE_SCALE if name == "memory_encoder.pix_feat_proj.weight" else 1.0


@torch.no_grad()
def scale_features(model: Any) -> None:
    """Shrink the features that go to memory, with all that reads or adds to them.

    Tracking stays as it is. A clicked frame's features skip memory attention and its norm, and
    unscaled they drown the code of places, so that the decoder can't tell where a click is.
    """
    for name, parameter in model.named_parameters():
        parameter.mul_(relative_rate(name))


@torch.no_grad()
def spread_frequencies(model: Any) -> None:
    """Give the code of places coarse frequencies too, which tell left from right."""
    matrix = model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    matrix.mul_(torch.logspace(math.log10(COARSEST), 0, matrix.shape[1]).to(matrix))


@torch.no_grad()
def match_places(model: Any) -> None:
    """Add the same orthonormal projection to queries and keys of the decoder's cross-attention."""
    for layer in model.sam_mask_decoder.transformer.layers:
        for attention in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token):
            narrow, wide = attention.q_proj.weight.shape
            shared = torch.linalg.qr(torch.randn(wide, wide))[0][:narrow].to(
                attention.q_proj.weight
            )
            attention.q_proj.weight.add_(shared)
            attention.k_proj.weight.add_(shared)


def fast_bfloat16(device: str) -> bool:
    """Whether a device computes in bfloat16; CPUs without it only emulate it, slowly."""
    on_cpu = torch.device(device).type == "cpu"
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() if on_cpu else True


def autocast(device: str) -> torch.autocast:
    """Return the precision the model is trained in: mixed with bfloat16 where the device has it."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=fast_bfloat16(device))


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
    with whole(target) as part:
        save_file(half, part)
        size = part.stat().st_size
        if size > LARGEST:
            raise ValueError(f"the file would have {size} bytes; expected at most {LARGEST}")
    return size


if __name__ == "__main__":
    print(export(Path(sys.argv[1]), Path(sys.argv[2])), "bytes")
