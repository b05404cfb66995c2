"""What a curvature estimator returns, and the shape all estimators have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from pai.objective import Batches, LossFn, Named


@dataclass(frozen=True)
class Estimate:
    """A curvature diagonal ``h`` and, where asked for, the mean gradient ``g``, by parameter."""

    diagonal: Named
    gradient: Named | None


class Estimator(Protocol):
    """Estimates ``h`` for the objective (1/N) sum_n l_n at ``f / temperature``."""

    @property
    def matrix(self) -> str:
        """Whose diagonal it is: ``"empirical_fisher"``, ``"gauss_newton"`` or ``"hessian"``."""

    @property
    def temperature(self) -> float:
        """The temperature ``T`` that divides the model's outputs."""

    def __call__(
        self,
        model: nn.Module,
        batches: Batches,
        parameters: Mapping[str, nn.Parameter],
        *,
        loss_fn: LossFn | None,
        generator: torch.Generator | None,
        with_gradient: bool,
    ) -> Estimate:
        """Estimate, inside :func:`pai.state.scoring_mode`; keys and shapes of ``parameters``."""
