"""SAM 2's prompt encoder, which encodes the absence of a prompt once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sam2.modeling.sam.prompt_encoder import PromptEncoder
from torch import Tensor

Remember = Callable[[str, Callable[[], Any]], Any]
"""From a name and a function to what the function gave for these weights and this number format."""


class ConstantPromptEncoder(PromptEncoder):
    """Shares all modules of a stock prompt encoder and gives the same, bit for bit.

    A frame without a prompt is a padding point to sam2, encoded anew on every frame, as is the position of every token.
    """

    unprompted: Callable[[], bool]
    remember: Remember

    @classmethod
    def sharing(
        cls, encoder: PromptEncoder, unprompted: Callable[[], bool], remember: Remember
    ) -> ConstantPromptEncoder:
        """Wrap a prompt encoder; names of parameters stay as they are."""
        shared = cls.__new__(cls)
        shared.__dict__ = {**encoder.__dict__, "unprompted": unprompted, "remember": remember}
        return shared

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Encode prompts, like stock; `unprompted` says that the points are padding."""
        if points is None or masks is not None or not self.unprompted():
            return super().forward(points, boxes, masks)

        def encoded() -> tuple[Tensor, Tensor]:
            sparse, dense = super(ConstantPromptEncoder, self).forward(points, boxes, masks)
            # a view of a weight would be taken for trained
            return sparse.detach(), dense.detach()

        found: tuple[Tensor, Tensor] = self.remember(
            f"no prompt for {len(points[0])} objects", encoded
        )
        return found

    def get_dense_pe(self) -> Tensor:
        """Positions of the tokens ``[1, C, grid, grid]``, like stock."""
        if not self.unprompted():
            return super().get_dense_pe()
        found: Tensor = self.remember("positions", super().get_dense_pe)
        return found
