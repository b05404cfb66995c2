"""GraSP: keep the weights whose removal would most reduce the gradient flow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pai.memory import chunks
from pai.objective import (
    SECOND_ORDER_COPIES,
    Batches,
    LossFn,
    Named,
    check_temperature,
    gradients,
    mean_gradient,
    mean_loss,
)
from pai.parallel import add_up
from pai.scorers.base import Scorer


@dataclass(frozen=True)
class Grasp(Scorer):
    """``w * (H g)``, the largest are kept; ``g`` and ``H`` of the mean loss at ``f / T``.

    Both passes see the same samples, and ``H g`` is that of the objective over all of them,
    whatever the batch size: first ``g`` over all batches, then ``sum_b (n_b / N) H_b g``.
    Removing w changes ``g . g`` by ``-2 w (H g)`` to first order, so the original removes the
    largest ``-w (H g)``. Source: Wang et al. 2020, arXiv 2002.07376, equations 6 to 8; T = 200 is
    their code's setting.
    """

    temperature: float = 200.0
    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def score(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None,
    ) -> Named:  # fmt: skip
        """Take one gradient pass, then one Hessian-vector pass over the same batches."""
        flow = mean_gradient(model, batches, parameters, loss_fn, self.temperature)
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        samples = 0
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
            for inputs, targets in chunks(model, batches, copies=SECOND_ORDER_COPIES):
                loss = mean_loss(model(inputs), targets, loss_fn, self.temperature)
                first = gradients(loss, parameters, create_graph=True)
                inner = torch.stack([(first[name] * flow[name]).sum() for name in parameters]).sum()
                for name, product in gradients(inner, parameters).items():
                    total[name] += len(targets) * product
                samples += len(targets)
        samples = add_up([total], samples)
        return {name: p.detach() * total[name] / samples for name, p in parameters.items()}
