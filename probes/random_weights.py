"""Random weights that track: a SAM 2 without training that keeps the mask it was given.

Freshly drawn weights give masks that are full or empty and ignore the prompt, so nothing about routing
or memory can be tried on them. Here a few layers of a freshly drawn model are set so that a prompted
object is carried from frame to frame *by place*: memory attention looks at the same place of the memory
frames, its values say "object" or "background", and the decoder's last product reads that. Everything
else stays as drawn. Such a model is for tests and for timing; it says nothing about accuracy, and it
doesn't follow an object that moves. A mask prompt is kept as it is; what a point or a box makes of the
prompted frame is arbitrary, and that is what is carried along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

PRESENT = 10.0
"""Bias of the object-score logit: the object is there."""

PLACE = 2.5
"""Bias of queries and keys in memory attention; turned by the rotary phases, it makes a query look at
its own place."""

CONTENT = 0.3
"""Factor on their weights: what is left of the content keeps token saliency uneven."""

SIGNAL = 48.0
"""Length of the vector that memory attention adds where the object is."""

TEXTURE = 0.1
"""Factor on the high-resolution features, which would otherwise drown the signal in the decoder."""

CONTRAST = 8.0
"""Mask logit inside the object, about."""

SPREAD = 0.02
"""Factor on the hypernetworks' last weights: candidate masks stay alike without being equal."""


@torch.no_grad()
def make_it_track(model: SAM2VideoPredictor, seed: int) -> None:
    """Set the layers named above so that the model carries a mask along; in place.

    Takes two encoder passes and two tracked frames at the model's own image size, in fp32.

    Parameters
    ----------
    model
        A predictor with freshly drawn weights.
    seed
        Draws the pictures and masks on which the layers are fitted.
    """
    generator = torch.Generator().manual_seed(seed)
    width = model.hidden_dim
    score_head = model.sam_mask_decoder.pred_obj_score_head
    (score_head.layers[-1] if hasattr(score_head, "layers") else score_head).bias.fill_(PRESENT)
    for conv in (model.sam_mask_decoder.conv_s0, model.sam_mask_decoder.conv_s1):
        conv.weight.mul_(TEXTURE)
        conv.bias.mul_(TEXTURE)
    for layer in model.memory_attention.layers:
        for projection in (layer.cross_attn_image.q_proj, layer.cross_attn_image.k_proj):
            projection.weight.mul_(CONTENT)
            projection.bias.fill_(PLACE)

    scenes = [_Scene(model, generator) for _ in range(2)]
    separator = _separate(
        torch.cat([scene.remember().flatten(2)[0].T for scene in scenes]),
        torch.cat([scene.share_of_object(model.sam_image_embedding_size) for scene in scenes]),
    )
    signal = torch.randn(width, generator=generator).to(model.device)
    signal -= signal.mean()
    signal *= SIGNAL / signal.norm()
    for layer in model.memory_attention.layers:
        attention = layer.cross_attn_image
        attention.v_proj.weight.copy_(signal[:, None] * separator[None, :-1])
        attention.v_proj.bias.copy_(signal * separator[-1])
        attention.out_proj.weight.copy_(torch.eye(width))
        attention.out_proj.bias.zero_()

    upscaled = [scene.decode() for scene in scenes]
    reading = _separate(
        torch.cat([u.flatten(2)[0].T for u in upscaled]),
        torch.cat([scene.share_of_object(upscaled[0].shape[-1]) for scene in scenes]),
        constant=False,
    )
    for network in model.sam_mask_decoder.output_hypernetworks_mlps:
        network.layers[-1].weight.mul_(SPREAD)
        network.layers[-1].bias.copy_(CONTRAST * reading)


class _Scene:
    """A smooth random picture with an object on it, and what the model makes of it."""

    def __init__(self, model: SAM2VideoPredictor, generator: torch.Generator) -> None:
        self.model = model
        size = model.image_size
        coarse = torch.randn(1, 3, 12, 12, generator=generator)
        picture = F.interpolate(coarse, size=(size, size), mode="bicubic").to(model.device)
        middle = 0.35 + 0.3 * torch.rand(2, generator=generator)
        axis = (torch.arange(size) + 0.5) / size
        disc = (axis - middle[0])[:, None] ** 2 + (axis - middle[1])[None, :] ** 2 < 0.2**2
        self.mask = disc[None, None].float().to(model.device)
        features = model._prepare_backbone_features(model.forward_image(picture))
        _, self.features, self.positions, self.sizes = features
        self.results: dict[str, dict[int, Any]] = {
            "cond_frame_outputs": {},
            "non_cond_frame_outputs": {},
        }

    def _track(self, frame: int, mask: Tensor | None) -> dict[str, Any]:
        return self.model.track_step(
            frame_idx=frame,
            is_init_cond_frame=mask is not None,
            current_vision_feats=self.features,
            current_vision_pos_embeds=self.positions,
            feat_sizes=self.sizes,
            point_inputs=None,
            mask_inputs=mask,
            output_dict=self.results,
            num_frames=2,
            run_mem_encoder=mask is not None,
        )

    def share_of_object(self, side: int) -> Tensor:
        """Return the share of each cell of a ``side x side`` grid that the object covers, flat."""
        return F.interpolate(self.mask, size=(side, side), mode="area").flatten()

    def remember(self) -> Tensor:
        """Prompt frame 0 with the mask; return its memory features ``[1, C, n, n]``."""
        result = self._track(0, self.mask)
        self.results["cond_frame_outputs"][0] = result
        return result["maskmem_features"].float()

    def decode(self) -> Tensor:
        """Track into frame 1 (the same picture); return the decoder's upscaled features."""
        seen: list[Tensor] = []
        last = self.model.sam_mask_decoder.output_upscaling[-1]
        hook = last.register_forward_hook(lambda module, given, result: seen.append(result))
        try:
            self._track(1, None)
        finally:
            hook.remove()
        return seen[-1].float()


def _separate(features: Tensor, share: Tensor, *, constant: bool = True) -> Tensor:
    """Return weights ``[C (+ 1)]`` whose product with `features` ``[N, C]`` is +1 inside, -1 outside.

    Least squares in float64 over the cells that lie clearly inside or outside, both sides with equal
    weight, so that object and background are told apart whatever their areas.
    """
    clear = (share > 0.9) | (share < 0.1)
    x, inside = features[clear].double(), share[clear] > 0.5
    if constant:
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    weight = torch.where(inside, 1 / inside.sum(), 1 / (~inside).sum()).double()[:, None]
    target = inside.double() * 2 - 1
    gram = x.T @ (x * weight)
    gram += (
        1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    )
    return torch.linalg.solve(gram, (x * weight).T @ target).float()
