"""Hutchinson's estimator of the diagonal of the Hessian or of its Gauss-Newton part."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from pai.curvature.estimate import Estimate
from pai.curvature.twice import differentiable_twice
from pai.errors import RunError, first_line
from pai.memory import numbered_chunks
from pai.objective import (
    SECOND_ORDER_COPIES,
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
from pai.parallel import add_up, common_stream
from pai.precision import rounding
from pai.substitution import call_with

_GAUSS_NEWTON_COPIES = 2.0  # peak memory in units of what a plain pass keeps
Matrix = Literal["hessian", "gauss_newton"]
Product = Callable[[Named], Named]


@dataclass(frozen=True)
class Hutchinson:
    """``h = mean over batches b and probes z of z * (M_b z)``, z Rademacher.

    ``M_b`` belongs to the mean loss over batch b at ``f/T``; batches are weighted by their number
    of samples. It is the Hessian (``matrix="hessian"``), or the generalised Gauss-Newton matrix
    ``(1/B) sum_n J_n^T S_n J_n`` with the Hessian ``S_n`` of the loss in the outputs
    (``"gauss_newton"``, a forward pass with tangents and a reverse pass per probe: fewer
    multiplications). Unbiased for the diagonal of that matrix. Every off-diagonal entry is noise:
    the variance of entry i is ``sum_{j != i} M_ij^2`` per probe, and entries can come out
    negative. Where both matrices have
    the same diagonal (:class:`pai.curvature.ExactGGN` says where), the Gauss-Newton matrix has the
    smaller off-diagonal entries: it lacks those between layers that second derivatives of the
    network bring, which outweigh the rest by a factor that grows with ``T``.

    ``batch_size`` splits the given batches: smaller ones draw more probes over the same samples at
    the same arithmetic, but with less parallelism. Probes cover the given parameters only.
    Source: Hutchinson 1990; Bekas et al. 2007; settings of Gollini Navarrete et al.,
    arXiv 2502.11450 are ``num_probes=10, temperature=200, batch_size=1, matrix="hessian"``.
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
        """Return the diagonal; the mean gradient costs one pass more.

        Raises:
            ValueError: there is no batch at all.
            RunError: a part of the network has no forward derivative, which the Gauss-Newton matrix
                needs (an LSTM in float32 on a CPU).
        """
        diagonal = zero_sums(parameters)
        seed, samples = common_stream(generator).initial_seed(), 0
        hessian = self.matrix == "hessian"
        copies = SECOND_ORDER_COPIES if hessian else _GAUSS_NEWTON_COPIES
        pieces = numbered_chunks(model, self._split(batches), copies=copies)
        for position, inputs, targets in pieces:  # those of a batch get the same probes
            chunk = _Chunk(model, inputs, targets, parameters, loss_fn, self.temperature)
            times = chunk.hessian_product() if hessian else chunk.gauss_newton_product()
            for k in range(self.num_probes):
                stream = torch.Generator().manual_seed(seed + position * self.num_probes + k)
                probe = {n: rademacher(p, stream) for n, p in parameters.items()}
                share = len(targets) / self.num_probes / magnified(self.temperature)
                for name, value in times(probe).items():
                    diagonal[name].add_(probe[name] * value, alpha=share)
            samples += len(targets)
        samples = add_up([diagonal], samples)
        diagonal = {name: value / samples for name, value in diagonal.items()}
        if not with_gradient:
            return Estimate(diagonal, None)
        return Estimate(
            diagonal, mean_gradient(model, batches, parameters, loss_fn, self.temperature)
        )

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


@dataclass(frozen=True)
class _Chunk:
    """Some samples and the objective's parts: outputs, their mean loss, derivatives by name.

    The loss, and with it all products, are :func:`pai.objective.magnified`.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    parameters: Mapping[str, nn.Parameter]
    loss_fn: LossFn | None
    temperature: float

    def loss(self, outputs: Tensor) -> Tensor:
        loss = mean_loss(outputs, self.targets, self.loss_fn, self.temperature)
        return magnified(self.temperature) * loss

    def _zeros(self) -> Named:
        return {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    def hessian_product(self) -> Product:
        """Return ``v -> H v``, from one gradient pass that keeps its graph."""
        with differentiable_twice():
            loss = self.loss(self.model(self.inputs))
            first = gradients(loss, self.parameters, create_graph=True)
        live = {name: g for name, g in first.items() if g.requires_grad}

        def product(vector: Named) -> Named:
            if not live:  # the gradient is constant
                return self._zeros()
            with differentiable_twice():
                values = torch.autograd.grad(
                    list(live.values()), list(self.parameters.values()),
                    [vector[name] for name in live], retain_graph=True, materialize_grads=True,
                )  # fmt: skip
            return dict(zip(self.parameters, values, strict=True))

        return product

    def gauss_newton_product(self) -> Product:
        """Return ``v -> J^T S J v``: a forward pass with tangents, then a reverse pass.

        The tangents come from a pass of their own that records no graph, so that only the graph of
        one plain pass is kept, for all products. Where torch's forward mode has another J than its
        reverse mode, which both passes have to share, they come from the reverse mode: forward mode
        knows nothing of ``no_grad``, of hooks on gradients, nor of the padding of an embedding.
        """
        outputs = self.model(self.inputs)
        leaf = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.loss(leaf), leaf, create_graph=True)

        def pulled_back(tangent: Tensor) -> tuple[Tensor, Named]:
            (curved,) = torch.autograd.grad(slope, leaf, tangent, retain_graph=True)
            values = torch.autograd.grad(
                outputs, list(self.parameters.values()), curved,
                retain_graph=True, materialize_grads=True,
            )  # fmt: skip
            return curved, dict(zip(self.parameters, values, strict=True))

        def product(vector: Named) -> Named:
            tangent = self._tangent(vector)
            if tangent is None or not slope.requires_grad:  # no parameter takes part, linear loss
                return self._zeros()
            curved, values = pulled_back(tangent)
            if _is_adjoint(tangent, curved, vector, values):
                return values
            return pulled_back(self._tangent_of_reverse_mode(vector))[1]

        return product

    @torch.no_grad()
    def _tangent(self, vector: Named) -> Tensor | None:
        """Return ``J v``, or None if no parameter takes part; the model is in eval mode."""
        with (
            warnings.catch_warnings(),
            forward_ad.dual_level(),
            sdpa_kernel(SDPBackend.MATH),  # the fused attention kernels have no forward derivative
        ):
            # torch's own forward mode warns of its own use of torch.jit
            warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
            weights = {
                name: forward_ad.make_dual(p, vector[name]) for name, p in self.parameters.items()
            }
            try:
                outputs = call_with(self.model, weights, self.inputs)
            except NotImplementedError as error:
                raise RunError(
                    f"a part of the network has no forward derivative, which matrix='gauss_newton' "
                    f"needs; 'hessian' needs none ({first_line(error)})", repeats=True,
                ) from error  # fmt: skip
            return forward_ad.unpack_dual(outputs).tangent

    def _tangent_of_reverse_mode(self, vector: Named) -> Tensor:
        """Return ``J v`` as the derivative of ``u -> v J^T u``, with the J of reverse mode."""
        with differentiable_twice():
            outputs = self.model(self.inputs)
            seed = torch.zeros_like(outputs, requires_grad=True)
            pulled = gradients((outputs * seed).sum(), self.parameters, create_graph=True)
            live = {name: g for name, g in pulled.items() if g.requires_grad}
            (tangent,) = torch.autograd.grad(
                list(live.values()), seed, [vector[name] for name in live], materialize_grads=True
            )
        return tangent


def _is_adjoint(tangent: Tensor, curved: Tensor, vector: Named, pulled: Named) -> bool:
    """Return whether ``<J v, w> = <v, J^T w>``, up to rounding, for ``w`` = ``curved``."""
    forward = float((tangent.double() * curved.double()).sum())
    terms = [(vector[name] * value).double() for name, value in pulled.items()]
    reverse = sum(float(term.sum()) for term in terms)
    size = sum(float(term.abs().sum()) for term in terms)
    eps = rounding(tangent.dtype)
    return abs(forward - reverse) <= 100 * eps * size + eps**0.5 * abs(forward)
