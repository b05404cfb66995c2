"""Learning-rate schedules: the factor on the base rate as a function of training progress."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class LRSchedule(Protocol):
    """Gives the factor on the optimizer's learning rate."""

    def factor(self, epoch: float, epochs: int) -> float:
        """Return the factor at ``epoch`` (fractional within an epoch) of ``epochs``."""


@dataclass(frozen=True)
class Constant:
    """The base rate throughout."""

    def factor(self, epoch: float, epochs: int) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Cosine:
    """Linear warmup over ``warmup_epochs``, then half a cosine from 1 to 0 at the last epoch."""

    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_epochs)

    def factor(self, epoch: float, epochs: int) -> float:
        """Return the factor at ``epoch``, the same within a warmup longer than the training."""
        if epoch < self.warmup_epochs:
            return epoch / self.warmup_epochs
        progress = (epoch - self.warmup_epochs) / max(epochs - self.warmup_epochs, 1e-12)
        return (1 + math.cos(math.pi * min(progress, 1.0))) / 2


@dataclass(frozen=True)
class Steps:
    """Multiply by ``factor_per_step`` when each milestone epoch is reached.

    Over the first ``warmup_epochs`` the rate rises in a line from 0 to what it would be.
    """

    milestones: Sequence[int]
    factor_per_step: float = 0.1
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        if any(epoch < 1 for epoch in self.milestones):
            raise ValueError(f"milestones must be positive epochs, got {list(self.milestones)}")
        if not 0 < self.factor_per_step <= 1:
            raise ValueError(f"factor_per_step must be in (0, 1], got {self.factor_per_step}")
        _check_warmup(self.warmup_epochs)

    def factor(self, epoch: float, epochs: int) -> float:
        """Return ``factor_per_step ** (milestones passed)``, times the share of the warmup."""
        factor = self.factor_per_step ** sum(epoch >= milestone for milestone in self.milestones)
        return factor * epoch / self.warmup_epochs if epoch < self.warmup_epochs else factor


def _check_warmup(epochs: float) -> None:
    if not epochs >= 0:
        raise ValueError(f"warmup_epochs must not be negative, got {epochs}")
