"""Surrogates by their definition: which results may be nonzero, and which changes are carried on.

Each operation is given operands with zeros in random places and random numbers elsewhere, again
and again: a result that is ever different from zero may be nonzero, and a derivative that is ever
different from zero carries a change. Unlike networks (``test_surrogates.py``), this judges sums
over all axes and operands that are given by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from pai.masking.moves import NotDefinedError
from pai.masking.surrogates import surrogate

aten = torch.ops.aten
COLUMNS, ROWS = torch.tensor([0, 2, 2]), torch.arange(2)[:, None]
PLACES = torch.tensor([[0, 1, 1], [2, 2, 0]])
APART = torch.tensor([[0, 1, 3], [2, 1, 0]])
SHAPE = (2, 3)


@dataclass(frozen=True)
class Case:
    """An operation, shapes of its operands, what comes after them, what is given by name."""

    func: Any
    shapes: tuple[tuple[int, ...], ...] = (SHAPE,)
    rest: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)
    after: int = 1  # operands that stand before the rest

    def arguments(self, operands: tuple[Tensor, ...]) -> tuple[Any, ...]:
        return (*operands[: self.after], *self.rest, *operands[self.after :])


def pair(func: Any, *rest: Any, wide: int = 3, **named: Any) -> Case:
    """An operation on a matrix and on what is written, or added, to places in it."""
    return Case(func, ((2, 4), (2, wide)), rest, named)


def three(func: Any, *shapes: tuple[int, ...], **named: Any) -> Case:
    """An operation of three operands."""
    return Case(func, shapes or (SHAPE,) * 3, (), named)


CASES: dict[str, Case] = {
    "sum": Case(aten.sum.default),
    "sum over an empty list of axes": Case(aten.sum.dim_IntList, rest=([],)),
    "sum over no axes that are named": Case(aten.sum.dim_IntList, rest=(None,)),
    "sum, by name": Case(aten.sum.dim_IntList, named={"dim": [1], "keepdim": True}),
    "sum that keeps the axis": Case(aten.sum.dim_IntList, rest=([1], True)),
    "mean": Case(aten.mean.default),
    "mean, by name": Case(aten.mean.dim, named={"dim": [0]}),
    "product": Case(aten.prod.dim_int, rest=(1,)),
    "product that keeps the axis": Case(aten.prod.dim_int, rest=(1, True)),
    "product of all": Case(aten.prod.default),
    "logsumexp": Case(aten.logsumexp.default, rest=([1],)),
    "logsumexp that keeps the axis": Case(aten.logsumexp.default, rest=([1], True)),
    "logsumexp of one": Case(aten.logsumexp.default, ((3, 1),), ([1],)),
    "plus": Case(aten.add.Tensor, (SHAPE,) * 2, named={"alpha": 2}),
    "plus nothing": Case(aten.add.Tensor, (SHAPE,) * 2, named={"alpha": 0}),
    "minus": Case(aten.sub.Tensor, (SHAPE,) * 2),
    "number minus": Case(aten.rsub.Scalar, rest=(1, 2)),
    "number minus nothing": Case(aten.rsub.Scalar, rest=(1, 0)),
    "zero minus": Case(aten.rsub.Scalar, rest=(0,)),
    "times zero": Case(aten.mul.Scalar, rest=(0,)),
    "addcmul": three(aten.addcmul.default, value=2),
    "addcmul, once": three(aten.addcmul.default),
    "addcmul of nothing": three(aten.addcmul.default, value=0),
    "lerp": three(aten.lerp.Tensor),
    "lerp by a number": Case(aten.lerp.Scalar, (SHAPE,) * 2, (0.3,), after=2),
    "lerp by zero": Case(aten.lerp.Scalar, (SHAPE,) * 2, (0.0,), after=2),
    "clamp to what is far away": Case(aten.clamp.default, rest=(-9, 9)),
    "clamp, by name": Case(aten.clamp.default, named={"min": -9}),
    "sigmoid": Case(aten.sigmoid.default),
    "maximum": Case(aten.maximum.default, (SHAPE,) * 2),
    "minimum": Case(aten.minimum.default, (SHAPE,) * 2),
    "addmm": three(aten.addmm.default, (2, 2), (2, 3), (3, 2)),
    "addmm, twice": three(aten.addmm.default, (2, 2), (2, 3), (3, 2), alpha=2),
    "addmm without the first": three(aten.addmm.default, (2, 2), (2, 3), (3, 2), beta=0),
    "addmm without the product": three(aten.addmm.default, (2, 2), (2, 3), (3, 2), alpha=0),
    "addmv": three(aten.addmv.default, (2,), (2, 3), (3,)),
    "index_put": pair(aten.index_put.default, [ROWS, COLUMNS[[0, 1]]], wide=2),
    "index_put that adds": pair(aten.index_put.default, [ROWS, COLUMNS], accumulate=True),
    "index_add": pair(aten.index_add.default, 1, COLUMNS),
    "index_add, twice": pair(aten.index_add.default, 1, COLUMNS, alpha=2),
    "index_add of nothing": pair(aten.index_add.default, 1, COLUMNS, alpha=0),
    "scatter": pair(aten.scatter.src, 1, APART),
    "scatter a number": Case(aten.scatter.value, ((2, 4),), (1, APART, 2.0)),
    "scatter zeros": Case(aten.scatter.value, ((2, 4),), (1, APART, 0.0)),
    "scatter_add": pair(aten.scatter_add.default, 1, PLACES),
    "gather": Case(aten.gather.default, ((2, 4),), (1, PLACES)),
    "slice_scatter": Case(aten.slice_scatter.default, ((2, 4), SHAPE), (1, 0, 3), after=2),
    "slice_scatter, by name": Case(
        aten.slice_scatter.default, ((2, 4), SHAPE), named={"dim": 1, "end": 3}
    ),
    "diagonal_scatter": Case(aten.diagonal_scatter.default, ((3, 3), (3,))),
    "embedding": Case(aten.embedding.default, ((3, 2),), (PLACES,)),
    "cumsum": Case(aten.cumsum.default, rest=(1,)),
    "roll": Case(aten.roll.default, rest=([1], [1])),
}  # fmt: skip


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """Each of the operations."""
    found: Case = request.param
    return found


def operands(case: Case, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Zeros and ones in random places."""
    return tuple((torch.rand(s, generator=generator) < 0.5).double() for s in case.shapes)


def truth(
    op: Callable[..., Tensor], ones: tuple[Tensor, ...], generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Which results, and which derivatives in which operand, are nonzero in one of twelve draws."""
    values: Tensor | None = None
    slopes: list[Tensor] = []
    for _ in range(12):
        drawn = tuple(
            one * (3 * torch.rand(one.shape, generator=generator, dtype=one.dtype) - 1.5)
            for one in ones
        )
        value = op(*drawn).abs() > 1e-12
        slope = [part.abs() > 1e-12 for part in jacobian(op, drawn)]
        values = value if values is None else values | value
        slopes = [a | b for a, b in zip(slopes, slope, strict=True)] if slopes else slope
    assert values is not None
    return values, slopes


def test_results_and_derivatives_are_positive_where_those_of_the_operation_can_differ_from_zero(
    case: Case,
) -> None:
    def op(*parts: Tensor) -> Tensor:
        out: Tensor = case.func(*case.arguments(parts), **case.named)
        return out

    def positive(*parts: Tensor) -> Tensor:
        out: Tensor = surrogate(case.func, case.arguments(parts), dict(case.named))
        return out

    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        ones = operands(case, generator)
        values, slopes = truth(op, ones, generator)
        found = positive(*ones)
        assert torch.equal(found != 0, values) and not bool((found[values] < 1).any())
        for slope, expected in zip(jacobian(positive, ones), slopes, strict=True):
            assert bool((slope >= 0).all()) and torch.equal(slope > 0, expected)


def test_a_quotient_in_a_sum_counts_where_its_numerator_does() -> None:
    for bits in range(8):
        x, a, b = (torch.full((2,), float(bits >> k & 1), requires_grad=True) for k in range(3))
        out = surrogate(aten.addcdiv.default, (x, a, b), {"value": 2})
        assert torch.equal(out > 0, (x + a) > 0)
        assert torch.equal(surrogate(aten.addcdiv.default, (x, a, b), {"value": 0}), x)
        slopes = torch.autograd.grad(out.sum(), (x, a, b))
        for slope, wanted in zip(slopes, (torch.ones(2), torch.ones(2), a), strict=True):
            assert torch.equal(slope > 0, wanted > 0)


@pytest.mark.parametrize("how", ["sum", "mean", "amax", "amin", "prod"])
@pytest.mark.parametrize("include_self", [True, False])
def test_what_is_reduced_in_places_is_a_sum_or_a_product(how: str, include_self: bool) -> None:
    x, source = torch.tensor([[1.0, 0, 1, 1]]), torch.tensor([[1.0, 1, 0]])
    index = torch.tensor([[0, 1, 2]])
    found = surrogate(
        aten.scatter_reduce.two, (x, 1, index, source, how), {"include_self": include_self}
    )
    together = x[:, :3] * source if how == "prod" else x[:, :3] + source
    expected = together if include_self else source
    assert torch.equal(found > 0, torch.cat([expected, x[:, 3:]], 1) > 0)


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (aten.index.Tensor, "indexing with"), (aten.index_put.default, "indexing with"),
        (aten.index_add.default, "scattering to"), (aten.scatter.src, "scattering to"),
        (aten.scatter_add.default, "scattering to"), (aten.scatter_reduce.two, "scattering to"),
        (aten.gather.default, "gathering from"),
    ],
    ids=str,
)  # fmt: skip
def test_positions_that_depend_on_the_input_have_no_rule(func: Any, words: str) -> None:
    x, source, places = torch.ones(2, 4), torch.ones(2, 3), torch.ones(2, 3)
    arguments: dict[Any, tuple[Any, ...]] = {
        aten.index.Tensor: (x, [None, places]),
        aten.index_put.default: (x, [None, places], source),
        aten.gather.default: (x, 1, places),
        aten.scatter_reduce.two: (x, 1, places, source, "sum"),
    }
    given = arguments.get(func, (x, 1, places, source))
    with pytest.raises(NotDefinedError, match=rf"^{words} positions that depend on the input has"):
        surrogate(func, given, {})


def test_a_scatter_with_a_reduction_has_no_rule() -> None:
    given = (torch.ones(2, 4), 1, APART, torch.ones(2, 3))
    with pytest.raises(NotDefinedError, match=r"^scatter with a reduction has no rule$"):
        surrogate(aten.scatter.reduce, given, {"reduce": "add"})


def test_stacked_axes_and_options_that_say_nothing_are_accepted() -> None:
    x = torch.tensor([[1.0, 0, 1]])
    found = surrogate(aten.gather.default, (x, 1, COLUMNS[None]), {"sparse_grad": True})
    assert torch.equal(found, x[:, COLUMNS])
    found = surrogate(aten.prod.dim_int, (x, 1), {"dtype": torch.float64})
    assert torch.equal(found, torch.zeros(1))
    found = surrogate(aten.embedding.default, (x.T, COLUMNS, -1), {"scale_grad_by_freq": False})
    assert torch.equal(found, x.T[COLUMNS])
