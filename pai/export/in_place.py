"""Operations in place: those of the network made explicit, and those of the compacted network.

A ``torch.fx`` graph knows nothing of tensors that are overwritten: in ``y += z; f(y)`` the call may
still read what y was. :func:`rewire` lets every node read the value that it reads in the network.
:func:`reuse_memory` then overwrites intermediate results that nothing else reads.
"""

import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from pai.export.channels import FLATTENS

_OUT_OF_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul}
_ADDITIONS: set[Any] = {operator.add, torch.add, "add"}
_RELUS: set[Any] = {F.relu, torch.relu, "relu"}
_SAME_TENSOR = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in eval mode
_SAME_TENSOR_FUNCTIONS: set[Any] = {F.dropout, "contiguous"}


def rewire(traced: fx.GraphModule) -> None:
    """Let nodes that come after an operation in place read its result instead of its operand.

    Additions and products in place become ordinary ones.

    Raises:
        ValueError: a tensor is overwritten in one shape and read in another one.
    """
    modules = dict(traced.named_modules())
    owner: dict[fx.Node, fx.Node] = {}  # the node that made the tensor which a node returns
    shape: dict[fx.Node, fx.Node] = {}  # the node that gave it its shape
    now: dict[fx.Node, fx.Node] = {}  # by owner: the node that has overwritten it last
    place = {node: number for number, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        for operand in list(node.all_input_nodes):
            last = now.get(owner[operand])
            if last is None or place[last] <= place[operand]:
                continue
            if shape[last] is not shape[operand]:
                raise ValueError(
                    f"compact: {node.name} reads {operand.name}, which {last.name} has overwritten "
                    f"in another shape; write that operation out of place"
                )
            node.replace_input_with(operand, last)
        source = next(iter(node.all_input_nodes), node)
        module = modules[str(node.target)] if node.op == "call_module" else None
        view = node.target in FLATTENS or isinstance(module, nn.Flatten)
        same = node.target in _SAME_TENSOR_FUNCTIONS or isinstance(module, _SAME_TENSOR)
        overwrites = _is_in_place(node, module)
        owner[node] = owner.get(source, node) if view or same or overwrites else node
        shape[node] = shape.get(source, node) if same or overwrites else node
        if overwrites:
            now[owner[node]] = node
        node.target = _OUT_OF_PLACE.get(node.target, node.target)


def _is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return bool(getattr(module, "inplace", False)) and not isinstance(module, _SAME_TENSOR)
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.target in (*_OUT_OF_PLACE, F.relu_, torch.relu_):
        return True
    return bool(node.kwargs.get("inplace", False)) or (node.target is F.relu and True in node.args)


def reuse_memory(
    traced: fx.GraphModule, layers: Collection[fx.Node], values: Mapping[fx.Node, Any]
) -> None:
    """Let ReLUs and additions overwrite an operand, which changes no bit of the results.

    The operand has to be the result of a layer or an addition, so that it is no input and no view,
    and to be read by this node alone. Memory that is freed may go back to the operating system, and
    what is allocated next is then fetched page by page, which can cost as much as a thin layer.

    Args:
        traced: without dead code; changed in place, to be recompiled.
        layers: the nodes that call a layer which returns a tensor of its own.
        values: of each node, a tensor of its shape; channels may have been removed since.
    """
    modules = dict(traced.named_modules())
    calls = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    own = {*layers, *(node for node in traced.graph.nodes if node.target in _ADDITIONS)}
    for node in traced.graph.nodes:
        free = [
            operand
            for operand in node.all_input_nodes
            if operand in own
            and len(operand.users) == 1
            and node.op != "output"
            and values[operand].shape == values[node].shape
        ]
        if not free:
            continue
        if node.op == "call_module":
            module = modules[str(node.target)]
            if isinstance(module, nn.ReLU) and calls.count(str(node.target)) == 1:
                module.inplace = True
        elif node.target in _RELUS:
            node.op, node.target = "call_function", torch.relu_
            node.args, node.kwargs = (free[0],), {}
        elif node.target in _ADDITIONS and len(node.all_input_nodes) == 2 and not node.kwargs:
            (other,) = (operand for operand in node.all_input_nodes if operand is not free[0])
            node.op, node.target, node.args = "call_method", "add_", (free[0], other)
