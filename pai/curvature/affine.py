"""Whether the Gauss-Newton diagonal is the Hessian's: a test on the network at hand.

``H = (1/N) sum_n (J_n^T S_n J_n + sum_c r_nc Hess f_nc)`` with residuals ``r``. The second part
has no entries within a weight tensor when the outputs are affine in that tensor alone, all others
fixed: then the diagonals of ``H`` and of its Gauss-Newton part are the same number.
"""

from collections.abc import Mapping

import torch
from torch import nn

from pai.curvature.twice import differentiable_twice
from pai.objective import Batches, first_inputs, gradients
from pai.state import scoring_mode

_SAMPLES = 2
_SEED = 0


def curved_parameters(
    model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter]
) -> list[str]:
    """Return the names of the tensors in which the outputs are not locally affine, in eval mode.

    For each tensor ``W`` the product of ``d^2 (r . f) / dW^2`` with a random direction, ``r`` a
    random combination of the outputs of the first samples: zero, exactly, for affine layers,
    ReLU, max pooling, residual additions, BatchNorm in eval mode; not zero for GELU, attention, a
    weight that is used twice. A random direction misses a second derivative with probability
    zero; these samples may miss one that others have.

    Raises:
        ValueError: there is no batch at all.
    """
    inputs = first_inputs(batches)[:_SAMPLES]
    stream = torch.Generator().manual_seed(_SEED)
    curved = []
    with scoring_mode(model), differentiable_twice():
        outputs = model(inputs)
        combined = (outputs * torch.randn(outputs.shape, generator=stream).to(outputs)).sum()
        first = gradients(combined, parameters, create_graph=True)
        for name, slope in first.items():
            if not slope.requires_grad:
                continue
            direction = torch.randn(slope.shape, generator=stream).to(slope)
            (second,) = torch.autograd.grad(
                slope, parameters[name], direction, retain_graph=True, materialize_grads=True
            )
            if bool(second.any()):
                curved.append(name)
    return curved
