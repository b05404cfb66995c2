"""Scoring is a function of the model's state: whatever a block does to it is undone at the end."""

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import MappingProxyType

import torch
from torch import Tensor, nn

from pai.layouts import PlainGradients
from pai.modes import OwnModes
from pai.precision import chosen_multiplications

_NONE: Mapping[int, tuple[Tensor, Tensor]] = MappingProxyType({})
_pruned = ContextVar("masked weights", default=_NONE)
"""By ``id`` of a parameter: its dense weights, and which of them are kept."""


@contextmanager
def scoring_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode without gradients; restore every bit of its state afterwards.

    Restored, also when the block raises: each module's train/eval flag, what modules with a
    ``train()`` of their own do to themselves when it changes, ``requires_grad`` and ``.grad`` (the
    same object) of each parameter and of tensors that are attributes of a module, all buffers
    (those that were not there before go), and parameters that the forward pass itself
    renormalises (``max_norm`` of an embedding) or gives new data. Inside the block no parameter has
    a gradient, all floating-point parameters require one, and torch's fused inference kernel for
    attention, which has no derivative, is off. Gradients are recorded, also where the caller has
    turned that off. Float32 numbers are multiplied as :func:`pai.scoring_precision` says, by
    default in full, whatever torch is set to.

    Raises:
        ValueError: in ``torch.inference_mode``, where nothing can be differentiated; or a part is a
            ``torch.jit.ScriptModule`` or comes from ``torch.export``.
        RuntimeError: the forward pass has changed a parameter in place, which cannot be undone.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("scoring takes derivatives: call it outside torch.inference_mode()")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{name or 'the model'} is compiled by torch.jit: score it uncompiled")
        if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):
            raise ValueError(
                f"{name or 'the model'} is exported by torch.export, which fixes its mode: score "
                f"the network that it was made from"
            )
    _warn_of_batch_statistics(model)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    training = {module: module.training for module in model.modules()}
    leaves = [*model.parameters(), *_plain_leaves(model)]
    parameters = [(p, p.requires_grad, p.grad) for p in leaves]
    modes = OwnModes(model)
    buffers, weights = Buffers(model.modules()), _Weights(model, modes.weights)
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for parameter, _, _ in parameters:
            parameter.grad = None
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        with (
            modes.entered_anew(), torch.enable_grad(), chosen_multiplications(), _uncompiled(),
            PlainGradients(),
        ):  # fmt: skip
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, flag in training.items():
            module.training = flag
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        with torch.no_grad():
            buffers.restore()
            weights.restore()


def _plain_leaves(model: nn.Module) -> Iterator[Tensor]:
    """Return the tensors that modules hold as plain attributes and that gather gradients."""
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and value.requires_grad and value.is_leaf:
                yield value


def _uncompiled() -> AbstractContextManager[object]:
    """Return a context in which compiled networks run as they were written.

    A compiled pass has no second derivative, or, with some backends, a wrong one.
    """
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled; importing it takes a second
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


class Buffers:
    """The buffers that some modules hold themselves: which there are, and their values."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._there = {
            module: (dict(module._buffers), set(module._non_persistent_buffers_set))
            for module in modules
        }
        self._values = {
            buffer: buffer.detach().clone()
            for named, _ in self._there.values()
            for buffer in named.values()
            if buffer is not None
        }

    def restore(self) -> None:
        """Bring all of them back."""
        for module, (named, not_persistent) in self._there.items():
            module._buffers.clear()
            module._buffers.update(named)
            module._non_persistent_buffers_set.clear()
            module._non_persistent_buffers_set.update(not_persistent)
        for buffer, value in self._values.items():
            if not torch.equal(buffer, value):  # a buffer that overlaps itself cannot be written
                buffer.copy_(value)


class _Weights:
    """The parameters of a model, whose values scoring does not change, but a forward pass may."""

    def __init__(self, model: nn.Module, copies: Mapping[nn.Parameter, Tensor]) -> None:
        self._named = dict(model.named_parameters())
        self._data = {name: p.data for name, p in self._named.items()}  # the same memory
        self._versions = {name: p._version for name, p in self._named.items()}
        self._copies = dict(copies) | {
            module.weight: module.weight.detach().clone()
            for module in model.modules()
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
        }

    def restore(self) -> None:
        """Bring back what can be; raise ``RuntimeError`` if that is not all."""
        changed = []
        for name, parameter in self._named.items():
            if parameter.data_ptr() != self._data[name].data_ptr():
                parameter.data = self._data[name]
            if parameter in self._copies:
                parameter.copy_(self._copies[parameter])
            elif parameter._version != self._versions[name]:
                changed.append(name)
        if changed:
            raise RuntimeError(
                f"the model's forward pass changes {', '.join(changed)} in place, also in eval "
                f"mode; it cannot be scored and left as it was"
            )


def _warn_of_batch_statistics(model: nn.Module) -> None:
    """Warn of BatchNorm that normalises with the statistics of each batch even in eval mode."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
    ]
    if names:
        warnings.warn(
            f"{', '.join(names)}: BatchNorm without running statistics normalises with those of "
            f"each batch, so scores depend on the batches (use track_running_stats=True)",
            stacklevel=4,
        )


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
    """Return copies of the buffers in float64, the running means of norms zero.

    With them BatchNorm and InstanceNorm add nothing of their own but their bias. Buffers of whole
    numbers keep their type.
    """
    buffers = {}
    for name, buffer in model.named_buffers():
        value = buffer.detach().clone()
        buffers[name] = value.double() if value.is_floating_point() else value
    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
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
