"""The forward pass of a network as a graph of ATen operations."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functionalize
from torch.fx import Graph
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pai.errors import first_line
from pai.masking.moves import NotDefinedError
from pai.substitution import call_with


class _PadByIndex(TorchFunctionMode):
    """Writes circular padding as a choice of entries; torch copies them into memory of its own."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.pad:
            x, pad, mode = self._arguments(*args, **kwargs)
            if mode == "circular":
                for axis, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), 1):
                    size = x.shape[-axis]
                    entries = torch.arange(-before, size + after, device=x.device) % size
                    x = x.index_select(-axis, entries)
                return x
        return func(*args, **kwargs)

    @staticmethod
    def _arguments(
        input: Tensor, pad: list[int], mode: str = "constant", value: Any = None
    ) -> tuple[Tensor, list[int], str]:
        return input, pad, mode


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
        with _PadByIndex():
            return call_with(model, state, x)

    values = list(buffers.values())
    try:
        traced = make_fx(functionalize(run))(list(parameters.values()), values, sample)
    except RuntimeError as error:  # data-dependent control flow
        raise NotDefinedError(f"the network cannot be traced: {first_line(error)}") from error
    traced.graph.eliminate_dead_code()
    return Traced(traced.graph, [*values, sample], data or [sample], traced)
