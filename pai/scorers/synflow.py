"""SynFlow: synaptic flow of the network with absolute weights, without data."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from pai.objective import Batches, LossFn, Named, first_inputs, gradients, outputs_with
from pai.prunable import require_real
from pai.scorers.base import Scorer
from pai.state import buffers_without_means, dense_weights

_HOLDERS = (nn.Embedding, nn.EmbeddingBag, nn.ParameterList, nn.ParameterDict)
"""Modules of torch that leave it to the network what their parameters do to the signal."""


@dataclass(frozen=True)
class SynFlow(Scorer):
    """``|w| * dR/d|w|`` with ``R = sum of outputs`` for an input of ones and absolute weights.

    The batches only tell the input's shape. Computed in float64 on a copy of the parameters, since
    the flow through a deep network leaves the range of float32. What is added is zero, as in the
    paper's ``R = 1^T (prod_l |W_l|) 1``: it would be a source of flow of its own and void the
    conservation law that prevents layer collapse. That is

    - every parameter with ``bias`` in its name (the original code keeps ``|bias|``; for layers
      without bias and with BatchNorm's initial zeros both agree);
    - the running means of BatchNorm and InstanceNorm, which thus act as the positive scaling
      ``|gamma| / sqrt(running_var + eps)``;
    - every other parameter of a module that is not one of torch's, or of an embedding or a list of
      parameters, if some operation returns more with twice the parameter although the signal in it
      is zero: positions that are added, class tokens that are put beside the signal, shifts.
      Scales are multiplied and stay.

    Constants in the code and in buffers stay what they are.

    Inputs that are whole numbers cannot be ones; what they select can. An ``nn.Embedding`` that is
    fed by the data is a linear layer on one-hot vectors, and with ones in their place it returns
    the sum of its rows, ``|E|^T 1``, at every position; any other ``nn.Embedding`` (of positions)
    is then additive, and zero. Buffers that a module lists in an attribute ``data_buffers`` (the
    node features of a graph) are ones.

    This is one round. The method is iterative: 100 rounds with density ``rho^(k/100)`` after round
    k, which is ``schedule=exponential``, the schedule that ``scorer=synflow`` selects by default.
    Source: Tanaka et al. 2020, arXiv 2006.05467, equation 2 and algorithm 1.
    """

    remembers: ClassVar[bool] = True

    def score(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None,
    ) -> Named:  # fmt: skip
        """Take one forward and one backward pass with a single input of ones.

        Raises:
            ValueError: there is no batch, the inputs are whole numbers that select nothing, or the
                network has complex weights.
        """
        require_real(dict(model.named_parameters()), "scorer", "use another scorer than synflow")
        inputs = first_inputs(batches)
        absolute = {
            name: p.detach().abs().double().mul("bias" not in name.rpartition(".")[2])
            for name, p in model.named_parameters()
        }
        buffers = buffers_without_means(model)
        for name in _added(model, absolute, buffers, inputs):
            absolute[name] = torch.zeros_like(absolute[name])
        for value in absolute.values():
            value.requires_grad_()
        flow = _outputs(model, {**absolute, **buffers}, inputs).sum()
        gradient = gradients(flow, {name: absolute[name] for name in parameters})
        return {
            name: weight.double().abs() * gradient[name].abs()
            for name, weight in dense_weights(parameters).items()
        }


def _outputs(model: nn.Module, state: Named, inputs: Tensor) -> Tensor:
    """Return the outputs for a single input of ones; what depends on it requires a gradient."""
    one = torch.ones((), dtype=torch.float64, device=inputs.device, requires_grad=True)
    if inputs.is_floating_point():
        x = torch.ones_like(inputs[:1], dtype=torch.float64) * one
        return outputs_with(model, state, x)
    numbers = inputs[:1].clone()  # a storage of its own
    with _selecting_ones(model, numbers, state, one):
        return outputs_with(model, state, numbers)


def _added(model: nn.Module, absolute: Named, buffers: Named, inputs: Tensor) -> set[str]:
    """Return the parameters that are added to the signal; of torch's modules only holders'."""
    own = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _HOLDERS)
        or not type(module).__module__.startswith("torch.nn.modules.")
        for parameter in module.parameters(recurse=False)
    }
    watched = {
        name: absolute[name]
        for name, parameter in model.named_parameters()
        if id(parameter) in own and absolute[name].any()
    }
    if not watched:
        return set()
    with _Watch(watched) as watch:
        _outputs(model, {**absolute, **buffers}, inputs)
    return watch.added


class _Watch(TorchFunctionMode):
    """Finds those of ``watched`` that are added to the signal, themselves or what is made of them.

    The signal is what requires a gradient.
    """

    def __init__(self, watched: Named) -> None:
        super().__init__()
        self.added: set[str] = set()
        self._made_of = {id(value): (value, {name}) for name, value in watched.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        parts = [t for t in tensors if id(t) in self._made_of and not t.requires_grad]
        signal = any(t.requires_grad for t in tensors)
        if signal:
            for part in parts:
                if self._is_added(func, args, kwargs, part):
                    self.added |= self._made_of[id(part)][1]
        out = func(*args, **kwargs)
        if parts and not signal:
            names = set().union(*(self._made_of[id(part)][1] for part in parts))
            for made in tree_leaves(args[0] if out is None else out):  # None: in place
                if isinstance(made, Tensor):
                    self._made_of[id(made)] = (made, names)
        return out

    def _is_added(self, func: Any, args: Any, kwargs: Any, part: Tensor) -> bool:
        """Whether the result depends on the size of ``part`` where signal and other parts are 0."""
        results = []
        for factor in (1, 2):

            def value(x: Any, factor: int = factor) -> Any:
                if x is part:
                    return x * factor
                if not isinstance(x, Tensor):
                    return x
                zero = x.requires_grad or id(x) in self._made_of
                return torch.zeros_like(x) if zero else x.clone()

            given, named = tree_map(value, (args, kwargs))
            with torch.no_grad():
                out = func(*given, **named)
            results.append(tree_leaves(given[0] if out is None else out))
        return any(
            isinstance(once, Tensor)
            and once.is_floating_point()
            and not torch.equal(once.nan_to_num(), twice.nan_to_num())
            for once, twice in zip(*results, strict=True)
        )


@contextmanager
def _selecting_ones(model: nn.Module, numbers: Tensor, state: Named, one: Tensor) -> Iterator[None]:
    """Let ``numbers`` select ones from embeddings and from buffers of data; see :class:`SynFlow`.

    Raises:
        ValueError: they have selected nothing by the end of the block.
    """
    found = False

    def look_up(module: nn.Embedding, args: Any, out: Tensor) -> Tensor:
        nonlocal found
        if args[0].untyped_storage().data_ptr() != numbers.untyped_storage().data_ptr():
            return torch.zeros_like(out)
        found = True
        ones = (module.weight.sum(0) * one).expand_as(out)
        return ones.clone()  # which some networks scale in place

    for prefix, module in model.named_modules():
        for name in getattr(module, "data_buffers", ()):
            full = f"{prefix}.{name}" if prefix else name
            state[full] = torch.ones_like(state[full]) * one
            found = True
    layers = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    hooks = [layer.register_forward_hook(look_up) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError(
            "synflow needs an input of ones: the inputs are whole numbers, and they reach no "
            "nn.Embedding, nor does the model list data_buffers"
        )
