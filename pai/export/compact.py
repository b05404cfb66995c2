"""Exact compaction: channels that cannot influence the output are physically removed.

What is removed: channels that depend on no input (all paths to them are pruned) and channels that
no output depends on. The first kind may still be constants other than zero (biases, BatchNorm
shifts). Their contribution to the next layer is computed once and added there: as a bias where it
is the same at all positions, else (zero padding makes it differ at the borders) as a map of the
next layer's output size, which binds the network to inputs of the example's size. Channels joined
by an addition are removed if all of them can be.
"""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from pai.errors import first_line
from pai.export.channels import AFFINE, NORMS, Channels, is_depthwise
from pai.export.in_place import reuse_memory, rewire

_LAYERS = (*AFFINE, *NORMS)


class ConstantOutput(nn.Module):
    """What a layer gives that no longer depends on the input: one map for every sample."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value[None])

    def forward(self, x: Tensor) -> Tensor:
        """Return the map ``[B, ...]`` for the B samples of ``x``."""
        return self.value.expand(x.shape[0], *self.value.shape[1:]).clone()


class PlusMap(nn.Module):
    """A convolution with a bias that depends on the position."""

    shift: Tensor

    def __init__(self, layer: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("shift", shift[None])

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution plus the map."""
        out: Tensor = self.layer(x)
        return out.add_(self.shift)


def compact(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """Return ``model`` in eval mode without the channels that cannot influence its output.

    The outputs are equal up to rounding, for every input of the example's size. Known are
    convolutions (depthwise ones too; other grouped ones keep their channels), linear layers,
    BatchNorm, elementwise activations, pooling, flattening, additions and products of equally many
    channels: the ResNets and VGGs here, torchvision's ResNets and VGGs.

    Args:
        model: with exact zeros where it is pruned (:func:`pai.apply_mask`); not changed. Its
            BatchNorm layers use their running statistics, whatever mode it is in.
        example: a batch of inputs on the model's device, for their size.

    Returns:
        A new module with weights of its own; modules keep their names. Train it no further: folded
        constants stay what they are.

    Raises:
        ValueError: the network cannot be traced by ``torch.fx``, or tracing changes its results, or
            it has an operation or a kind of weight that compaction does not know; it is named. Or
            the compacted network gives another output for a random input.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        >>> _ = model[0].weight.data[1:3].zero_()
        >>> compact(model, torch.zeros(1, 1, 8, 8)).get_submodule("0").out_channels
        2
    """
    for name, layer in model.named_modules():
        if isinstance(layer, _LAYERS) and "weight" not in layer._parameters:
            raise ValueError(
                f"compact: {name!r} makes its weight of other parameters, as weight_norm does; "
                f"make it an ordinary one (torch.nn.utils.parametrize.remove_parametrizations)"
            )
    traced, noise, expected = _trace(model, example)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    device = example.device
    channels = Channels(copy.deepcopy(traced).cpu().double(), example.cpu())
    pairs = dict(zip(traced.graph.nodes, channels.axis, strict=False))
    start = next(node for node in traced.graph.nodes if node.op == "placeholder")
    done: set[str] = set()
    for node, analysed in pairs.items():
        if node.op == "call_module" and str(node.target) not in done:
            done.add(str(node.target))
            new = _replacement(channels, analysed)
            if new is None:
                continue
            traced.set_submodule(str(node.target), new.to(device, dtype))
            if isinstance(new, ConstantOutput):
                node.args = (start,)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    values = {node: channels.values[analysed] for node, analysed in pairs.items()}
    layers = [n for n, analysed in pairs.items() if isinstance(channels.layer(analysed), _LAYERS)]
    reuse_memory(traced, layers, values)
    traced.recompile()
    _check_outputs(traced.eval(), noise, expected)
    return traced


def _check_outputs(compacted: nn.Module, noise: Tensor, expected: Any) -> None:
    """Raise ``ValueError`` if the outputs differ by more than rounding, relative to the largest."""
    with torch.no_grad():
        found = compacted(noise.clone())
    largest = max(float(value.abs().nan_to_num().max()) for value in tree_leaves(expected))
    close = torch.finfo(noise.dtype).eps ** 0.5
    try:
        torch.testing.assert_close(
            found, expected, rtol=close, atol=close * largest, equal_nan=True
        )
    except AssertionError as error:
        raise ValueError(
            "compact: the compacted network computes something else; does a layer do more than its "
            "type says, by a hook for instance?"
        ) from error


def _trace(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, Tensor, Any]:
    """Return the graph of a copy of ``model`` in eval mode, a random input and the output for it.

    :func:`compact` says what it raises.
    """
    try:
        network = copy.deepcopy(model).eval()
    except RuntimeError as error:  # it keeps an activation, for instance
        raise ValueError(f"compact: the model cannot be copied: {first_line(error)}") from error
    if not example.is_floating_point():
        raise ValueError("compact: inputs must be real numbers; networks of tokens are not known")
    try:
        traced = fx.symbolic_trace(network, _defaults(network))
        _drop_defaults(traced.graph)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise ValueError(f"compact: torch.fx cannot trace it: {first_line(error)}") from error
    rewire(traced)
    traced.recompile()
    noise = torch.randn(example[:1].shape, generator=torch.Generator().manual_seed(0)).to(example)
    try:
        with torch.no_grad():
            expected, found = network(noise.clone()), traced(noise.clone())
        torch.testing.assert_close(found, expected, equal_nan=True)
    except AssertionError as error:
        raise ValueError(
            "compact: the traced network computes something else; does it overwrite a tensor that "
            "has two names (x += y where another variable is x, too)?"
        ) from error
    return traced, noise, expected


def _defaults(network: nn.Module) -> dict[str, Any]:
    """Return the arguments of the forward pass that are left out, with their defaults."""
    arguments = inspect.signature(network.forward).parameters.values()
    return {a.name: a.default for a in arguments if a.default is not inspect.Parameter.empty}


def _drop_defaults(graph: fx.Graph) -> None:
    """Leave the graph its first input alone; others have only checks of their values."""
    checks = graph.find_nodes(op="placeholder")[1:]
    for node in graph.nodes:
        before = node.all_input_nodes
        if before and all(operand in checks for operand in before):
            checks.append(node)
    for node in reversed(checks):
        graph.erase_node(node)


def _replacement(channels: Channels, node: fx.Node) -> nn.Module | None:
    """Return the smaller module in place of the one that ``node`` calls, or ``None``: leave it."""
    layer = channels.layer(node)
    if not isinstance(layer, _LAYERS):
        return None
    keep = channels.kept(node)
    source = node.all_input_nodes[0]
    inputs = channels.kept(source)
    unchanged = bool(keep.all()) and bool(inputs.all())  # also grouped layers, those used twice
    if unchanged or not bool(keep.any()):  # or nothing uses it any more
        return None
    if isinstance(layer, NORMS):
        return _norm(layer, keep.repeat_interleave(layer.num_features // len(keep)))
    if isinstance(layer, nn.Conv2d) and is_depthwise(layer):
        return _depthwise(layer, keep)
    if not bool(inputs.any()):
        return ConstantOutput(channels.values[node][0][keep])
    value = channels.values[source][0]
    folded = ~inputs & ~channels.live[source]
    smaller: Any = _linear if isinstance(layer, nn.Linear) else _convolution
    found: nn.Module = smaller(layer, inputs, keep, folded, value)
    return found


def _linear(
    layer: nn.Linear, inputs: Tensor, keep: Tensor, folded: Tensor, value: Tensor
) -> nn.Module:
    repeats = layer.in_features // len(inputs)
    inputs, folded = (bits.repeat_interleave(repeats) for bits in (inputs, folded))
    shift = (layer.weight[:, folded] @ value[folded])[keep]
    new = copy.deepcopy(layer)
    new.in_features, new.out_features = int(inputs.sum()), int(keep.sum())
    bias = None if layer.bias is None else layer.bias[keep]
    return _filled(new, layer.weight[keep][:, inputs], _sum(bias, shift))


def _convolution(
    layer: nn.Conv2d, inputs: Tensor, keep: Tensor, folded: Tensor, value: Tensor
) -> nn.Module:
    weight = layer.weight.detach()
    shift = F.conv2d(
        value[folded][None], weight[keep][:, folded], None, layer.stride, layer.padding,
        layer.dilation,
    )[0] if bool(folded.any()) else weight.new_zeros(int(keep.sum()), 1, 1)  # fmt: skip
    flat = shift.flatten(1)
    uniform = bool((flat.amax(1) - flat.amin(1) <= 1e-13 * flat.abs().amax(1)).all())
    bias = None if layer.bias is None else layer.bias[keep]
    new = copy.deepcopy(layer)
    new.in_channels, new.out_channels = int(inputs.sum()), int(keep.sum())
    new = _filled(new, weight[keep][:, inputs], _sum(bias, flat[:, 0]) if uniform else bias)
    return new if uniform else PlusMap(new, shift)


def _sum(bias: Tensor | None, shift: Tensor) -> Tensor | None:
    if not bool(shift.any()):
        return bias
    return shift if bias is None else bias + shift


def _depthwise(layer: nn.Conv2d, keep: Tensor) -> nn.Module:
    new = copy.deepcopy(layer)
    new.in_channels = new.out_channels = new.groups = int(keep.sum())
    return _filled(new, layer.weight[keep], None if layer.bias is None else layer.bias[keep])


def _norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, keep: Tensor) -> nn.Module:
    new = copy.deepcopy(layer)
    new.num_features = int(keep.sum())
    for name in ("running_mean", "running_var"):
        if getattr(layer, name) is not None:
            setattr(new, name, getattr(layer, name)[keep])
    for name in ("weight", "bias"):
        if getattr(layer, name) is not None:
            setattr(new, name, nn.Parameter(getattr(layer, name).detach()[keep]))
    return new


def _filled(new: Any, weight: Tensor, bias: Tensor | None) -> Any:
    new.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone())
    return new
