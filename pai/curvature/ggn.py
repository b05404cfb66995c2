"""The exact diagonal of the generalised Gauss-Newton matrix (GGN) under cross-entropy."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pai.curvature.estimate import Estimate
from pai.curvature.fisher import require_cross_entropy, require_logits, sum_of_losses
from pai.curvature.per_sample import per_sample_means
from pai.objective import Batches, LossFn, check_temperature, mean_gradient


@dataclass(frozen=True)
class ExactGGN:
    """``h_i = (1/N) sum_n sum_c (J_n^T s_nc)_i^2``, ``J_n`` the Jacobian of ``f_n / T``.

    ``sum_c s_nc s_nc^T = diag(p_n) - p_n p_n^T`` is the Hessian of cross-entropy. It has rank
    C - 1, so the columns ``s_nc`` of its Cholesky factor are C - 1 (:func:`cholesky_columns`), and
    so are the backward passes. No noise. Where the network is piecewise linear in
    each single weight (affine layers, ReLU, max pooling, residual additions, BatchNorm in eval
    mode, no shared weights) it equals the diagonal of the Hessian; elsewhere (GELU, attention,
    weight sharing) it is the Gauss-Newton part of it (:func:`pai.curvature.curved_parameters`
    finds out). Source: Schraudolph 2002, Neural Computation
    14(7); Martens 2020, arXiv 1412.1193, section 9.
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
            ValueError: a ``loss_fn`` was given, the outputs are not logits ``[B, C]``, or C is
                above ``max_classes``.
        """
        require_cross_entropy(loss_fn, "exact_ggn")

        def columns(outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
            logits = require_logits(outputs) / self.temperature
            if logits.shape[1] > self.max_classes:
                raise ValueError(
                    f"exact_ggn takes one backward pass per class, and there are "
                    f"{logits.shape[1]}; mc_fisher estimates the same without bias, or set "
                    f"max_classes to insist"
                )
            for column in cholesky_columns(logits.detach().softmax(1)):
                yield (column * logits).sum()

        trial = sum_of_losses(None, self.temperature)
        mean = per_sample_means(
            model, batches, parameters, columns, trial=trial, with_gradients=False
        )
        if not with_gradient:
            return Estimate(mean.squares, None)
        gradient = mean_gradient(model, batches, parameters, None, self.temperature)
        return Estimate(mean.squares, gradient)


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
