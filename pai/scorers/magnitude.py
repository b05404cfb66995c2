"""Magnitude pruning."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pai.objective import Batches, LossFn, Named
from pai.scorers.base import Scorer
from pai.state import dense_weights


@dataclass(frozen=True)
class Magnitude(Scorer):
    """``|w|``; data-free. Source: Han et al. 2015, arXiv 1506.02626, here before training."""

    def score(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None,
    ) -> Named:  # fmt: skip
        """Return the absolute weights."""
        return {name: w.abs() for name, w in dense_weights(parameters).items()}
