"""Per-sample weight gradients of single layers from the layer's input and output gradient.

Legend: B samples, O out, I in, G groups, K kernel positions, L output positions (pixels, tokens).
Every rule returns ``[B, *weight.shape]``: the gradient of sample b's loss, for each b.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rule = Callable[[nn.Module, Tensor, Tensor], Tensor]


def linear(module: nn.Module, inputs: Tensor, grad_outputs: Tensor) -> Tensor:
    """``G_boi = sum_l grad_blo x_bli`` for ``nn.Linear``, with any number of axes between."""
    x = inputs.reshape(len(inputs), -1, inputs.shape[-1])
    grad = grad_outputs.reshape(len(grad_outputs), -1, grad_outputs.shape[-1])
    return torch.bmm(grad.transpose(1, 2), x)


def conv2d(module: nn.Module, inputs: Tensor, grad_outputs: Tensor) -> Tensor:
    """``G_bgoik = sum_l grad_bgol unfold(x)_bgikl`` for ``nn.Conv2d`` of any geometry."""
    conv = cast(nn.Conv2d, module)
    return _convolution(
        conv, _padded(conv, inputs), grad_outputs,
        _pair(conv.kernel_size), _pair(conv.stride), _pair(conv.dilation),
    )  # fmt: skip


def conv1d(module: nn.Module, inputs: Tensor, grad_outputs: Tensor) -> Tensor:
    """Apply the rule of :func:`conv2d` to ``nn.Conv1d``, an image of one row."""
    conv = cast(nn.Conv1d, module)
    return _convolution(
        conv, _padded(conv, inputs).unsqueeze(2), grad_outputs.unsqueeze(2),
        (1, conv.kernel_size[0]), (1, conv.stride[0]), (1, conv.dilation[0]),
    )  # fmt: skip


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear, nn.Conv1d: conv1d, nn.Conv2d: conv2d,
}  # fmt: skip


def _convolution(
    conv: nn.Conv1d | nn.Conv2d,
    padded: Tensor,
    grad_outputs: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    batch, groups = len(padded), conv.groups
    columns = F.unfold(padded, kernel, dilation=dilation, stride=stride)
    columns = columns.reshape(batch * groups, -1, columns.shape[-1])
    grad = grad_outputs.reshape(batch * groups, conv.out_channels // groups, -1)
    return torch.bmm(grad, columns.transpose(1, 2)).view(batch, *conv.weight.shape)


def _padded(conv: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """Pad as the layer does: numbers and ``"same"``, with zeros or any other padding mode."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    widths: list[int] = conv._reversed_padding_repeated_twice
    return F.pad(inputs, widths, mode=mode) if any(widths) else inputs


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]
