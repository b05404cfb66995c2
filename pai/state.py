"""Scoring is a function of the model's state: whatever a block does to it is undone at the end."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def scoring_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode without gradients; restore every bit of its state afterwards.

    Restored, also when the block raises: each module's train/eval flag, each parameter's
    ``requires_grad`` and ``.grad`` (the same object), and the values of all buffers. Inside the
    block no parameter has a gradient, all floating-point parameters require one, and torch's fused
    inference kernel for attention, which has no derivative, is off.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    training = {module: module.training for module in model.modules()}
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        for parameter, _, _ in parameters:
            parameter.grad = None
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, flag in training.items():
            module.training = flag
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        with torch.no_grad():
            for module, name, buffer, saved in buffers:
                buffer.copy_(saved)
                setattr(module, name, buffer)  # the block may have replaced it


@contextmanager
def masked_weights(model: nn.Module, mask: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Zero the pruned weights of ``model`` inside the block; put the very same bits back after."""
    if mask is None:
        yield
        return
    parameters = dict(model.named_parameters())
    saved = {name: parameters[name].detach().clone() for name in mask}
    try:
        with torch.no_grad():
            for name, keep in mask.items():
                parameters[name].masked_fill_(~keep.to(parameters[name].device), 0)
        yield
    finally:
        with torch.no_grad():
            for name, weight in saved.items():
                parameters[name].copy_(weight)
