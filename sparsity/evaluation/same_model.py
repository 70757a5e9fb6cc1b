"""Work on clips by the model that a command began with: a worker of a user's cluster lives longer than a command."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from probes.errors import InputError
from probes.models import fingerprint
from sparsity.acceleration.build import shared_predictor, shared_stock
from sparsity.evaluation.spread import Work
from sparsity.options import ModelChoice


@dataclass(frozen=True)
class SameModel:
    """Work that is done by one model alone, in whatever process takes a clip.

    Attributes
    ----------
    work
        Takes the shared model of `choice` in its process.
    model
        Fingerprint of the model that the command began with.
    """

    work: Work
    choice: ModelChoice
    model: str

    def __call__(self, clip: str) -> Any:
        _hold(self.choice, self.model)
        return self.work(clip)


@lru_cache(maxsize=1)  # weights are hashed once a command; after another one they are again
def _hold(choice: ModelChoice, model: str) -> None:
    """Build this process's model anew where its file was replaced since.

    Raises
    ------
    InputError
        It is another one all the same.
    """
    if fingerprint(shared_stock(choice)) == model:
        return
    shared_predictor.cache_clear()
    shared_stock.cache_clear()
    found = fingerprint(shared_stock(choice))
    if found != model:
        raise InputError(
            f"the model of a worker is {found[:19]}…, that of the command {model[:19]}…; expected the same weights on "
            "every machine; copy the checkpoint there, or run the command again if it was replaced"
        )
