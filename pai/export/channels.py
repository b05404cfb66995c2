"""Which channels of a traced convolutional network can influence its output.

Two bits per channel of each node of a ``torch.fx`` graph: *live*, it may depend on the input, and
*needed*, the output may depend on it; both err on the side of yes. Nodes whose channels have to be
removed together (additions, BatchNorm, pooling, depthwise convolutions) share an :class:`Axis`.
"""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pai.state import scoring_mode

AFFINE = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_SAME_CHANNELS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d,
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_SAME_CHANNELS_FUNCTIONS: set[Any] = {
    F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.gelu, F.silu, F.hardswish,
    F.hardsigmoid, torch.sigmoid, F.sigmoid, torch.tanh, F.dropout, F.max_pool2d, F.avg_pool2d,
    F.adaptive_avg_pool2d, F.adaptive_max_pool2d, "relu", "relu_", "sigmoid", "tanh", "contiguous",
}  # fmt: skip
_BOTH: set[Any] = {
    operator.add, operator.iadd, torch.add, "add", "add_", operator.mul, operator.imul, torch.mul,
    "mul", "mul_",
}  # fmt: skip
_MEANS: set[Any] = {torch.mean, "mean"}
FLATTENS: set[Any] = {torch.flatten, "flatten"}


@dataclass(eq=False)
class Axis:
    """The channels that several nodes have in common; ``fixed`` ones all stay."""

    size: int
    fixed: bool = False
    merged_into: "Axis | None" = None
    keep: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def root(self) -> "Axis":
        """Return the axis that this one has become."""
        return self if self.merged_into is None else self.merged_into.root()


class Channels:
    """The analysis of one network for inputs of one size.

    Args:
        traced: its graph; in eval mode, in float64.
        example: a batch; its first sample gives the shapes.

    Attributes:
        values: of each node for an input of zeros: right for every input where not live.
        axis: of each node.
        live: of each node, one bit per channel.

    Raises:
        ValueError: an operation is not known; it is named.
    """

    def __init__(self, traced: fx.GraphModule, example: Tensor) -> None:
        self._traced = traced
        self.modules = dict(traced.named_modules())
        recorder = _Recorder(traced)
        with scoring_mode(traced), torch.no_grad():
            recorder.run(torch.zeros_like(example[:1], dtype=torch.float64))
        self.values = recorder.values
        self.axis: dict[fx.Node, Axis] = {}
        self.live: dict[fx.Node, Tensor] = {}
        for node in traced.graph.nodes:
            self._forward(node)
        self._keep(self._backward())

    def kept(self, node: fx.Node) -> Tensor:
        """Return which channels of ``node`` stay."""
        return self.axis[node].root().keep

    def layer(self, node: fx.Node) -> nn.Module | None:
        """Return the module that ``node`` calls, if it does."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _forward(self, node: fx.Node) -> None:
        if node.op == "output":
            for operand in node.all_input_nodes:
                self.axis[operand].root().fixed = True
            return
        layer, source = self.layer(node), next(iter(node.all_input_nodes), None)
        if node.op == "placeholder":
            size = self.values[node].shape[1]
            self.axis[node] = Axis(size, fixed=True)
            self.live[node] = torch.ones(size, dtype=torch.bool)
        elif isinstance(layer, AFFINE) and source is not None:
            self._affine(node, layer, source)
            self._fix_if_shared(node, layer)
        elif source is not None and self._keeps_channels(node, layer):
            self.axis[node], self.live[node] = self.axis[source], self.live[source]
            for operand in node.all_input_nodes[1:]:
                self._merge(node, operand)
                self.live[node] = self.live[node] | self.live[operand]
            if isinstance(layer, NORMS):
                self._fix_if_shared(node, layer)
        else:
            what = type(layer).__name__ if layer is not None else node.target
            raise ValueError(f"compact: {node.name} ({what}) is no operation that it knows")

    def _keeps_channels(self, node: fx.Node, layer: nn.Module | None) -> bool:
        before = [self.values[operand] for operand in node.all_input_nodes]
        if layer is not None:
            if isinstance(layer, nn.Flatten):
                return layer.start_dim == 1 and layer.end_dim in (-1, before[0].ndim - 1)
            return isinstance(layer, (*_SAME_CHANNELS, *NORMS))
        if node.target in FLATTENS:
            return bool(self.values[node].ndim == 2)
        if node.target in _MEANS:
            dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            return _spatial(dims, before[0].ndim)
        if node.target in _BOTH:
            return all(value.shape[1] == before[0].shape[1] for value in before)
        return node.target in _SAME_CHANNELS_FUNCTIONS

    def _affine(self, node: fx.Node, layer: nn.Conv2d | nn.Linear, source: fx.Node) -> None:
        shape = tuple(self.values[source].shape)
        if isinstance(layer, nn.Linear) and len(shape) != 2:
            raise ValueError(
                f"compact: {node.name} is a Linear on an input of shape {shape}; it knows those on "
                f"[samples, features]"
            )
        connected = self.connected(layer, source)
        if isinstance(layer, nn.Conv2d) and is_depthwise(layer):
            self.axis[node] = self.axis[source]
        else:
            self.axis[node] = Axis(layer.weight.shape[0])
            if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or layer.padding_mode != "zeros"):
                self.axis[node].root().fixed = self.axis[source].root().fixed = True
        self.live[node] = (connected & self.live[source]).any(1)

    def _fix_if_shared(self, node: fx.Node, layer: nn.Module) -> None:
        """A layer that is used twice keeps its size."""
        if sum(self.layer(other) is layer for other in self._traced.graph.nodes) > 1:
            for end in (node, node.all_input_nodes[0]):
                self.axis[end].root().fixed = True

    def connected(self, layer: nn.Module, source: fx.Node) -> Tensor:
        """Return which outputs of an affine layer have a nonzero weight for which channel."""
        weight: Any = layer.weight
        if isinstance(layer, nn.Linear):
            return (weight != 0).reshape(len(weight), self.axis[source].root().size, -1).any(2)
        assert isinstance(layer, nn.Conv2d)
        nonzero = (weight != 0).flatten(2).any(2)
        if layer.groups == 1:
            return nonzero
        if is_depthwise(layer):
            return torch.diag(nonzero[:, 0])
        return torch.ones(len(weight), layer.in_channels, dtype=torch.bool)

    def _merge(self, node: fx.Node, other: fx.Node) -> None:
        into, old = self.axis[node].root(), self.axis[other].root()
        if into is not old:
            into.fixed = into.fixed or old.fixed
            old.merged_into = into

    def _backward(self) -> dict[fx.Node, Tensor]:
        needed = {node: torch.zeros_like(bits) for node, bits in self.live.items()}
        for node in reversed(self._traced.graph.nodes):
            layer = self.layer(node)
            for operand in node.all_input_nodes:
                if node.op == "output":
                    needed[operand][:] = True
                elif isinstance(layer, AFFINE):
                    needed[operand] |= (self.connected(layer, operand) & needed[node][:, None]).any(
                        0
                    )
                else:
                    needed[operand] |= needed[node]
        return needed

    def _keep(self, needed: dict[fx.Node, Tensor]) -> None:
        for node, live in self.live.items():
            axis = self.axis[node].root()
            if len(axis.keep) == 0:
                axis.keep = torch.full((axis.size,), axis.fixed)
            axis.keep = axis.keep | (live & needed[node])


def is_depthwise(layer: nn.Conv2d) -> bool:
    """Return whether each output channel is made of the input channel of the same number."""
    return 1 < layer.groups == layer.in_channels == layer.out_channels


def _spatial(dims: Any, ndim: int) -> bool:
    dims = dims if isinstance(dims, tuple | list) else [dims]
    return all(dim % ndim >= 2 for dim in dims)


class _Recorder(fx.Interpreter):
    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n] = value.clone() if isinstance(value, Tensor) else value
        return value
