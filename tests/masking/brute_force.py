"""Effective weights by changing entries one by one: truth for small networks.

For every linear layer and convolution: which entries of its input vary with the network's input,
and which entries of its output, changed by hand, change the network's output. A kept weight is
effective if it multiplies a varying entry somewhere and the result is such an entry.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def effective_by_brute_force(
    model: nn.Module, mask: Mapping[str, Tensor], inputs: Tensor
) -> dict[str, Tensor]:
    """``model`` in float64 with zero biases, already pruned; ``inputs`` two different samples."""
    modules = dict(model.named_modules())
    return {
        name: keep & _connected(model, modules[name.removesuffix(".weight")], keep, inputs)
        for name, keep in mask.items()
    }


def _connected(model: nn.Module, layer: nn.Module, keep: Tensor, inputs: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, args, out: seen.extend((args[0], out)))
    with torch.no_grad():
        reference = model(inputs)
    hook.remove()
    varies = seen[0][0] != seen[0][1]
    audible = torch.zeros(seen[1][0].shape, dtype=torch.bool)
    for position in itertools.product(*map(range, audible.shape)):

        def change(module: Any, args: Any, out: Tensor, at: Any = position) -> Tensor:
            out = out.clone()
            out[(slice(None), *at)] += 0.37
            return out

        hook = layer.register_forward_hook(change)
        with torch.no_grad():
            moved = (model(inputs) - reference).abs().max()
        hook.remove()
        audible[position] = moved > 1e-13
    if isinstance(layer, nn.Linear):
        rows, columns = audible.reshape(-1, keep.shape[0]), varies.reshape(-1, keep.shape[1])
        return torch.einsum("po,pi->oi", rows.double(), columns.double()) > 0
    assert isinstance(layer, nn.Conv2d)
    weight = torch.ones_like(keep, dtype=torch.float64, requires_grad=True)
    seen_by, padding = varies[None].double(), layer.padding
    if layer.padding_mode != "zeros":
        around = layer._reversed_padding_repeated_twice
        seen_by, padding = F.pad(seen_by, around, layer.padding_mode), (0, 0)
    out = F.conv2d(
        seen_by, weight, None, layer.stride, padding, layer.dilation, layer.groups
    )  # fmt: skip
    (total,) = torch.autograd.grad((out * audible).sum(), weight)
    return total > 0.5
