"""The dense reference: nothing is pruned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from pai.objective import Batches, LossFn, Named
from pai.scorers.base import Scorer


@dataclass(frozen=True)
class Dense(Scorer):
    """Every weight has the same score; a run with this scorer keeps all weights."""

    keeps_everything: ClassVar[bool] = True

    def score(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None,
    ) -> Named:  # fmt: skip
        """Return ones."""
        return {name: torch.ones_like(p) for name, p in parameters.items()}
