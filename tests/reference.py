"""Dense truth from autograd, one sample and one entry at a time, for networks of a few weights.

Legend: N samples, P parameters in all, C classes, L predictions of a sample (1 or more).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Named = dict[str, Tensor]


def flatten(named: Mapping[str, Tensor]) -> Tensor:
    """Return all entries in one vector ``[P]``."""
    return torch.cat([value.reshape(-1) for value in named.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Named:
    """Undo :func:`flatten`."""
    parts = vector.split([value.numel() for value in like.values()])
    return {n: part.view(value.shape) for (n, value), part in zip(like.items(), parts, strict=True)}


def _outputs(model: nn.Module, vector: Tensor, like: Mapping[str, Tensor], x: Tensor) -> Tensor:
    out: Tensor = functional_call(model, unflatten(vector, like), (x,))
    return out


def per_sample_gradients(
    model: nn.Module, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor, temperature: float
) -> Tensor:
    """Return ``[N, P]``: the gradient of each sample's loss at ``f/T``."""
    rows = []
    for n in range(len(y)):
        vector = flatten(parameters).detach().requires_grad_()
        logits = _outputs(model, vector, parameters, x[n : n + 1]) / temperature
        rows.append(torch.autograd.grad(F.cross_entropy(logits, y[n : n + 1]), vector)[0])
    return torch.stack(rows)


def hessian(
    model: nn.Module, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor, temperature: float
) -> Tensor:
    """Return the Hessian ``[P, P]`` of the mean loss at ``f/T``."""

    def loss(vector: Tensor) -> Tensor:
        return F.cross_entropy(_outputs(model, vector, parameters, x) / temperature, y)

    with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
        matrix: Tensor = torch.autograd.functional.hessian(loss, flatten(parameters).detach())
    return matrix


def ggn(
    model: nn.Module, parameters: Mapping[str, Tensor], x: Tensor, temperature: float
) -> Tensor:
    """Return ``[P, P]``: ``(1/(N L)) sum_nl J^T (diag(p) - p p^T) J``, ``J_nl`` of ``f_nl/T``."""
    total = None
    for n in range(len(x)):

        def logits(vector: Tensor, n: int = n) -> Tensor:
            out = _outputs(model, vector, parameters, x[n : n + 1])[0] / temperature
            return out.reshape(len(out), -1).T  # [L, C]

        vector = flatten(parameters).detach()
        jacobian: Tensor = torch.autograd.functional.jacobian(logits, vector)
        rows = logits(vector).detach().softmax(1)
        for p, j in zip(rows, jacobian, strict=True):
            part = j.T @ (torch.diag(p) - torch.outer(p, p)) @ j / len(rows)
            total = part if total is None else total + part
    assert total is not None
    return total / len(x)
