"""Hutchinson's estimator of the diagonal of the Hessian or of its Gauss-Newton part."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pai.curvature.estimate import Estimate
from pai.memory import samples_at_once
from pai.objective import (
    SECOND_ORDER_COPIES,
    Batches,
    LossFn,
    Named,
    check_temperature,
    gradients,
    mean_loss,
)
from pai.parallel import add_up, common_stream, shares

Matrix = Literal["hessian", "gauss_newton"]


@dataclass(frozen=True)
class Hutchinson:
    """``h = mean over batches b and probes z of z * (M_b z)``, z Rademacher.

    ``M_b`` belongs to the mean loss over batch b at ``f/T``; batches are weighted by their number
    of samples. It is the Hessian (``matrix="hessian"``, two reverse passes per probe), or the
    generalised Gauss-Newton matrix ``(1/B) sum_n J_n^T S_n J_n`` with the Hessian ``S_n`` of the
    loss in the outputs (``"gauss_newton"``, two thirds of the multiplications). Unbiased for the
    diagonal of that matrix. Every off-diagonal entry is noise: the variance of entry i is
    ``sum_{j != i} M_ij^2`` per probe, and entries can come out negative. Where both matrices have
    the same diagonal (:class:`pai.curvature.ExactGGN` says where), the Gauss-Newton matrix has the
    smaller off-diagonal entries: it lacks those between layers that second derivatives of the
    network bring, which outweigh the rest by a factor that grows with ``T``.

    ``batch_size`` splits the given batches: smaller ones draw more probes over the same samples at
    the same arithmetic, but with less parallelism. Probes cover the given parameters only.
    Source: Hutchinson 1990; Bekas et al. 2007; settings of Cohen et al., arXiv 2502.11450 are
    ``num_probes=10, temperature=200, batch_size=1, matrix="hessian"``.
    """

    temperature: float = 1.0
    num_probes: int = 10
    batch_size: int | None = None
    matrix: Matrix = "hessian"

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.num_probes < 1:
            raise ValueError(f"num_probes must be at least 1, got {self.num_probes}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.matrix not in ("hessian", "gauss_newton"):
            raise ValueError(f"matrix must be 'hessian' or 'gauss_newton', got {self.matrix!r}")

    def __call__(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None, with_gradient: bool,
    ) -> Estimate:  # fmt: skip
        """Return the diagonal; the mean gradient comes with it at no further pass.

        Raises:
            ValueError: there is no batch at all.
        """
        diagonal = {name: torch.zeros_like(p) for name, p in parameters.items()}
        gradient = {name: torch.zeros_like(p) for name, p in parameters.items()}
        seed, samples = common_stream(generator).initial_seed(), 0
        product = _HessianProduct if self.matrix == "hessian" else _GaussNewtonProduct
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
            for position, inputs, targets in self._chunks(model, batches):
                count = len(targets)
                times = product(model, inputs, targets, parameters, loss_fn, self.temperature)
                for name, value in times.gradient.items():
                    gradient[name] += count * value
                for k in range(self.num_probes):
                    stream = torch.Generator().manual_seed(seed + position * self.num_probes + k)
                    probe = {n: rademacher(p, stream) for n, p in parameters.items()}
                    for name, value in times(probe).items():
                        diagonal[name].addcmul_(probe[name], value, value=count / self.num_probes)
                samples += count
        samples = add_up((diagonal, gradient), samples)
        return Estimate(
            {name: value / samples for name, value in diagonal.items()},
            {name: value / samples for name, value in gradient.items()} if with_gradient else None,
        )

    def _chunks(self, model: nn.Module, batches: Batches) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield pieces that fit into memory, with the position of the batch whose probes to use."""
        most = None
        for position, inputs, targets in shares(self._split(batches)):
            most = most or samples_at_once(model, inputs, SECOND_ORDER_COPIES)
            for piece in zip(inputs.split(most), targets.split(most), strict=True):
                yield position, *piece

    def _split(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, targets in batches:
            size = self.batch_size or max(len(targets), 1)
            yield from zip(inputs.split(size), targets.split(size), strict=True)


def rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return independent signs +1 and -1 in the shape, type and place of ``like``.

    The bits come from ``generator`` on the CPU: the same signs whatever the device.
    """
    count = like.numel()
    drawn = torch.randint(256, (-(-count // 8),), dtype=torch.uint8, generator=generator)
    shifts = torch.arange(8, dtype=torch.uint8, device=like.device)
    bits = (drawn.to(like.device)[:, None] >> shifts) & 1
    return bits.flatten()[:count].view(like.shape).to(like.dtype).mul_(2).sub_(1)


class _HessianProduct:
    """``H v`` of the mean loss, from one gradient pass that keeps its graph."""

    def __init__(
        self, model: nn.Module, inputs: Tensor, targets: Tensor,
        parameters: Mapping[str, nn.Parameter], loss_fn: LossFn | None, temperature: float,
    ) -> None:  # fmt: skip
        self._parameters = parameters
        loss = mean_loss(model(inputs), targets, loss_fn, temperature)
        self._first = gradients(loss, parameters, create_graph=True)
        self.gradient: Named = {name: value.detach() for name, value in self._first.items()}

    def __call__(self, vector: Mapping[str, Tensor]) -> Named:
        """Return ``H v``; zeros where the gradient is constant."""
        live = {name: g for name, g in self._first.items() if g.requires_grad}
        if not live:
            return {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        return _pull_back(live, self._parameters, vector)


class _GaussNewtonProduct:
    """``(1/B) sum_n J_n^T S_n J_n v`` with ``J_n`` the Jacobian of the network's output."""

    def __init__(
        self, model: nn.Module, inputs: Tensor, targets: Tensor,
        parameters: Mapping[str, nn.Parameter], loss_fn: LossFn | None, temperature: float,
    ) -> None:  # fmt: skip
        self._parameters = parameters
        self._outputs = model(inputs)
        leaf = self._outputs.detach().requires_grad_()
        self._leaf, loss = leaf, mean_loss(leaf, targets, loss_fn, temperature)
        (self._slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
        self.gradient: Named = self._transposed(self._slope.detach())
        # J v is the derivative of u -> (J^T u) v, at any u
        self._u = torch.zeros_like(leaf).requires_grad_()
        self._linear = self._transposed(self._u, create_graph=True)

    def __call__(self, vector: Mapping[str, Tensor]) -> Named:
        """Return ``J^T S J v``."""
        forward = _pull_back(self._linear, {"u": self._u}, vector)["u"]
        (curved,) = torch.autograd.grad(
            self._slope, self._leaf, forward, retain_graph=True, materialize_grads=True
        )
        return self._transposed(curved)

    def _transposed(self, values: Tensor, *, create_graph: bool = False) -> Named:
        """Return ``J^T values``."""
        return _pull_back(
            {"f": self._outputs}, self._parameters, {"f": values}, create_graph=create_graph
        )


def _pull_back(
    outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor], vector: Mapping[str, Tensor],
    *, create_graph: bool = False,
) -> Named:  # fmt: skip
    """Return the gradient of ``sum(outputs * vector)`` by name of the inputs; keeps the graph."""
    values = torch.autograd.grad(
        list(outputs.values()), list(inputs.values()), [vector[name] for name in outputs],
        retain_graph=True, create_graph=create_graph, materialize_grads=True,
    )  # fmt: skip
    return dict(zip(inputs, values, strict=True))
