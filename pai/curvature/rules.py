"""Per-sample weight gradients of single layers, as products of two factors.

Legend: B samples, O out, I in, G groups, K kernel positions, D = I/G * K, L output positions
(pixels, tokens). The gradient of sample b's loss is ``A_b U_b^T`` for each group, with the outer
factor ``A [B, G, O/G, L]`` and the inner factor ``U [B, G, D, L]``. A weight that is used twice has
the factors of both uses side by side along L.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Factor = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a layer, its input and the gradient at its output to one of the two factors."""


@dataclass(frozen=True)
class Rule:
    """The two factors of a layer type's per-sample gradients.

    ``input_axes``: how many axes the input may have, the samples' being the first. ``reusable``:
    the inner factor depends on the input alone, so that it can be made once for the gradients of
    several functions. ``real_inputs``: they have the type of the weight.
    """

    outer: Factor
    inner: Factor
    input_axes: range
    reusable: bool = True
    real_inputs: bool = True


def _positions(module: nn.Module, inputs: Tensor, grad_outputs: Tensor) -> Tensor:
    return grad_outputs.reshape(len(grad_outputs), 1, -1, grad_outputs.shape[-1]).transpose(2, 3)


def _features(module: nn.Module, inputs: Tensor, grad_outputs: Tensor) -> Tensor:
    return inputs.reshape(len(inputs), 1, -1, inputs.shape[-1]).transpose(2, 3)


def _pixels(module: nn.Module, inputs: Tensor, grad_outputs: Tensor) -> Tensor:
    conv = cast(nn.Conv2d, module)
    return grad_outputs.flatten(2).unflatten(1, (conv.groups, -1))


def _patches(module: nn.Module, inputs: Tensor, grad_outputs: Tensor) -> Tensor:
    conv = cast(nn.Conv1d | nn.Conv2d, module)
    image = padded(conv, inputs)
    if isinstance(conv, nn.Conv1d):
        image = image.unsqueeze(2)  # of one row
    return unfold(image, *geometry(conv)).unflatten(1, (conv.groups, -1))


def _one_hot(module: nn.Module, inputs: Tensor, grad_outputs: Tensor) -> Tensor:
    embedding = cast(nn.Embedding, module)
    tokens = inputs.reshape(len(inputs), 1, 1, -1)
    rows = torch.arange(embedding.num_embeddings, device=inputs.device)[:, None]
    hot = tokens == rows
    if embedding.padding_idx is not None:
        hot[:, :, embedding.padding_idx] = False
    return hot.to(grad_outputs.dtype)


_ANY = 100  # axes, more than there ever are
_LINEAR = Rule(outer=_positions, inner=_features, input_axes=range(2, _ANY))

RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _LINEAR,
    nn.modules.linear.NonDynamicallyQuantizableLinear: _LINEAR,  # in nn.MultiheadAttention
    nn.Conv1d: Rule(outer=_pixels, inner=_patches, input_axes=range(3, 4)),
    nn.Conv2d: Rule(outer=_pixels, inner=_patches, input_axes=range(4, 5)),
    nn.Embedding: Rule(
        outer=_one_hot,
        inner=_positions,
        input_axes=range(1, _ANY),
        reusable=False,
        real_inputs=False,
    ),
}


def unfold(
    images: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Return what ``F.unfold`` returns, ``[B, I * K, L]``, several times faster on a CPU."""
    batch, channels, *sides = images.shape
    outputs = [
        (side - d * (k - 1) - 1) // s + 1
        for side, k, s, d in zip(sides, kernel, stride, dilation, strict=True)
    ]
    steps = images.stride()
    windows = images.as_strided(
        (batch, channels, *kernel, *outputs),
        (
            *steps[:2], dilation[0] * steps[2], dilation[1] * steps[3],
            stride[0] * steps[2], stride[1] * steps[3],
        ),
    )  # fmt: skip
    return windows.reshape(batch, channels * kernel[0] * kernel[1], outputs[0] * outputs[1])


def padded(conv: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """Pad as the layer does: numbers and ``"same"``, with zeros or any other padding mode."""
    if conv.padding_mode != "zeros":  # the layer pads by what it was built with
        widths: list[int] = conv._reversed_padding_repeated_twice
        return F.pad(inputs, widths, mode=conv.padding_mode)
    widths = [width for pair in reversed(_zeros(conv)) for width in pair]
    return F.pad(inputs, widths) if any(widths) else inputs


def _zeros(conv: nn.Conv1d | nn.Conv2d) -> list[tuple[int, int]]:
    """Return how many zeros a layer puts before and behind each axis."""
    if conv.padding == "same":
        reach = zip(sides(conv, "kernel_size"), sides(conv, "dilation"), strict=True)
        totals = [dilation * (kernel - 1) for kernel, dilation in reach]
        return [(total // 2, total - total // 2) for total in totals]
    if conv.padding == "valid":
        return [(0, 0)] * len(sides(conv, "kernel_size"))
    return [(width, width) for width in sides(conv, "padding")]


_Pair = tuple[int, int]


def geometry(conv: nn.Conv1d | nn.Conv2d) -> tuple[_Pair, _Pair, _Pair]:
    """Return kernel, stride and dilation in rows and columns; ``nn.Conv1d`` sees one row."""

    def pair(option: str) -> _Pair:
        *rows, columns = sides(conv, option)
        return rows[0] if rows else 1, columns

    return pair("kernel_size"), pair("stride"), pair("dilation")


def sides(conv: nn.Conv1d | nn.Conv2d, option: str) -> tuple[int, ...]:
    """Return an option of a layer for each axis; set after construction, it can be one number."""
    value = getattr(conv, option)
    axes = conv.weight.ndim - 2
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * axes if len(numbers) == 1 else numbers


def rule_for(module: nn.Module) -> Rule | None:
    """Return the rule of a layer's type, or of the type whose forward pass it has inherited."""
    for kind in type(module).__mro__:
        if kind in RULES:
            same = all(
                getattr(type(module), name, None) is getattr(kind, name, None)
                for name in ("forward", "_conv_forward")
            )
            return RULES[kind] if same else None
    return None
