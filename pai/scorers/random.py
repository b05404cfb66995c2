"""Random pruning."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pai.objective import Batches, LossFn, Named
from pai.scorers.base import Scorer


@dataclass(frozen=True)
class Random(Scorer):
    """Independent uniform scores in [0, 1); data-free. The mask's counts are exact all the same."""

    def score(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None,
    ) -> Named:  # fmt: skip
        """Draw in float64, so that ties do not occur in practice."""
        return {
            name: torch.rand(
                p.shape,
                generator=generator,
                dtype=torch.float64,
                device=p.device if generator is None else generator.device,
            ).to(p.device)
            for name, p in parameters.items()
        }
