"""GraSP: keep the weights whose removal would most reduce the gradient flow."""

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from pai.curvature.twice import differentiable_twice
from pai.memory import chunks
from pai.objective import (
    SECOND_ORDER_COPIES,
    WHOLE_BATCHES,
    Batches,
    LossFn,
    Named,
    check_temperature,
    gradients,
    magnified,
    mean_gradient,
    mean_loss,
    zero_sums,
)
from pai.parallel import add_up, require_samples
from pai.scorers.base import Scorer
from pai.state import batch_statistics, dense_weights


@dataclass(frozen=True)
class Grasp(Scorer):
    """``w * (H g)``, the largest are kept; ``g`` and ``H`` of the mean loss at ``f / T``.

    First ``g`` over all samples, then ``H g = sum_b (n_b / N) H_b g``, whatever the batch size.
    Removing w changes ``g . g`` by ``-2 w (H g)`` to first order, so the original removes the
    largest ``-w (H g)``. Source: Wang et al. 2020, arXiv 2002.07376, equations 6 to 8; T = 200 is
    their code's setting.

    Args:
        temperature: T.
        absolute: score ``|w (H g)|``, so that weights are kept that change the gradient flow most,
            in either direction (not the original).
        independent_draws: ``g`` from the samples at even positions, ``H`` from those at odd ones.
            Over the draw of samples ``E[H g]`` is then the product of the expectations; with the
            same samples for both, as in the original, it is not.
        train_batchnorm: BatchNorm normalises with the statistics of each batch, as in the original;
            the batch size then matters, and a batch is never cut to fit the memory.
    """

    temperature: float = 200.0
    absolute: bool = False
    independent_draws: bool = False
    train_batchnorm: bool = False
    remembers: ClassVar[bool] = True
    uncut: ClassVar[str] = WHOLE_BATCHES

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def score(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None,
    ) -> Named:  # fmt: skip
        """Take one gradient pass, then one Hessian-vector pass."""
        first, second = batches, batches
        if self.independent_draws:
            first, second = _EveryOther(batches, 0), _EveryOther(batches, 1)
        flow = mean_gradient(
            model, first, parameters, loss_fn, self.temperature,
            train_batchnorm=self.train_batchnorm,
        )  # fmt: skip
        with batch_statistics(model) if self.train_batchnorm else nullcontext():
            product = self._hessian_product(model, second, parameters, loss_fn, flow)
        scores = {name: w * product[name] for name, w in dense_weights(parameters).items()}
        return {name: s.abs() for name, s in scores.items()} if self.absolute else scores

    def _hessian_product(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter],
        loss_fn: LossFn | None, vector: Named,
    ) -> Named:  # fmt: skip
        total = zero_sums(parameters)
        samples, scale, size = 0, magnified(self.temperature), _size(vector)
        direction = {name: value / size for name, value in vector.items()}
        whole = self.train_batchnorm
        with differentiable_twice():
            for inputs, targets in (
                batches if whole else chunks(model, batches, copies=SECOND_ORDER_COPIES)
            ):
                loss = mean_loss(model(inputs), targets, loss_fn, self.temperature)
                slope = gradients(scale * loss, parameters, create_graph=True)
                samples += len(targets)
                inner = torch.stack([(slope[n] * direction[n]).sum() for n in parameters]).sum()
                if not inner.requires_grad:  # the gradient is constant, the Hessian zero
                    continue
                for name, product in gradients(inner, parameters).items():
                    total[name] += len(targets) * product.to(total[name].dtype)
        if whole:
            require_samples(samples)
        else:
            samples = add_up([total], samples)
        return {name: value / samples / scale * size for name, value in total.items()}


def _size(vector: Named) -> float:
    """Return the power of two above the norm of a vector: divided by it, short numbers hold it."""
    norm = torch.stack([value.norm() for value in vector.values()]).norm()
    return math.ldexp(1.0, math.frexp(float(norm))[1])


@dataclass(frozen=True)
class _EveryOther:
    """Those samples of ``batches`` whose position in the whole stream is even (0) or odd (1)."""

    batches: Batches
    parity: int

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        seen = 0
        for inputs, targets in self.batches:
            start = (seen + self.parity) % 2
            seen += len(targets)
            if len(targets) > start:
                yield inputs[start::2], targets[start::2]
