"""Effective sparsity: which kept weights lie on a path from the input to the output.

Replace every kept weight by a positive number and every other term (biases, means) by zero, and
max pooling by average pooling. For a positive input all signals are then sums of positive path
products, without cancellation, so ``w * dR/dw > 0`` (R the sum of the outputs) holds exactly for
the weights that some input reaches and that reach some output.
Source: Vysogorets and Kempe 2023, arXiv 2107.02306, section 3.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pai.state import scoring_mode

_POOLS = {nn.MaxPool1d: F.avg_pool1d, nn.MaxPool2d: F.avg_pool2d, nn.MaxPool3d: F.avg_pool3d}
_TOLERANCE = 1e-9


def effective_kept(
    model: nn.Module, mask: Mapping[str, Tensor], inputs: Tensor
) -> dict[str, Tensor] | None:
    """Return the part of ``mask`` on input-output paths, or ``None`` where that is not defined.

    It is defined for networks that become linear under the replacement: affine layers, BatchNorm,
    ReLU-like functions, pooling modules, additions. Whether this one does is tested on two random
    positive inputs (attention and LayerNorm fail). Inputs that are numbers of tokens or nodes
    cannot be replaced by positive ones: it is not defined for them.

    Args:
        model: not changed.
        mask: by parameter name.
        inputs: a batch, for its shape.
    """
    if not inputs.is_floating_point():
        return None
    stream = torch.Generator().manual_seed(0)
    first, second = (
        torch.rand(inputs[:1].shape, generator=stream, dtype=torch.float64).to(inputs.device) + 0.5
        for _ in range(2)
    )
    with scoring_mode(model), _average_pooling(model):
        state = _positive_state(model, mask)

        def run(x: Tensor) -> Tensor:
            out: Tensor = functional_call(model, state, (x,))
            return out

        with torch.no_grad():
            expected, actual = run(first) + run(second), run(first + second)
        if not bool((expected - actual).abs().max() <= _TOLERANCE * expected.abs().max()):
            return None
        weights = {name: state[name] for name in mask}
        values = torch.autograd.grad(
            run(first).sum(), list(weights.values()), materialize_grads=True
        )
    return {
        name: keep & (gradient > 0).to(keep.device)
        for (name, keep), gradient in zip(mask.items(), values, strict=True)
    }


def _positive_state(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return float64 parameters and buffers: masked averages, no shifts, unit scales."""
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if name in mask:
            keep = mask[name].to(parameter.device).double()
            state[name] = (keep / max(1, keep[0].numel())).requires_grad_()
        elif parameter.ndim >= 2:
            state[name] = torch.full_like(parameter, 1 / parameter[0].numel(), dtype=torch.float64)
        else:
            fill = 1.0 if name.split(".")[-1] == "weight" else 0.0
            state[name] = torch.full_like(parameter, fill, dtype=torch.float64)
    for name, buffer in model.named_buffers():
        leaf = name.split(".")[-1]
        if leaf == "running_mean":
            state[name] = torch.zeros_like(buffer, dtype=torch.float64)
        elif leaf == "running_var":
            state[name] = torch.ones_like(buffer, dtype=torch.float64)
    return state


@contextmanager
def _average_pooling(model: nn.Module) -> Iterator[None]:
    hooks = [
        module.register_forward_hook(
            lambda module, args, out: _POOLS[type(module)](
                args[0], module.kernel_size, module.stride, module.padding, module.ceil_mode
            )
        )
        for module in model.modules()
        if type(module) in _POOLS
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
