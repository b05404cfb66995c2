"""Positive surrogates of operations: what may depend on what, and what may be different from zero.

The surrogate of an operation is a function of tensors of zeros and ones (one: may be nonzero). Its
results are at least one where the operation's result may be nonzero, and zero elsewhere. It is a
sum of products of its operands with nonnegative coefficients, so nothing in it cancels: its
derivative with respect to an operand is positive exactly where the operation may carry a change of
that operand on.

- Affine operations, sums, pooling of any kind, and whatever moves entries: the sum of the entries
  that a result is made from. Additive biases and running means count as zero.
- Products of two signals (attention, gates): the product. Quotients: the numerator carries, the
  denominator modulates.
- Softmax, LayerNorm, GroupNorm: every result depends on every entry that it is normalised with.
- Elementwise functions: the sum of the operands, and nonzero everywhere if ``f(0)`` is not zero.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from pai.masking import moves
from pai.masking.moves import NotDefinedError, nonzero

aten = torch.ops.aten


def surrogate(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the surrogate of ``func`` at ``args``: a tensor, or a tuple of the leading results.

    Args:
        func: an operation of ATen.
        args: as of the operation; operands are zeros and ones in floating point, index tensors and
            Boolean masks that do not depend on the input have their values.
        kwargs: as of the operation.

    Raises:
        NotDefinedError: there is no rule for the operation.
    """
    if (packet := func.overloadpacket) in _RULES:
        return _RULES[packet](*args, **kwargs)
    if packet in _CONSTANTS:
        return (func(*args, **kwargs) != 0).float()
    if packet in _MOVES or func.is_view:
        return func(*args, **kwargs)
    if packet in _REDUCTIONS:
        named = _by_name(func, args, kwargs)
        out = named["self"].sum(named.get("dim"), keepdim=named.get("keepdim", False))
    elif torch.Tag.pointwise in func.tags or packet in _UNTAGGED_ELEMENTWISE:
        out = _elementwise(func, args, kwargs)
    else:
        raise NotDefinedError(f"the operation {func} has no rule")
    return (out,) if len(func._schema.returns) > 1 else out


def _by_name(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


def _elementwise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    zeros = tree_map(lambda a: torch.zeros(()) if isinstance(a, Tensor) else a, (args, kwargs))
    at_zero = tree_leaves(func(*zeros[0], **zeros[1]))[0]
    operands = [nonzero(a) for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
    out = sum(operands[1:], start=operands[0])
    return out + 1 if bool(at_zero != 0) else out


def _add(a: Any, b: Any, alpha: float = 1) -> Any:
    return nonzero(a) + nonzero(b) * nonzero(alpha)


def _rsub(a: Any, b: Any, alpha: float = 1) -> Any:
    return _add(b, a, alpha)


def _mul(a: Any, b: Any) -> Any:
    return nonzero(a) * nonzero(b)


def _div(a: Tensor, b: Any, rounding_mode: str | None = None) -> Any:
    del rounding_mode
    return nonzero(a) * (1 + nonzero(b))


def _addcmul(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Any:
    return _add(x, _mul(a, b), value)


def _addcdiv(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Any:
    return _add(x, _div(a, b), value)


def _lerp(a: Tensor, b: Tensor, weight: Any) -> Any:
    return nonzero(a) + nonzero(weight) * (nonzero(a) + nonzero(b))


def _addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Any:
    return nonzero(beta) * bias + nonzero(alpha) * (a @ b)


def _product(x: Tensor, dim: int | None = None, keepdim: bool = False, **options: Any) -> Tensor:
    del options
    return x.prod() if dim is None else x.prod(dim, keepdim)


def _logsumexp(x: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
    """The logarithm of their number if all are zero: nonzero unless each is alone."""
    out = x.sum(dim, keepdim=keepdim)
    return out + float(out.numel() != x.numel())


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Any:
    del bias
    return aten.convolution.default(x, weight, None, *geometry)


def _scaled(x: Tensor, weight: Tensor | None, axis: int = 1) -> Tensor:
    if weight is None:
        return x
    shape = [1] * x.ndim
    shape[axis] = -1
    return x * weight.reshape(shape)


def _mixed(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Everything along ``dims`` depends on everything; a single entry is normalised away."""
    total = x.sum(list(dims), keepdim=True).expand_as(x)
    return total * float(total.numel() != x.sum(list(dims)).numel())


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Any, mean: Any, var: Any, training: bool, *rest: Any
) -> tuple[Tensor]:
    del bias, mean, var, rest
    if training:
        x = _mixed(x, [axis for axis in range(x.ndim) if axis != 1])
    return (_scaled(x, weight),)


def _batch_norm_without_training(
    x: Tensor, weight: Tensor | None, bias: Any, mean: Any, var: Any, *rest: Any
) -> tuple[Tensor]:
    return _batch_norm(x, weight, bias, mean, var, False, *rest)


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Any, eps: float
) -> tuple[Tensor]:
    del bias, eps
    out = _mixed(x, range(x.ndim - len(shape), x.ndim))
    return (out if weight is None else out * weight,)


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Any, n: int, c: int, hw: int, groups: int, eps: float
) -> tuple[Tensor]:
    del bias, eps, c, hw
    out = _mixed(x.reshape(n, groups, -1), [2]).reshape(x.shape)
    return (_scaled(out, weight),)


def _softmax(x: Tensor, dim: int, *rest: Any, **options: Any) -> Tensor:
    del rest, options
    return _mixed(x, [dim]) + 1


def _pool(dimensions: int) -> Callable[..., tuple[Tensor]]:
    total: Any = {2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}[dimensions]

    def pool(
        x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> tuple[Tensor]:  # fmt: skip
        if any(step != 1 for step in tree_leaves(dilation)):
            raise NotDefinedError("max pooling with dilation has no rule")
        padding = padding if isinstance(padding, Sequence) else [padding]
        return (total(x, kernel, stride, padding, ceil_mode, True, 1),)

    return pool


def _average_pool(dimensions: int) -> Callable[..., Tensor]:
    pool = _pool(dimensions)

    def average(
        x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
        *rest: Any,
    ) -> Tensor:  # fmt: skip
        del rest
        return pool(x, kernel, stride, padding, 1, ceil_mode)[0]

    return average


def _adaptive(pool: Callable[..., Tensor], axes: int) -> Callable[..., Tensor]:
    def adaptive(x: Tensor, size: Any) -> Tensor:
        return pool(x, size) * x[(0,) * (x.ndim - axes)].numel()  # an average of at most so many

    return adaptive


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    signal, gate = x.chunk(2, dim)
    return signal * (1 + gate)


_RULES: dict[Any, Callable[..., Any]] = {
    aten.add: _add, aten.sub: _add, aten.rsub: _rsub, aten.mul: _mul, aten.div: _div,
    aten.addcmul: _addcmul, aten.addcdiv: _addcdiv, aten.lerp: _lerp, aten.prod: _product,
    aten.logsumexp: _logsumexp,
    aten.mm: torch.mm, aten.bmm: torch.bmm, aten.mv: torch.mv, aten.dot: torch.dot,
    aten.addmm: _addmm, aten.baddbmm: _addmm, aten.addmv: _addmm,
    aten.convolution: _convolution, aten.embedding: moves.embedding,
    aten.native_batch_norm: _batch_norm, aten.cudnn_batch_norm: _batch_norm,
    aten.miopen_batch_norm: _batch_norm, aten._native_batch_norm_legit: _batch_norm,
    aten._native_batch_norm_legit_no_training: _batch_norm_without_training,
    aten.native_layer_norm: _layer_norm, aten.native_group_norm: _group_norm,
    aten._softmax: _softmax, aten._safe_softmax: _softmax, aten._log_softmax: _softmax,
    aten.max_pool2d_with_indices: _pool(2), aten.max_pool3d_with_indices: _pool(3),
    aten.avg_pool2d: _average_pool(2), aten.avg_pool3d: _average_pool(3),
    aten._adaptive_avg_pool2d: _adaptive(F.adaptive_avg_pool2d, 2),
    aten._adaptive_avg_pool3d: _adaptive(F.adaptive_avg_pool3d, 3),
    aten.where: moves.where, aten.masked_fill: moves.masked_fill,
    aten.index: moves.index, aten.index_put: moves.index_put,
    aten.index_add: moves.index_add, aten.gather: moves.gather, aten.scatter: moves.scatter,
    aten.scatter_add: moves.scatter_add, aten.scatter_reduce: moves.scatter_reduce,
    aten.as_strided: moves.as_strided, aten.as_strided_: moves.as_strided,
    aten.view: moves.reshape, aten._unsafe_view: moves.reshape, aten.constant_pad_nd: moves.pad,
    aten.glu: _glu, aten.copy: moves.copy, aten.fill: moves.copy,
    **dict.fromkeys((
        aten._to_copy, aten.clone, aten.lift_fresh_copy, aten._conj, aten.contiguous,
        aten.leaky_relu, aten.prelu, aten._prelu_kernel,
    ), moves.same),
}  # fmt: skip
_REDUCTIONS = {
    aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.std,
    aten.linalg_vector_norm, aten.any, aten.all,
}  # fmt: skip
_UNTAGGED_ELEMENTWISE = {aten.hardswish, aten.log_sigmoid_forward, aten.celu, aten.rrelu}
_CONSTANTS = {
    aten.full_like, aten.zeros_like, aten.ones_like, aten.new_zeros, aten.new_ones, aten.new_full,
}  # fmt: skip
_MOVES = {
    aten.cat, aten.stack, aten.roll, aten.flip, aten.repeat, aten.index_select,
    aten.pixel_shuffle, aten.pixel_unshuffle, aten.im2col, aten.upsample_nearest1d,
    aten.upsample_nearest2d, aten.upsample_nearest3d, aten.tril, aten.triu, aten.cumsum,
    aten.reflection_pad1d, aten.reflection_pad2d, aten.replication_pad2d, aten.slice_scatter,
    aten.select_scatter, aten.diagonal_scatter, aten.col2im, aten._reshape_copy, aten.view_copy,
}  # fmt: skip
