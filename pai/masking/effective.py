"""Effective sparsity: which kept weights lie on a path from the input to the output.

For any network that can be traced. The forward pass is recorded as a graph of ATen operations
between tensors; each entry of each tensor gets three bits:

- ``n``, may be nonzero: pruned weights, padding and additive biases are zero;
- ``l``, live: depends on the input;
- ``b``, heard: some output depends on it.

They follow from the operations one by one (:mod:`pai.masking.surrogates`), ``n`` and ``l`` from
input to output, ``b`` backward; a product passes a signal on where the other factor may be nonzero.
A kept weight is *effective* if, somewhere, it multiplies a live entry and the result is heard. In
networks of affine layers, ReLU-like functions and BatchNorm these are the weights on input-output
paths; in attention a path may go through queries, keys or values, and LayerNorm connects all the
channels it normalises. The result depends on the mask only, not on the values of the weights.
Where the data is a buffer and a sample only the number of a row (node features that a module names
in ``data_buffers``), that buffer is the input and all rows of the output count.
Source: Vysogorets and Kempe 2023, arXiv 2107.02306, section 3, for networks without products.
"""

import operator
import warnings
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from pai.errors import first_line
from pai.masking.moves import NotDefinedError
from pai.masking.surrogates import aten, surrogate
from pai.masking.tracing import trace
from pai.state import scoring_mode

_ADDITIONS = {aten.add, aten.sub, aten.rsub, aten.addmm, aten.baddbmm, aten.addmv}


@dataclass(frozen=True)
class Paths:
    """What of a mask is connected.

    Attributes:
        effective: the part of the mask that is effective, by parameter name.
        cut_at: the layer that cuts the network, ``None`` if some output depends on the input. It is
            the layer that runs last before nothing live is left that a later operation uses.
    """

    effective: dict[str, Tensor]
    cut_at: str | None


class Connectivity:
    """The graph of a network, traced once, to look at any number of masks.

    Args:
        model: run once in eval mode on one sample; not changed.
        inputs: a batch, for its shape and type.

    Raises:
        NotDefinedError: the network cannot be traced (it decides by the values of its input).
    """

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        self._shapes = {name: p.shape for name, p in model.named_parameters()}
        self._device = inputs.device
        with scoring_mode(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            traced = trace(model, inputs)
            self._nodes = list(traced.graph.nodes)
            placeholders = [node for node in self._nodes if node.op == "placeholder"]
            self._parameters = dict(zip(self._shapes, placeholders, strict=False))
            rest = dict(zip(placeholders[len(self._shapes) :], traced.values, strict=True))
            self._inputs = {n: v.shape for n, v in rest.items() if any(v is x for x in traced.data)}
            known = {n: v.clone() for n, v in rest.items() if n not in self._inputs}
            self._classify(known, traced.constants)

    def paths(self, mask: Mapping[str, Tensor]) -> Paths:
        """Return what of ``mask`` (by parameter name) is connected.

        Raises:
            NotDefinedError: the network contains an operation without a rule; it is named.
        """
        with torch.no_grad(), warnings.catch_warnings():
            # torch's own forward mode warns of its own use of torch.jit
            warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
            nonzero, live = self._forward(mask)
            heard = self._backward(nonzero, live)
        effective = {}
        for name, keep in mask.items():
            found = heard.get(self._parameters[name])
            effective[name] = (
                torch.zeros_like(keep) if found is None else keep & (found > 0).to(keep.device)
            )
        return Paths(effective, self._cut(live, mask))

    def _classify(self, known: dict[Node, Any], constants: nn.Module) -> None:
        """Find what depends on the input, what on parameters only (and on which), and the rest."""
        self._signals: set[Node] = set(self._inputs)
        self._sources: dict[Node, set[str]] = {n: {name} for name, n in self._parameters.items()}
        self._known = known
        for node in self._nodes:
            before = node.all_input_nodes
            if node.op == "get_attr":
                known[node] = getattr(constants, str(node.target))
            elif node.op != "call_function":
                continue
            elif any(operand in self._signals for operand in before):
                self._signals.add(node)
            elif any(operand in self._sources for operand in before):
                self._sources[node] = set().union(*(self._sources.get(o, ()) for o in before))
            else:
                args, kwargs = map_arg((node.args, node.kwargs), lambda o: known[o])
                known[node] = node.target(*args, **kwargs)

    def _forward(self, mask: Mapping[str, Tensor]) -> tuple[dict[Node, Any], dict[Node, Any]]:
        nonzero: dict[Node, Any] = {}
        for name, node in self._parameters.items():
            ones = self._ones(self._shapes[name])
            nonzero[node] = mask[name].to(ones) if name in mask else ones
        everywhere = {n: self._ones(shape) for n, shape in self._inputs.items()}
        nonzero, live = nonzero | everywhere, dict[Node, Any](everywhere)
        for node in self._nodes:
            if node.op != "call_function" or node in self._known:
                continue
            if node.target is operator.getitem:
                source, position = node.args
                if position >= len(nonzero[source]):  # its rule knows the leading results only
                    raise NotDefinedError(
                        f"result {position} of {source.target} (positions of maxima) has no rule"
                    )
                nonzero[node] = nonzero[source][position]
                if node in self._signals:
                    live[node] = live[source][position]
                continue
            with _applying_rule(node):
                self._pass(node, nonzero, live)
        return nonzero, live

    def _ones(self, shape: torch.Size) -> Tensor:
        return torch.ones(shape, dtype=torch.float32, device=self._device)

    def _pass(self, node: Node, nonzero: dict[Node, Any], live: dict[Node, Any]) -> None:
        signals = self._operands(node, self._signals)
        function = self._function(node, signals, nonzero)
        if node in self._signals:
            primals, tangents = (tuple(bits[o] for o in signals) for bits in (nonzero, live))
            found: Any = jvp(function, primals, tangents)
            n, change = found
            live[node] = _bits(change)
        else:
            n = function()
        nonzero[node] = _bits(n)

    def _backward(self, nonzero: dict[Node, Any], live: Mapping[Node, Any]) -> dict[Node, Any]:
        heard: dict[Node, Any] = {}
        for node in reversed(self._nodes):
            if node.op == "output":
                for operand in node.all_input_nodes:
                    if operand in self._signals:
                        heard[operand] = _ones(nonzero[operand])
            if node.op != "call_function" or node not in heard:
                continue
            if node.target is operator.getitem:
                source: Any = node.args[0]
                parts = heard.setdefault(source, [torch.zeros_like(v) for v in nonzero[source]])
                parts[node.args[1]] = torch.maximum(parts[node.args[1]], heard[node])
                continue
            signals = self._operands(node, self._signals)
            weights = [o for o in self._operands(node, self._sources) if not self._bias(node, o)]
            with _applying_rule(node):
                self._pull(node, signals, nonzero, heard)
                # a weight of a layer is heard where what it multiplies is live
                self._pull(node, weights, ChainMap({o: live[o] for o in signals}, nonzero), heard)
        return heard

    def _pull(
        self, node: Node, operands: list[Node], at: Mapping[Node, Any], heard: dict[Node, Any]
    ) -> None:
        """Add to what is heard of ``operands`` what is heard of ``node``."""
        if not operands:
            return
        found: Any = vjp(self._function(node, operands, at), *(at[o] for o in operands))
        out, pull = found
        given = heard[node]
        for operand, change in zip(
            operands, pull(given if isinstance(out, Tensor) else type(out)(given)), strict=True
        ):
            bits = _bits(change)
            heard[operand] = torch.maximum(heard[operand], bits) if operand in heard else bits

    def _operands(self, node: Node, among: Iterable[Node]) -> list[Node]:
        return [operand for operand in node.all_input_nodes if operand in among]

    def _bias(self, node: Node, operand: Node) -> bool:
        """Whether ``operand`` is a vector of parameters that ``node`` adds to a signal."""
        return (
            getattr(node.target, "overloadpacket", None) in _ADDITIONS
            and node in self._signals
            and operand in self._sources
            and all(len(self._shapes[name]) <= 1 for name in self._sources[operand])
        )

    def _function(self, node: Node, operands: list[Node], at: Mapping[Node, Any]) -> Any:
        """Return the surrogate of ``node`` as a function of ``operands``, all others fixed."""

        def function(*values: Tensor) -> Any:
            given = dict(zip(operands, values, strict=True))

            def value(operand: Node) -> Any:
                if operand in given:
                    return given[operand]
                if operand in self._known:
                    known = self._known[operand]
                    floating = isinstance(known, Tensor) and known.is_floating_point()
                    return (known != 0).float() if floating else known
                return torch.zeros_like(at[operand]) if self._bias(node, operand) else at[operand]

            args, kwargs = map_arg((node.args, node.kwargs), value)
            return surrogate(node.target, args, kwargs)

        return function

    def _cut(self, live: Mapping[Node, Any], mask: Mapping[str, Tensor]) -> str | None:
        last_use = {o: i for i, node in enumerate(self._nodes) for o in node.all_input_nodes}
        layer: str | None = None
        waiting: set[Node] = set(self._inputs)
        for position, node in enumerate(self._nodes):
            if node in self._signals:
                names = [
                    name for o in self._operands(node, self._sources)
                    for name in sorted(self._sources[o]) if name in mask
                ]  # fmt: skip
                layer = names[0] if names else layer
                if any(bool(part.any()) for part in tree_leaves(live[node])):
                    waiting.add(node)
            waiting = {o for o in waiting if last_use.get(o, -1) > position}
            if not waiting:
                return None if node.op == "output" else layer
        return None


@contextmanager
def _applying_rule(node: Node) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, TypeError) as error:  # operands that the rule has not foreseen
        raise NotDefinedError(
            f"the rule of {node.target} does not apply: {first_line(error)}"
        ) from error


def effective_kept(
    model: nn.Module, mask: Mapping[str, Tensor], inputs: Tensor
) -> dict[str, Tensor]:
    """Return the part of ``mask`` that is effective.

    Args:
        model: not changed.
        mask: by parameter name.
        inputs: a batch, for its shape.

    Raises:
        NotDefinedError: what in the network has no rule.
    """
    return Connectivity(model, inputs).paths(mask).effective


def _bits(value: Any) -> Any:
    """Saturate counts: one where there is at least one, zero where there is none."""
    if isinstance(value, Tensor):
        return (value > 0.5).float()
    return [(part > 0.5).float() for part in value]


def _ones(value: Any) -> Any:
    return (
        torch.ones_like(value) if isinstance(value, Tensor) else [torch.ones_like(v) for v in value]
    )
