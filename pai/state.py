"""Scoring is a function of the model's state: whatever a block does to it is undone at the end."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch
from torch import Tensor, nn

_NONE: Mapping[int, tuple[Tensor, Tensor]] = MappingProxyType({})
_pruned = ContextVar("masked weights", default=_NONE)
"""By ``id`` of a parameter: its dense weights, and which of them are kept."""


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
    """Zero the pruned weights of ``model`` inside the block; put the very same bits back after.

    Inside the block :func:`dense_weights` and :func:`kept_weights` tell what was zeroed.
    """
    if mask is None:
        yield
        return
    parameters = dict(model.named_parameters())
    saved = {name: parameters[name].detach().clone() for name in mask}
    dense = dense_weights({name: parameters[name] for name in mask})
    keep = {name: kept.to(parameters[name].device) for name, kept in mask.items()}
    token = _pruned.set(
        {**_pruned.get(), **{id(parameters[n]): (dense[n].clone(), keep[n]) for n in mask}}
    )
    try:
        with torch.no_grad():
            for name in mask:
                parameters[name].masked_fill_(~keep[name], 0)
        yield
    finally:
        _pruned.reset(token)
        with torch.no_grad():
            for name, weight in saved.items():
                parameters[name].copy_(weight)


def dense_weights(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the weights (detached), those that :func:`masked_weights` has zeroed included.

    A score that multiplies by the weight takes it from here. Weights that an earlier round of an
    iterative schedule removed then have a score too, and may return if the schedule lets them.
    """
    pruned = _pruned.get()
    return {
        name: pruned[id(p)][0] if id(p) in pruned else p.detach() for name, p in parameters.items()
    }


def kept_weights(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return which weights :func:`masked_weights` keeps (bool): all of them outside its blocks."""
    pruned = _pruned.get()
    return {
        name: pruned[id(p)][1] if id(p) in pruned else torch.ones_like(p, dtype=torch.bool)
        for name, p in parameters.items()
    }


def buffers_without_means(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the buffers in float64, the running means of BatchNorm zero.

    With them BatchNorm adds nothing of its own but its bias. Buffers of whole numbers keep their
    type.
    """
    buffers = {}
    for name, buffer in model.named_buffers():
        value = buffer.detach().clone()
        buffers[name] = value.double() if value.is_floating_point() else value
    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            name = f"{prefix}.running_mean" if prefix else "running_mean"
            if name in buffers:
                buffers[name] = torch.zeros_like(buffers[name])
    return buffers


@contextmanager
def batch_statistics(model: nn.Module, *, store: bool = False) -> Iterator[None]:
    """Let BatchNorm normalise with the statistics of the batch inside the block.

    Args:
        model: its other modules, dropout for one, stay in their mode.
        store: make the statistics of the last batch the running ones (variance unbiased);
            otherwise the running statistics are not touched.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    saved = [(layer.training, layer.momentum, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training = True
            if store:
                layer.momentum = 1.0
            else:
                layer.track_running_stats = False
        yield
    finally:
        for layer, (training, momentum, tracks) in zip(layers, saved, strict=True):
            layer.training, layer.momentum, layer.track_running_stats = training, momentum, tracks
