"""SynFlow: synaptic flow of the network with absolute weights, without data."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pai.objective import Batches, LossFn, Named, first_inputs, gradients
from pai.scorers.base import Scorer
from pai.state import buffers_without_means, dense_weights


@dataclass(frozen=True)
class SynFlow(Scorer):
    """``|w| * dR/d|w|`` with ``R = sum of outputs`` for an input of ones and absolute weights.

    The batches only tell the input's shape. Computed in float64 on a copy of the parameters, since
    the flow through a deep network leaves the range of float32. Everything additive is zero, as in
    the paper's ``R = 1^T (prod_l |W_l|) 1``: biases, and the running means of BatchNorm, which thus
    acts as the positive scaling ``|gamma| / sqrt(running_var + eps)``. A bias would be a source of
    flow of its own and void the conservation law that prevents layer collapse (the original code
    keeps ``|bias|``; for layers without bias and with BatchNorm's initial zeros both agree).

    Inputs that are whole numbers cannot be ones; what they select can. An ``nn.Embedding`` that is
    fed by the data is a linear layer on one-hot vectors, and with ones in their place it returns
    the sum of its rows, ``|E|^T 1``, at every position; any other ``nn.Embedding`` (of positions)
    is additive, and zero. Buffers that a module lists in an attribute ``data_buffers`` (the node
    features of a graph) are ones.

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
            ValueError: there is no batch, or the inputs are whole numbers that select nothing.
        """
        inputs = first_inputs(batches)
        absolute = {
            name: p.detach().abs().double().mul(not name.endswith("bias")).requires_grad_()
            for name, p in model.named_parameters()
        }
        state = {**absolute, **buffers_without_means(model)}
        if inputs.is_floating_point():
            flow = functional_call(model, state, (torch.ones_like(inputs[:1]).double(),)).sum()
        else:
            numbers = inputs[:1].clone()  # a storage of its own
            with _selecting_ones(model, numbers, state):
                flow = functional_call(model, state, (numbers,)).sum()
        gradient = gradients(flow, {name: absolute[name] for name in parameters})
        return {
            name: weight.double().abs() * gradient[name].abs()
            for name, weight in dense_weights(parameters).items()
        }


@contextmanager
def _selecting_ones(model: nn.Module, numbers: Tensor, state: Named) -> Iterator[None]:
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
        return module.weight.sum(0).expand_as(out)

    for prefix, module in model.named_modules():
        for name in getattr(module, "data_buffers", ()):
            full = f"{prefix}.{name}" if prefix else name
            state[full] = torch.ones_like(state[full])
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
