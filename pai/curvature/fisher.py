"""Fisher diagonals: means over samples of squared per-sample gradients.

Legend: N samples, C classes, L predictions of a sample (1 for a classifier, the positions of a
sequence), T temperature, f logits ``[B, C]`` or ``[B, C, L]``, p = softmax(f/T), l_n the loss of
sample n at f/T, the mean over its predictions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pai.curvature.estimate import Estimate
from pai.curvature.per_sample import Pullbacks, per_sample_means
from pai.objective import (
    Batches,
    LossFn,
    check_temperature,
    mean_gradient,
    mean_loss,
    require_classes,
    require_labels,
    require_tensor,
)
from pai.parallel import common_stream


@dataclass(frozen=True)
class EmpiricalFisher:
    """``h_i = (1/N) sum_n (d l_n / d w_i)^2`` with the labels of the data.

    Exact in one pass, not an average over noise, and independent of the batch size: the squares
    are per sample, not of the batch's mean gradient. Works with any ``loss_fn`` that is a mean
    over samples. Source: Gollini Navarrete et al., arXiv 2502.11450; Kunstner et al. 2019,
    arXiv 1905.12558.
    """

    temperature: float = 1.0
    matrix: ClassVar[str] = "empirical_fisher"

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def __call__(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None, with_gradient: bool,
    ) -> Estimate:  # fmt: skip
        """Return the diagonal; the mean gradient comes with it at no further pass."""
        pullbacks = sum_of_losses(loss_fn, self.temperature)
        mean = per_sample_means(
            model, batches, parameters, pullbacks, trial=pullbacks, with_gradients=with_gradient
        )
        return Estimate(mean.squares, mean.gradients)


@dataclass(frozen=True)
class MonteCarloFisher:
    """``h_i = (L/(N k)) sum_n sum_j (d l(f_n/T, y_nj) / d w_i)^2`` with labels drawn from ``p_n``.

    ``k = num_draws`` labels per prediction, independent of one another. The gradients of a
    sample's L predictions then are independent with mean zero, so the square of their mean is on
    average ``1/L`` of the mean of their squares; the factor L repairs that. Where targets are no
    distributions (several classes at once), the gradient of each prediction is multiplied by the
    root of their sum (:func:`label_mass`). Under cross-entropy it is unbiased for the diagonal of
    the generalised Gauss-Newton matrix (:class:`pai.curvature.ggn.ExactGGN`), with a standard error
    that falls as ``1/sqrt(N k)``. The mean gradient ``g`` still uses the labels of the data.
    Source: Kunstner et al. 2019, arXiv 1905.12558, section 2.
    """

    temperature: float = 1.0
    num_draws: int = 1
    matrix: ClassVar[str] = "gauss_newton"

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {self.num_draws}")

    def __call__(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None, with_gradient: bool,
    ) -> Estimate:  # fmt: skip
        """Return the diagonal; the mean gradient costs one pass more.

        Raises:
            ValueError: a ``loss_fn`` was given (the label distribution of cross-entropy is
                assumed), the outputs are no logits that fit the targets, or targets are negative.
        """
        require_cross_entropy(loss_fn, "mc_fisher")

        stream = common_stream(generator)

        def numbers_for_targets() -> Iterator[tuple[Tensor, Tensor]]:
            for inputs, targets in batches:
                mass = label_mass(targets).cpu().double().unsqueeze(-1)
                shape = (*mass.shape[:-1], self.num_draws)
                uniform = torch.rand(shape, dtype=torch.float64, generator=stream)
                yield inputs, torch.cat([uniform, mass], -1)

        def draws(outputs: Tensor, numbers: Tensor) -> Iterator[Tensor]:
            uniform, mass = numbers[..., :-1], numbers[..., -1]
            logits = require_logits(outputs, mass.shape) / self.temperature
            labels = draw_labels(logits.detach().softmax(1).movedim(1, -1), uniform)
            scale = (mass.to(logits) / predictions(logits)).sqrt()
            for j in range(self.num_draws):
                yield (scale * F.cross_entropy(logits, labels[..., j], reduction="none")).sum()

        mean = per_sample_means(
            model, numbers_for_targets(), parameters, draws, trial=draws, with_gradients=False
        )
        diagonal = {name: value / self.num_draws for name, value in mean.squares.items()}
        if not with_gradient:
            return Estimate(diagonal, None)
        gradient = mean_gradient(model, batches, parameters, None, self.temperature)
        return Estimate(diagonal, gradient)


def draw_labels(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return labels ``[..., k]`` of distributions ``p [..., C]`` from ``u [..., k]`` in [0, 1).

    The label of ``u`` is the first c with ``p_0 + ... + p_c > u``; computed on the CPU in float64.
    """
    steps = probabilities.cpu().double().cumsum(-1)
    labels = torch.searchsorted(steps, uniform.cpu() * steps[..., -1:], right=True)
    return labels.clamp(max=probabilities.shape[-1] - 1).to(probabilities.device)


def prediction_shape(targets: Tensor) -> tuple[int, ...]:
    """Return ``[N]`` or ``[N, L]`` for targets that are classes or probabilities of classes.

    Raises:
        ValueError: they are real numbers without an axis of classes: no classification.
    """
    shape = tuple(targets.shape)
    if targets.is_floating_point() and len(shape) < 2:
        raise ValueError(
            f"targets must be classes [N] (whole numbers) or probabilities [N, C], got real "
            f"numbers of shape {list(shape)}; for regression use empirical_fisher or hutchinson"
        )
    return shape[:1] + shape[2:] if targets.is_floating_point() else shape


def label_mass(targets: Tensor) -> Tensor:
    """Return ``sum_c y_c`` of each prediction ``[N]`` or ``[N, L]``; 1 for classes.

    The Hessian of cross-entropy in the logits is ``(sum_c y_c) (diag(p) - p p^T)``.

    Raises:
        ValueError: numbers are negative, or targets are no classes and no probabilities of classes
            (:func:`prediction_shape`).
    """
    require_labels(targets)
    shape = prediction_shape(targets)
    if not targets.is_floating_point():
        return torch.ones(shape, device=targets.device)
    return targets.sum(1)


def predictions(logits: Tensor) -> int:
    """Return L of logits ``[B, C]`` (1) or ``[B, C, L]``."""
    return logits.shape[2:].numel()


def require_cross_entropy(loss_fn: LossFn | None, estimator: str) -> None:
    """Raise ``ValueError`` if the loss is not the default cross-entropy."""
    if loss_fn is not None and loss_fn is not F.cross_entropy:
        raise ValueError(
            f"{estimator} assumes cross-entropy on logits; leave loss_fn out, or use "
            f"empirical_fisher or hutchinson, which take any loss"
        )


def require_logits(outputs: Tensor, expected: tuple[int, ...]) -> Tensor:
    """Return ``outputs`` if they are ``[B, C]`` or ``[B, C, L]`` for ``expected`` ``[B(, L)]``.

    Raises:
        ValueError: they are not, or C is 1.
    """
    require_tensor(outputs)
    shape = tuple(outputs.shape)
    if shape[:1] + shape[2:] != tuple(expected):
        wanted = ", ".join(map(str, [*expected[:1], "C", *expected[1:]]))
        raise ValueError(f"logits of shape [{wanted}] are needed, got {shape}")
    require_classes(outputs)
    return outputs


def sum_of_losses(loss_fn: LossFn | None, temperature: float) -> Pullbacks:
    """Return the pullback of the plain objective: one scalar, the sum of the samples' losses."""

    def pullbacks(outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        yield len(targets) * mean_loss(outputs, targets, loss_fn, temperature)

    return pullbacks
