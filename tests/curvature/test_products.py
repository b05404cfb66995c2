import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pai.curvature import products

sizes = st.tuples(
    st.integers(1, 5),  # samples
    st.integers(1, 3),  # groups
    st.integers(1, 9),  # functions
    st.integers(1, 4),  # rows
    st.integers(1, 30),  # columns
    st.integers(1, 20),  # positions
)


@settings(deadline=None)
@given(size=sizes, seed=st.integers(0, 99), block=st.sampled_from([1, 7, 100, 2**19]))
def test_sums_of_squares_and_products_are_those_of_the_dense_products(
    size: tuple[int, ...], seed: int, block: int
) -> None:
    samples, groups, functions, rows, columns, positions = size
    stream = torch.Generator().manual_seed(seed)
    a = torch.randn(samples, groups, functions, rows, positions, generator=stream).double()
    u = torch.randn(samples, groups, columns, positions, generator=stream).double()
    dense = torch.einsum("bgkol,bgdl->bgkod", a, u)
    squares, sums = (torch.ones(groups, rows, columns).double() for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE_ELEMENTS", "_PAIR_ELEMENTS", "_SMALL"):
            patch.setattr(products, name, block)
        products.add_products(a, u, squares, sums)
    torch.testing.assert_close(squares, 1 + dense.square().sum((0, 2)), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(sums, 1 + dense.sum((0, 2)), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(
    ("functions", "positions", "columns", "chosen"),
    [
        (1, 1, 10, True),  # one position: the product of the squares
        (1, 2, 10_000, False),  # one function: the products are fewer than the pairs
        (9, 4, 4608, True),
        (9, 64, 4608, False),
        (99, 16, 4608, True),
        (99, 17, 4608, False),  # the pairs would take more memory than the products
    ],
)
def test_squares_are_multiplied_out_where_that_takes_fewer_multiplications(
    functions: int, positions: int, columns: int, *, chosen: bool
) -> None:
    assert products._better_multiplied_out(functions, positions, columns) is chosen
