"""Per-sample weight gradients of single layers, as products of two factors.

Legend: B samples, O out, I in, G groups, K kernel positions, D = I/G * K, L output positions
(pixels, tokens). The gradient of sample b's loss is ``A_b U_b^T`` for each group, where
``A [B, G, O/G, L]`` comes from the gradient at the layer's output and ``U [B, G, D, L]`` from its
input. A weight that is used twice has the factors of both uses side by side along L.
"""

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

Factors = tuple[Tensor, Tensor]
Rule = Callable[[nn.Module, Tensor, Tensor], Factors]


def linear(module: nn.Module, inputs: Tensor, grad_outputs: Tensor) -> Factors:
    """``nn.Linear``: A is the output's gradient, U the input; axes between are positions."""
    x = inputs.reshape(len(inputs), 1, -1, inputs.shape[-1])
    grad = grad_outputs.reshape(len(grad_outputs), 1, -1, grad_outputs.shape[-1])
    return grad.transpose(2, 3), x.transpose(2, 3)


def conv2d(module: nn.Module, inputs: Tensor, grad_outputs: Tensor) -> Factors:
    """``nn.Conv2d`` of any geometry: U are the unfolded patches."""
    conv = cast(nn.Conv2d, module)
    return _convolution(
        conv, _padded(conv, inputs), grad_outputs,
        _pair(conv.kernel_size), _pair(conv.stride), _pair(conv.dilation),
    )  # fmt: skip


def conv1d(module: nn.Module, inputs: Tensor, grad_outputs: Tensor) -> Factors:
    """``nn.Conv1d``: an image of one row."""
    conv = cast(nn.Conv1d, module)
    return _convolution(
        conv, _padded(conv, inputs).unsqueeze(2), grad_outputs,
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
) -> Factors:
    grad = grad_outputs.flatten(2).unflatten(1, (conv.groups, -1))
    return grad, _patches(padded, kernel, stride, dilation).unflatten(1, (conv.groups, -1))


def _patches(
    padded: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Return what ``F.unfold`` returns, ``[B, I * K, L]``, several times faster on a CPU."""
    batch, channels, *sides = padded.shape
    outputs = [
        (side - d * (k - 1) - 1) // s + 1
        for side, k, s, d in zip(sides, kernel, stride, dilation, strict=True)
    ]
    steps = padded.stride()
    windows = padded.as_strided(
        (batch, channels, *kernel, *outputs),
        (
            *steps[:2], dilation[0] * steps[2], dilation[1] * steps[3],
            stride[0] * steps[2], stride[1] * steps[3],
        ),
    )  # fmt: skip
    return windows.reshape(batch, channels * kernel[0] * kernel[1], outputs[0] * outputs[1])


def _padded(conv: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """Pad as the layer does: numbers and ``"same"``, with zeros or any other padding mode."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    widths: list[int] = conv._reversed_padding_repeated_twice
    return F.pad(inputs, widths, mode=mode) if any(widths) else inputs


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]
