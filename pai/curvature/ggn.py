"""The exact diagonal of the generalised Gauss-Newton matrix (GGN) under cross-entropy.

Legend: N samples, C classes, L predictions of a sample (1, or the positions of a sequence), B of a
batch, T temperature.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pai.curvature.estimate import Estimate
from pai.curvature.fisher import (
    label_mass,
    prediction_shape,
    predictions,
    require_cross_entropy,
    require_logits,
    sum_of_losses,
)
from pai.curvature.per_sample import per_sample_means
from pai.objective import Batches, LossFn, check_temperature, mean_gradient


@dataclass(frozen=True)
class ExactGGN:
    """``h_i = (1/(N L)) sum_n sum_l sum_c (J_nl^T s_nlc)_i^2``, ``J_nl`` Jacobian of ``f_nl / T``.

    ``sum_c s_nlc s_nlc^T = y_nl (diag(p_nl) - p_nl p_nl^T)`` is the Hessian of cross-entropy, with
    ``y_nl`` the sum of the targets: 1 unless they name several classes at once. It has rank C - 1,
    so the columns ``s_nlc`` of its Cholesky factor are C - 1 (:func:`cholesky_columns`), and the
    backward passes are ``L (C - 1)``; ``max_classes`` bounds ``L C``. No noise. Where the network
    is piecewise linear in each single weight (affine layers, ReLU, max pooling, residual additions,
    BatchNorm in eval mode, no shared weights) it equals the diagonal of the Hessian; elsewhere
    (GELU, attention, weight sharing) it is the Gauss-Newton part of it
    (:func:`pai.curvature.curved_parameters` finds out). Source: Schraudolph 2002, Neural
    Computation 14(7); Martens 2020, arXiv 1412.1193, section 9.
    """

    temperature: float = 1.0
    max_classes: int = 200
    matrix: ClassVar[str] = "gauss_newton"

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.max_classes < 2:
            raise ValueError(f"max_classes must be at least 2, got {self.max_classes}")

    def __call__(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None, with_gradient: bool,
    ) -> Estimate:  # fmt: skip
        """Return the diagonal; the mean gradient costs one pass more.

        Raises:
            ValueError: a ``loss_fn`` was given, the outputs are no logits that fit the targets,
                there are too many of them (:meth:`check_outputs`), or targets are negative.
        """
        require_cross_entropy(loss_fn, "exact_ggn")

        def columns(outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
            mass = label_mass(targets)
            logits = require_logits(outputs, tuple(mass.shape)) / self.temperature
            self.check_outputs(tuple(logits.shape))
            count = predictions(logits)
            scales = (mass.to(logits) / count).sqrt().reshape(-1, 1, count)
            positions = logits.reshape(*logits.shape[:2], count)
            for position, scale in zip(positions.unbind(2), scales.unbind(2), strict=True):
                for column in cholesky_columns(position.detach().softmax(1)):
                    yield (scale * column * position).sum()

        def trial(outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
            require_logits(outputs, prediction_shape(targets))
            yield from sum_of_losses(None, self.temperature)(outputs, targets)

        mean = per_sample_means(
            model, batches, parameters, columns, trial=trial, with_gradients=False
        )
        if not with_gradient:
            return Estimate(mean.squares, None)
        gradient = mean_gradient(model, batches, parameters, None, self.temperature)
        return Estimate(mean.squares, gradient)

    def check_outputs(self, shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` if logits of ``shape`` take more passes than ``max_classes``."""
        classes, positions = shape[1], math.prod(shape[2:])
        if classes * positions > self.max_classes:
            each, many = "class", f"{classes}"
            if positions > 1:
                each, many = "class and position", f"{classes} x {positions}"
            raise ValueError(
                f"exact_ggn takes one backward pass per {each}, and there are {many}; mc_fisher "
                f"estimates the same without bias, or set max_classes to insist"
            )


def cholesky_columns(p: Tensor) -> Iterator[Tensor]:
    """Yield the C - 1 columns ``[B, C]`` of the Cholesky factor of ``diag(p) - p p^T``.

    With the tails ``q_c = sum_{i > c} p_i``, column c has ``sqrt(p_c q_c / (p_c + q_c))`` at c,
    ``-p_i sqrt(p_c / (q_c (p_c + q_c)))`` at i > c and zeros before. Source: Tanabe and Sagae 1992,
    J. R. Statist. Soc. B 54(1), theorem 1.

    Args:
        p: probabilities ``[B, C]``; rows sum to one.
    """
    tails = p.flip(1).cumsum(1).flip(1)  # p_c + q_c
    for c in range(p.shape[1] - 1):
        here, rest, both = p[:, c], tails[:, c + 1], tails[:, c]
        scale = torch.where(both > 0, (here / both).sqrt() * rest.sqrt(), 0)
        column = torch.where(rest[:, None] > 0, -p / rest[:, None], 0) * scale[:, None]
        column[:, :c] = 0
        column[:, c] = scale
        yield column
