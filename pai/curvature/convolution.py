"""Convolutions whose second derivatives cost what first ones do.

Legend: x input, w weight, y = x * w output, gy the gradient at y; v. tangents of first derivatives.

torch differentiates its convolution's backward pass by transposing batch and channels, which leaves
the fast kernels. The same terms are themselves convolutions and parts of a convolution's backward
pass: of ``gx = B_x(gy, w)`` and ``gw = B_w(gy, x)``, with tangents ``vx`` and ``vw``,

    d/d gy = vx * w + x * vw        d/d x = B_x(gy, vw)        d/d w = B_w(gy, vx).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
"""How many spatial axes each has."""

_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class _Options:
    """Stride, padding, dilation, groups of a convolution: all that is no tensor."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        none = (0,) * len(self.stride)
        return torch.ops.aten.convolution(
            x, w, b, self.stride, self.padding, self.dilation, False, none, self.groups
        )

    def backward(
        self, gy: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, bool, bool]
    ) -> _Gradients:
        none = (0,) * len(self.stride)
        return torch.ops.aten.convolution_backward(
            gy, x, w, [w.shape[0]], self.stride, self.padding, self.dilation, False, none,
            self.groups, wanted,
        )  # fmt: skip


class _Convolution(torch.autograd.Function):
    """``x * w + b``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, options: _Options) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.options = options
        return options.forward(x, w, b)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gy,) = gradients
        x, w = ctx.saved_tensors
        return *_Backward.apply(gy, x, w, ctx.options, ctx.needs_input_grad[:3]), None


class _Backward(torch.autograd.Function):
    """``gy, x, w -> gx, gw, gb``."""

    @staticmethod
    def forward(
        ctx: Any, gy: Tensor, x: Tensor, w: Tensor, options: _Options,
        wanted: tuple[bool, bool, bool],
    ) -> _Gradients:  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gy, x, w)
        ctx.options = options
        return options.backward(gy, x, w, wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None, vb: Tensor | None) -> Any:
        gy, x, w = ctx.saved_tensors
        options = ctx.options
        at_gy: Tensor | None = None
        at_x: Tensor | None = None
        at_w: Tensor | None = None
        if vx is not None:
            at_gy = options.forward(vx, w)
            if ctx.needs_input_grad[2]:
                at_w = options.backward(gy, vx, w, (False, True, False))[1]
        if vw is not None:
            term = options.forward(x, vw)
            at_gy = term if at_gy is None else at_gy.add_(term)
            if ctx.needs_input_grad[1]:
                at_x = options.backward(gy, x, vw, (True, False, False))[0]
        if vb is not None:
            term = vb.view(-1, *[1] * len(options.stride)).expand_as(gy)
            at_gy = term if at_gy is None else at_gy.add_(term)
        return at_gy, at_x, at_w, None, None


class FastSecondDerivatives(TorchFunctionMode):
    """Convolutions that are computed in the block have second derivatives of fast kernels.

    What is left to torch: padding by name, inputs without an axis of samples, ``torch.func``
    transforms and autocast.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS:
            found = _read(_CONVOLUTIONS[func], *args, **kwargs)
            if found is not None:
                return _Convolution.apply(*found)
        return func(*args, **kwargs)


def _read(
    axes: int, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, _Options] | None:  # fmt: skip
    """Return the arguments of :class:`_Convolution`, ``None`` if it is not for them."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    if (
        isinstance(padding, str)
        or input.ndim != axes + 2
        or torch.is_autocast_enabled(input.device.type)
        or wrapped(input)
        or wrapped(weight)
    ):
        return None
    sides = [
        tuple(value) if len(tuple(value)) == axes else tuple(value) * axes
        for value in ([one] if isinstance(one, int) else one for one in (stride, padding, dilation))
    ]
    return input, weight, bias, _Options(sides[0], sides[1], sides[2], groups)
