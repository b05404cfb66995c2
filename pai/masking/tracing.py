"""The forward pass of a network as a graph of ATen operations."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.fx import Graph
from torch.fx.experimental.proxy_tensor import make_fx

from pai.errors import first_line
from pai.masking.surrogates import NotDefinedError


@dataclass(frozen=True)
class Traced:
    """A recorded forward pass.

    Attributes:
        graph: its placeholders are the parameters, then ``values``.
        values: the buffers, and the input last.
        data: those of ``values`` that hold the data: the input, or, where a sample is the number of
            a row of buffers that modules name in ``data_buffers``, these buffers.
        constants: the tensors that the graph gets by name.
    """

    graph: Graph
    values: list[Tensor]
    data: list[Tensor]
    constants: nn.Module


def trace(model: nn.Module, inputs: Tensor) -> Traced:
    """Record ``model`` on the first of ``inputs``, or on all rows of the buffers with the data.

    Raises:
        NotDefinedError: the network decides by the values of its input.
    """
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    data = [
        getattr(module, name)
        for module in model.modules() for name in getattr(module, "data_buffers", ())
    ]  # fmt: skip
    sample = torch.arange(len(data[0]), device=inputs.device) if data else inputs[:1]

    def run(parameters_: list[Tensor], buffers_: list[Tensor], x: Tensor) -> Any:
        state = dict(zip([*parameters, *buffers], [*parameters_, *buffers_], strict=True))
        return functional_call(model, state, (x,))

    values = list(buffers.values())
    try:
        traced = make_fx(functionalize(run))(list(parameters.values()), values, sample)
    except RuntimeError as error:  # data-dependent control flow
        raise NotDefinedError(f"the network cannot be traced: {first_line(error)}") from error
    traced.graph.eliminate_dead_code()
    return Traced(traced.graph, [*values, sample], data or [sample], traced)
