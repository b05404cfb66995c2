"""Surrogates of operations that choose, place and move entries (:mod:`pai.masking.surrogates`)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten


class NotDefinedError(ValueError):
    """The network contains an operation whose dependencies are not known."""


def nonzero(value: Any) -> Any:
    """Return 1 or 0 for a number; floating-point tensors are zeros and ones already."""
    if not isinstance(value, Tensor):
        return float(value != 0)
    return value if value.is_floating_point() else (value != 0).float()


def _check(what: str, *positions: Tensor | None) -> None:
    if any(index is not None and index.is_floating_point() for index in positions):
        raise NotDefinedError(f"{what} positions that depend on the input has no rule")


def where(condition: Tensor, a: Any, b: Any) -> Tensor:
    """Return the entries of one or the other; of both where the condition is the input's."""
    a, b = nonzero(a), nonzero(b)
    if condition.dtype == torch.bool:  # the same for every input
        return torch.where(condition, a, b)
    return condition + a + b


def masked_fill(x: Tensor, condition: Tensor, value: Any) -> Tensor:
    """Return ``x`` with a value in some places."""
    return where(condition, value, x)


def embedding(weight: Tensor, tokens: Tensor, *rest: Any, **options: Any) -> Tensor:
    """Return rows of a weight; a floating-point token is, or depends on, the input."""
    del rest, options
    if tokens.is_floating_point():
        return tokens[..., None].expand(*tokens.shape, weight.shape[1])
    return weight[tokens]


def index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Return entries of ``x``."""
    _check("indexing with", *indices)
    out: Tensor = aten.index.Tensor(x, indices)
    return out


def index_put(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    """Return ``x`` with values in, or added to, some places."""
    _check("indexing with", *indices)
    out: Tensor = aten.index_put.default(x, indices, nonzero(values).to(x), accumulate)
    return out


def index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, alpha: float = 1) -> Tensor:
    """Return ``x`` with slices added to some of its slices."""
    _check("scattering to", index)
    return x.index_add(dim, index, source * nonzero(alpha))


def gather(x: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """Return entries of ``x`` along an axis."""
    del sparse_grad
    _check("gathering from", index)
    return x.gather(dim, index)


def scatter(
    x: Tensor, dim: int, index: Tensor, source: Any, *, reduce: str | None = None
) -> Tensor:
    """Return ``x`` with values in some places of an axis."""
    _check("scattering to", index)
    if reduce is not None:
        raise NotDefinedError("scatter with a reduction has no rule")
    return x.scatter(dim, index, nonzero(source))


def scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Return ``x`` with values added in some places of an axis."""
    return scatter_reduce(x, dim, index, source, "sum")


def scatter_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Return sums, or products, of what comes together; means and maxima are like sums."""
    _check("scattering to", index)
    how = "prod" if reduce == "prod" else "sum"
    return x.scatter_reduce(dim, index, source, how, include_self=include_self)


def pad(x: Tensor, around: list[int], value: float = 0) -> Tensor:
    """Return ``x`` with a value around it."""
    return F.pad(x, around, value=float(value != 0))


def copy(out: Tensor, source: Any, *rest: Any) -> Tensor:
    """Return what is written over ``out``."""
    del rest
    return torch.as_tensor(nonzero(source), device=out.device).expand_as(out)


def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """Return a view, also of results that lie in memory differently."""
    return x.reshape(shape)


def as_strided(x: Tensor, size: list[int], *rest: Any) -> Tensor:
    """Return ``x`` where at most the strides of axes of length one are renamed."""
    del rest
    if list(x.shape) != list(size) or sum(length > 1 for length in size) > 1:
        raise NotDefinedError("as_strided that does more than rename strides has no rule")
    return x


def same(x: Tensor, *rest: Any, **options: Any) -> Tensor:
    """Return ``x``: a copy, another type, a function that is zero at zero."""
    del rest, options
    return x
