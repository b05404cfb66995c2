"""The units of a network and the weights between them, traced, for walks from unit to unit.

A *unit* is a channel of a feature map or a feature of a vector. The graph's nodes are the tensors
of one forward pass. A weighted operation leads from a unit through one of its weights to another
unit; all others keep the unit (ReLU, BatchNorm, pooling), renumber it (flattening, concatenation)
or merge branches (addition).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from pai.errors import ConfigError, first_line

Kind = Literal["input", "weighted", "same", "merge", "flatten", "concat"]
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
_SAME = {
    "batch_norm", "group_norm", "instance_norm", "layer_norm", "relu", "relu6", "hardtanh", "elu",
    "leaky_relu", "gelu", "silu", "tanh", "sigmoid", "hardswish", "dropout", "max_pool1d",
    "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "clone", "contiguous", "detach", "alias", "to", "mul", "div", "sub", "add",
}  # fmt: skip
_RESHAPING = {"flatten", "view", "reshape", "squeeze"}


@dataclass(frozen=True)
class Step:
    """A tensor of the forward pass: the operation that made it, and from which earlier tensors.

    Attributes:
        kind: the operation.
        operands: positions of the tensors it reads.
        units: how many units the tensor has.
        axis: where they are in its shape.
        weight: the parameter of a weighted operation.
        groups: of a convolution.
    """

    kind: Kind
    operands: tuple[int, ...]
    units: int
    axis: int
    weight: str = ""
    groups: int = 1


def trace(model: nn.Module, inputs: Tensor) -> list[Step]:
    """Return the tensors from ``inputs`` to the logits in the order of computation.

    The first is the input (units on axis 1), the last the logits. Call it in eval mode.

    Raises:
        ConfigError: an operation mixes units in another way than convolutions and linear layers do
            (attention, products of two branches), or is a block of its own (``no_grad``,
            ``autocast``); it is named. Or ``torch.export`` cannot trace the network.
    """
    try:
        program = torch.export.export(model, (inputs,))
    except RuntimeError as error:  # the forward pass decides by the values of its input
        raise ConfigError(
            f"scorer: walks from unit to unit need a network that torch.export can trace; here it "
            f"says: {first_line(error)}"
        ) from error
    names = _parameter_names(model, program.graph_signature.inputs_to_parameters)
    seen: dict[Node, int] = {}
    steps: list[Step] = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            step = Step("input", (), node.meta["val"].shape[1], 1)
        elif node.op == "call_function" and any(n in seen for n in node.all_input_nodes):
            if node.meta.get("val") is None and not node.users:
                continue  # an assertion
            found = _step(node, seen, steps, names)
            if found is None:
                raise ConfigError(
                    f"scorer: walks from unit to unit are not defined for this network; "
                    f"{node.name} ({node.target}) neither maps units to units nor keeps them; use "
                    f"another scorer"
                )
            step = found
        else:
            continue
        seen[node] = len(steps)
        steps.append(step)
    (outputs,) = (node.args[0] for node in program.graph.nodes if node.op == "output")
    if len(outputs) != 1 or outputs[0] not in seen:
        raise ConfigError("scorer: walks from unit to unit need a network with one output")
    return steps[: seen[outputs[0]] + 1]


def _parameter_names(model: nn.Module, names: Mapping[str, str]) -> dict[str, str]:
    """Return ``names`` with the first name of each parameter; export may use another one of it."""
    first = {id(p): name for name, p in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    return {node: first[id(every[name])] for node, name in names.items()}


def _step(
    node: Node, seen: Mapping[Node, int], steps: list[Step], names: Mapping[str, str]
) -> Step | None:
    """Return the step that ``node`` is, or ``None`` if it is none."""
    if not isinstance(node.meta.get("val"), Tensor):  # several results
        return None
    inside = [n for n in node.all_input_nodes if n in seen]
    operands = tuple(seen[n] for n in inside)
    shape, axis = tuple(node.meta["val"].shape), steps[operands[0]].axis
    kind = str(node.target).split(".")[1].rstrip("_")
    arguments: Any = node.args
    if kind == "cat":
        parts = tuple(seen[n] for n in arguments[0] if n in seen)
        dim = (arguments[1] if len(arguments) > 1 else 0) % len(shape)
        whole = len(parts) == len(arguments[0]) and dim == axis
        return Step("concat", parts, shape[axis], axis) if whole else None
    if len(operands) > 1:
        merges = kind == "add" and all(tuple(n.meta["val"].shape) == shape for n in inside)
        return Step("merge", operands, steps[operands[0]].units, axis) if merges else None
    if kind == "linear" or kind in _CONVOLUTIONS:
        return _weighted(node, kind, operands, axis, names)
    before = tuple(inside[0].meta["val"].shape)
    return _unweighted(node, kind, before, operands, steps[operands[0]])


def _weighted(
    node: Node, kind: str, operands: tuple[int, ...], axis: int, names: Mapping[str, str]
) -> Step | None:
    x, weight, *rest = node.args
    name = names.get(weight.name) if isinstance(weight, Node) else None
    assert isinstance(x, Node)
    if name is None or axis != (x.meta["val"].ndim - 1 if kind == "linear" else 1):
        return None
    groups: Any = rest[4] if len(rest) > 4 else 1
    return Step("weighted", operands, node.meta["val"].shape[axis], axis, name, groups)


def _unweighted(
    node: Node, kind: str, before: tuple[int, ...], operands: tuple[int, ...], source: Step
) -> Step | None:
    shape, axis, arguments = tuple(node.meta["val"].shape), source.axis, cast(Any, node.args)
    moved: int | None = None
    if kind == "permute":
        moved = [d % len(before) for d in arguments[1]].index(axis)
    elif kind == "transpose":
        a, b = (d % len(before) for d in arguments[1:3])
        moved = {a: b, b: a}.get(axis, axis)
    elif kind == "mean" and len(arguments) > 1:
        gone = {d % len(before) for d in arguments[1]}
        if axis not in gone:
            moved = axis - sum(d < axis for d in gone) * (len(shape) < len(before))
    elif kind in _SAME and len(shape) == len(before) and shape[axis] == source.units:
        moved = axis
    elif kind in _RESHAPING and axis == 1 and len(shape) == 2 and shape[0] == before[0]:
        return Step("flatten", operands, shape[1], 1)
    return None if moved is None else Step("same", operands, source.units, moved)
