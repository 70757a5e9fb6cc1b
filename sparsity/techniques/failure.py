"""How likely a tracked mask is wrong, from what a run knows of it anyway: scores, predicted IoUs and masks.

A logistic model whose few numbers lie in a JSON file, bound to the model whose runs it was fitted on
(`sparsity.evaluation.failure`). Not part of the published method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, FiniteFloat, PositiveInt, ValidationError, model_validator
from torch import Tensor

from probes.errors import InputError
from probes.files import write_text
from sparsity.techniques import Settings

SCHEMA: Final = "efficient-sam2/failure/1"

WRONG_BELOW = 0.5
"""A mask is called wrong where its IoU with the true one is lower."""

REMEMBERED = 8
"""Tracked frames, the last one included, whose lowest score and IoU count."""

RUN_FEATURES = ("score", "lowest_score", "iou", "lowest_iou", "jump", "growth", "size")
"""What every run knows of an object on a frame; `run_features` defines them."""

SHIPPED = Path(__file__).parents[1] / "demo" / "failure.json"
"""The model that was fitted for the demo model."""


class FailureModel(Settings):
    """A fitted logistic model: probability that IoU with the true mask is below `WRONG_BELOW`.

    Attributes
    ----------
    model, image_size
        Fingerprint of the tracked model whose runs it was fitted on, and side of its input in pixels.
    features
        Their names, in order.
    mean, scale, coefficients
        A feature's mean and standard deviation in those runs, and its weight once it is standardized.
    intercept
        Of the logit.
    made_by
        What it was fitted on.
    """

    schema_: Literal["efficient-sam2/failure/1"] = Field(SCHEMA, alias="schema")
    model: Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")]
    image_size: PositiveInt
    features: tuple[str, ...]
    mean: tuple[FiniteFloat, ...]
    scale: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    coefficients: tuple[FiniteFloat, ...]
    intercept: FiniteFloat
    made_by: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_number_a_feature(self) -> FailureModel:
        numbers = (self.mean, self.scale, self.coefficients)
        if {len(given) for given in numbers} != {len(self.features)}:
            raise ValueError("mean, scale and coefficients need one number a feature; fit it anew")
        return self

    def fits(self, fingerprint: str, image_size: int) -> bool:
        """Whether it was fitted for a tracked model at the size of its input."""
        return (self.model, self.image_size) == (fingerprint, image_size)

    def probability(self, features: Mapping[str, float]) -> float:
        """Probability in (0, 1) that a mask is wrong; a feature that is NaN counts as its mean.

        Raises
        ------
        KeyError
            A feature is missing.
        """
        logit = self.intercept
        for name, mean, scale, weight in zip(
            self.features, self.mean, self.scale, self.coefficients, strict=True
        ):
            value = features[name]
            if not math.isnan(value):
                logit += weight * (value - mean) / scale
        return 1 / (1 + math.exp(-max(-500.0, logit)))

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        write_text(Path(path), self.model_dump_json(by_alias=True, indent=1) + "\n")


@lru_cache(maxsize=1)
def _shipped() -> FailureModel:
    return FailureModel.model_validate_json(SHIPPED.read_text(encoding="utf-8"))


def failure_model_of(fingerprint: str, image_size: int) -> FailureModel | None:
    """Return the failure model that ships for a tracked model; None where none was fitted for it at this size."""
    shipped = _shipped()
    return shipped if shipped.fits(fingerprint, image_size) else None


def load_failure(path: str | Path, fingerprint: str, image_size: int) -> FailureModel:
    """Read a failure model that was fitted for a tracked model at the size of its input.

    Raises
    ------
    InputError
        It isn't there, is damaged, was fitted for another model or size, or needs more than a run knows.
    """
    try:
        found = FailureModel.model_validate_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise InputError(
            f"{path} can't be used ({what}); expected a failure model, {SCHEMA}; fit it with benchmarks/failure.py"
        ) from None
    if not found.fits(fingerprint, image_size):
        raise InputError(
            f"{path} was fitted for {found.model[:14]}… at {found.image_size} pixels; expected {fingerprint[:14]}… at "
            f"{image_size}; fit one for this model"
        )
    if unknown := set(found.features) - set(RUN_FEATURES):
        raise InputError(
            f"{path} needs {', '.join(sorted(unknown))}; expected what every run knows: {', '.join(RUN_FEATURES)}; fit it on "
            "these"
        )
    return found


def mask_change(before: Tensor, now: Tensor, first: Tensor) -> tuple[float, float, float]:
    """Compare an object's mask with the one on the frame before it and with the prompted one, each bool ``[h, w]``.

    Returns
    -------
    tuple
        1 - IoU with the mask before, in [0, 1]; logarithm of the area over that mask's; and over the prompted one's.
        Areas are counted one pixel larger, so that they are never zero.
    """
    either = int((before | now).sum())
    jump = 1 - int((before & now).sum()) / either if either else 0.0
    areas = [int(mask.sum()) + 1 for mask in (now, before, first)]
    return jump, math.log(areas[0] / areas[1]), math.log(areas[0] / areas[2])


def run_features(
    scores: Sequence[float], ious: Sequence[float], change: tuple[float, float, float]
) -> dict[str, float]:
    """What a run knows of an object on a frame, by the names of `RUN_FEATURES`.

    Parameters
    ----------
    scores
        Its object-score logits on the tracked frames so far, this one last.
    ious
        The highest IoU that the mask decoder predicted on each of them, NaN where it predicted none.
    change
        `mask_change` of this frame.

    Returns
    -------
    dict
        ``score`` and ``iou`` of this frame; the lowest of each on the last `REMEMBERED`; ``jump``, 1 - IoU with the mask
        before; ``growth``, the size of the logarithm of its area over that mask's; ``size``, the logarithm of its area
        over the prompted one's.
    """
    jump, growth, size = change
    return {
        "score": scores[-1],
        "lowest_score": min(scores[-REMEMBERED:]),
        "iou": ious[-1],
        "lowest_iou": min((i for i in ious[-REMEMBERED:] if not math.isnan(i)), default=math.nan),
        "jump": jump,
        "growth": abs(growth),
        "size": size,
    }
