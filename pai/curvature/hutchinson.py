"""Hutchinson's estimator of the Hessian diagonal."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pai.curvature.estimate import Estimate
from pai.objective import Batches, LossFn, check_temperature, gradients, mean_loss, sized


@dataclass(frozen=True)
class Hutchinson:
    """``h = mean over batches b and probes z of z * (H_b z)``, z Rademacher.

    ``H_b`` is the Hessian of the mean loss over batch b at ``f/T``; batches are weighted by their
    number of samples. Unbiased for the diagonal of the Hessian of the objective. Every
    off-diagonal entry is noise: the variance of entry i is ``sum_{j != i} H_ij^2`` per probe, and
    entries can come out negative. ``batch_size`` splits the given batches: smaller ones draw more
    probes over the same samples at the same arithmetic, but with less parallelism.
    Source: Hutchinson 1990; Bekas et al. 2007; settings of Cohen et al., arXiv 2502.11450 are
    ``num_probes=10, temperature=200, batch_size=1``.
    """

    temperature: float = 1.0
    num_probes: int = 10
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.num_probes < 1:
            raise ValueError(f"num_probes must be at least 1, got {self.num_probes}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def __call__(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None, with_gradient: bool,
    ) -> Estimate:  # fmt: skip
        """Return the diagonal; the mean gradient comes with it at no further pass."""
        diagonal = {name: torch.zeros_like(p) for name, p in parameters.items()}
        gradient = {name: torch.zeros_like(p) for name, p in parameters.items()}
        samples = 0
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
            for inputs, targets, count in sized(self._split(batches)):
                loss = mean_loss(model(inputs), targets, loss_fn, self.temperature)
                first = gradients(loss, parameters, create_graph=True)
                for name, value in first.items():
                    gradient[name] += count * value.detach()
                for _ in range(self.num_probes):
                    probe = {n: rademacher(p, generator) for n, p in parameters.items()}
                    for name, product in _hessian_product(first, parameters, probe).items():
                        diagonal[name] += count / self.num_probes * probe[name] * product
                samples += count
        return Estimate(
            {name: value / samples for name, value in diagonal.items()},
            {name: value / samples for name, value in gradient.items()} if with_gradient else None,
        )

    def _split(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, targets in batches:
            size = self.batch_size or len(targets)
            yield from zip(inputs.split(size), targets.split(size), strict=True)


def rademacher(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return independent signs +1 and -1 in the shape, type and place of ``like``."""
    device = like.device if generator is None else generator.device
    bits = torch.empty(like.shape, dtype=like.dtype, device=device)
    return bits.random_(0, 2, generator=generator).to(like).mul_(2).sub_(1)


def _hessian_product(
    first: Mapping[str, Tensor], parameters: Mapping[str, Tensor], vector: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return ``H v`` from gradients with a graph; zeros where the gradient is constant."""
    live = {name: g for name, g in first.items() if g.requires_grad}
    if not live:
        return {name: torch.zeros_like(p) for name, p in parameters.items()}
    values = torch.autograd.grad(
        list(live.values()), list(parameters.values()),
        [vector[name] for name in live], retain_graph=True, materialize_grads=True,
    )  # fmt: skip
    return dict(zip(parameters, values, strict=True))
