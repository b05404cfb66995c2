"""Optimizers: typed options now, torch's optimizer once the parameters exist.

Both use torch's fused implementations, one pass over all parameters. With
``decay_norms_and_biases=False`` parameters of one dimension (biases, scales and shifts of norms)
are not decayed, as is usual for transformers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class OptimizerBuilder(Protocol):
    """Builds an optimizer for some parameters."""

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer; its base learning rate is the option ``lr``."""


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with momentum (``torch.optim.SGD``)."""

    lr: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False
    decay_norms_and_biases: bool = True

    def __post_init__(self) -> None:
        _check_rates(self.lr, self.weight_decay)
        if self.momentum < 0:
            raise ValueError(f"momentum must not be negative, got {self.momentum}")
        if self.nesterov and self.momentum <= 0:
            raise ValueError("nesterov needs a positive momentum")

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return ``torch.optim.SGD``."""
        return torch.optim.SGD(
            _groups(parameters, decay_all=self.decay_norms_and_biases),
            lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay,
            nesterov=self.nesterov, fused=True,
        )  # fmt: skip


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (``torch.optim.AdamW``)."""

    lr: float
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    decay_norms_and_biases: bool = True

    def __post_init__(self) -> None:
        _check_rates(self.lr, self.weight_decay)
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise ValueError(f"{name} must be in [0, 1), got {beta}")

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return ``torch.optim.AdamW``."""
        return torch.optim.AdamW(
            _groups(parameters, decay_all=self.decay_norms_and_biases),
            lr=self.lr, weight_decay=self.weight_decay, betas=(self.beta1, self.beta2),
            fused=True,
        )  # fmt: skip


def _groups(parameters: Iterable[nn.Parameter], *, decay_all: bool) -> list[dict[str, Any]]:
    parameters = list(parameters)
    if decay_all:
        return [{"params": parameters}]
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _check_rates(lr: float, weight_decay: float) -> None:
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
