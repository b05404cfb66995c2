"""The exact diagonal of the generalised Gauss-Newton matrix (GGN) under cross-entropy."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pai.curvature.estimate import Estimate
from pai.curvature.fisher import require_cross_entropy, require_logits, sum_of_losses
from pai.curvature.per_sample import per_sample_means
from pai.objective import Batches, LossFn, check_temperature, mean_gradient


@dataclass(frozen=True)
class ExactGGN:
    """``h_i = (1/N) sum_n sum_c (J_n^T s_nc)_i^2`` with ``s_nc = sqrt(p_nc) (e_c - p_n)``.

    ``J_n`` is the Jacobian of ``f_n / T`` and ``sum_c s_nc s_nc^T = diag(p_n) - p_n p_n^T``, the
    Hessian of cross-entropy. No noise; C backward passes. Where the network is piecewise linear in
    each single weight (affine layers, ReLU, max pooling, residual additions, BatchNorm in eval
    mode, no shared weights) it equals the diagonal of the Hessian; elsewhere (GELU, attention,
    weight sharing) it is the Gauss-Newton part of it. Source: Schraudolph 2002, Neural Computation
    14(7); Martens 2020, arXiv 1412.1193, section 9.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def __call__(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None, with_gradient: bool,
    ) -> Estimate:  # fmt: skip
        """Return the diagonal; the mean gradient costs one pass more.

        Raises:
            ValueError: a ``loss_fn`` was given, or the outputs are not logits ``[B, C]``.
        """
        require_cross_entropy(loss_fn, "exact_ggn")

        def columns(outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
            logits = require_logits(outputs) / self.temperature
            p = logits.detach().softmax(1)
            for c in range(logits.shape[1]):
                factor = -p * p[:, c : c + 1].sqrt()
                factor[:, c] += p[:, c].sqrt()
                yield (factor * logits).sum()

        trial = sum_of_losses(None, self.temperature)
        mean = per_sample_means(
            model, batches, parameters, columns, trial=trial, with_gradients=False
        )
        if not with_gradient:
            return Estimate(mean.squares, None)
        gradient = mean_gradient(model, batches, parameters, None, self.temperature)
        return Estimate(mean.squares, gradient)
