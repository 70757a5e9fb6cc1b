"""torchvision where its binary was built for another torch than the one that is installed.

Its import fails then at the first operator that isn't registered, and with it sam2's image predictor and automatic masks,
which need only `nms` of them. For the tests all its operators are declared, and `nms` is written plainly.
"""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")

DECLARED = torch.library.Library("torchvision", "FRAGMENT")


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of boxes ``[N, 4]`` that overlap none with a higher score by more than the threshold, best first."""
    waiting, kept = scores.argsort(descending=True, stable=True), list[Tensor]()
    left, top, right, bottom = boxes.unbind(1)
    area = (right - left) * (bottom - top)
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        wide = torch.minimum(right[best], right[waiting]) - torch.maximum(left[best], left[waiting])
        tall = torch.minimum(bottom[best], bottom[waiting]) - torch.maximum(top[best], top[waiting])
        both = wide.clamp(min=0) * tall.clamp(min=0)
        waiting = waiting[both / (area[best] + area[waiting] - both) <= iou_threshold]
    return torch.stack(kept) if kept else waiting


def declare() -> None:
    """Make torchvision importable where its own binary is of no use."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
    else:
        return
    for name in NAMES:
        for each in (name, f"_{name}_backward"):
            DECLARED.define(f"{each}(Tensor x) -> Tensor")
    DECLARED.define("qroi_align(Tensor x) -> Tensor")
    DECLARED.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    DECLARED.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    DECLARED.impl("nms", nms, "CPU")
    from torchvision import extension

    extension._has_ops = lambda: True
