"""ProsPr: how the loss after a few steps of training depends on the mask."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor, nn

from pai.curvature.twice import differentiable_twice
from pai.objective import Batches, LossFn, Named, gradients, mean_loss, outputs_with
from pai.parallel import require_samples
from pai.scorers.base import Scorer
from pai.state import batch_statistics, dense_weights, kept_weights


@dataclass(frozen=True)
class ProsPr(Scorer):
    """``|dL(v_K) / dm|``: the loss after K steps of SGD from ``v_0 = w m``, m the mask.

    ``v_{k+1} = v_k - lr * b_k``, ``b_k = momentum * b_{k-1} + grad L_k(v_k)``; all parameters are
    trained, and weights that an earlier round has pruned stay at zero. Step k sees scoring batch k,
    the final loss batch K; if there are fewer they begin again (with a single one, as in the
    authors' code by default, all steps and the loss see the same samples).

    The K + 1 passes over a batch are differentiated through and held in memory together, K of them
    with their backward pass. ``scoring.batch_size`` bounds that; ``scoring.memory_gib`` cannot,
    since a batch is never cut. Of several processes all compute the same.
    Source: Alizadeh et al. 2022, arXiv 2202.08132.

    Args:
        inner_steps: K.
        inner_lr: the learning rate.
        inner_momentum: the momentum.
        first_order: treat the gradients of the steps as constants; no second derivatives.
        train_batchnorm: BatchNorm normalises with the statistics of each batch, as in the original.
    """

    inner_steps: int = 3
    inner_lr: float = 0.1
    inner_momentum: float = 0.0
    first_order: bool = False
    train_batchnorm: bool = True
    remembers: ClassVar[bool] = True
    uncut: ClassVar[str] = (
        "batches are never cut, and all steps are held at once; smaller ones (scoring.batch_size), "
        "fewer samples (scoring.samples_per_class), fewer scorer.inner_steps or "
        "scorer.first_order=true take less"
    )

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ValueError(f"inner_steps must be at least 1, got {self.inner_steps}")
        if not self.inner_lr > 0:
            raise ValueError(f"inner_lr must be positive, got {self.inner_lr}")
        if not 0 <= self.inner_momentum < 1:
            raise ValueError(
                f"inner_momentum must be at least 0 and below 1, got {self.inner_momentum}"
            )

    def score(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None,
    ) -> Named:  # fmt: skip
        """Take K differentiable gradient passes and the gradient of the loss after them."""
        steps = list(islice(batches, self.inner_steps + 1))
        require_samples(sum(len(targets) for _, targets in steps))
        trained = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        keep = {n: kept.to(trained[n]) for n, kept in kept_weights(trained).items()}
        mask = {name: keep[name].clone().requires_grad_() for name in parameters}
        values: Named = {name: p.detach().clone().requires_grad_() for name, p in trained.items()}
        values |= {name: w * mask[name] for name, w in dense_weights(parameters).items()}
        speed = {name: torch.zeros_like(value) for name, value in values.items()}

        def loss(values: Named, step: int) -> Tensor:
            inputs, targets = steps[step % len(steps)]
            return mean_loss(outputs_with(model, values, inputs), targets, loss_fn, 1.0)

        with (
            batch_statistics(model) if self.train_batchnorm else nullcontext(),
            differentiable_twice(),
        ):
            for step in range(self.inner_steps):
                slope = gradients(loss(values, step), values, create_graph=not self.first_order)
                speed = {n: self.inner_momentum * speed[n] + slope[n] for n in values}
                values = {n: v - self.inner_lr * keep[n] * speed[n] for n, v in values.items()}
            meta = gradients(loss(values, self.inner_steps), mask)
        return {name: value.abs() for name, value in meta.items()}
