"""N:M masks: exact in every group, in the layout that is documented."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pai
from pai.masking.patterns import Pattern
from pai.masking.schedule import Exponential, iterate

SHAPES = [(6, 8), (4, 8, 3, 3), (3, 2, 2, 2), (5, 4, 1), (2, 12)]


def groups(weight: Tensor, m: int) -> list[list[Any]]:
    """Cut into groups by loops: output unit, then kernel position, then input channel."""
    found = []
    for unit in range(weight.shape[0]):
        row = []
        for position in itertools.product(*(range(size) for size in weight.shape[2:])):
            row += [weight[(unit, channel, *position)].item() for channel in range(weight.shape[1])]
        found += [row[start : start + m] for start in range(0, len(row), m)]
    return found


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000), shape=st.sampled_from(SHAPES),
    pattern=st.sampled_from([(2, 4), (1, 4), (3, 4), (1, 2)]), ties=st.booleans(),
)  # fmt: skip
def test_the_best_n_of_every_m_stay(
    seed: int, shape: tuple[int, ...], pattern: tuple[int, int], ties: bool
) -> None:
    n, m = pattern
    stream = torch.Generator().manual_seed(seed)
    scores = torch.randint(3 if ties else 10**6, shape, generator=stream).float()
    mask = pai.select({"w": scores}, sparsity=1 - n / m, scope=f"{n}:{m}")["w"]
    for values, kept in zip(groups(scores, m), groups(mask, m), strict=True):
        order = sorted(range(m), key=lambda i: (-values[i], i))
        assert kept == [i in order[:n] for i in range(m)]


def test_a_linear_layer_has_groups_of_consecutive_inputs() -> None:
    scores = torch.tensor([[1.0, 4, 2, 3, 9, 8, 0, 7]])
    mask = pai.select({"w": scores}, 0.5, scope="2:4")["w"]
    assert mask.int().tolist() == [[0, 1, 0, 1, 1, 1, 0, 0]]


def test_a_convolution_has_groups_of_input_channels_at_one_kernel_position() -> None:
    scores = torch.rand(4, 8, 3, 3)
    mask = pai.select({"w": scores}, 0.5, scope="2:4")["w"]
    assert torch.all(mask.view(4, 2, 4, 3, 3).sum(2) == 2)


def test_layers_that_do_not_divide_stay_dense_and_do_not_count() -> None:
    scores = {"rgb": torch.rand(4, 3, 3, 3), "depthwise": torch.rand(8, 1, 3, 3),
              "w": torch.rand(4, 4), "vector": torch.rand(4)}  # fmt: skip
    mask = pai.select(scores, 0.5, scope="2:4")
    assert all(mask[name].all() for name in ("rgb", "depthwise", "vector"))
    assert torch.all(mask["w"].sum(1) == 2)


def test_on_the_way_no_group_loses_more_and_the_count_is_exact() -> None:
    scores = {"a": torch.rand(16, 8), "b": torch.rand(8, 16)}
    third = pai.select(scores, 0.3, scope="2:4", towards=0.5)
    assert sum(int(keep.sum()) for keep in third.values()) == round(0.7 * 256)
    assert all(keep.view(-1, 4).sum(1).min() >= 2 for keep in third.values())
    final = pai.select({n: -v for n, v in scores.items()}, 0.5, scope="2:4", within=third)
    for name, keep in final.items():
        assert torch.all(keep.view(-1, 4).sum(1) == 2)
        assert torch.all(keep <= third[name])


def test_a_schedule_of_many_rounds_ends_at_the_pattern() -> None:
    seeds = itertools.count()

    def score(mask: Any) -> dict[str, Tensor]:
        return {"w": torch.rand(8, 16, generator=torch.Generator().manual_seed(next(seeds)))}

    mask = iterate(score, Exponential(7), 0.75, "1:4")
    assert torch.all(mask["w"].view(-1, 4).sum(1) == 1)


@pytest.mark.parametrize("sparsity", [0.3, 0.49, 0.9])
def test_another_sparsity_is_refused(sparsity: float) -> None:
    with pytest.raises(ValueError, match=r"2:4 removes 2 of every 4 .* use sparsity=0\.5$"):
        pai.select({"w": torch.rand(4, 4)}, sparsity, scope="2:4")


def test_two_thirds_need_not_be_typed_exactly() -> None:
    mask = pai.select({"w": torch.rand(50, 60)}, 0.6667, scope="1:3")["w"]
    assert torch.all(mask.view(-1, 3).sum(1) == 1)


def test_what_is_no_pattern_is_refused() -> None:
    for n, m in ((0, 4), (4, 4), (5, 4)):
        with pytest.raises(ValueError, match=f"1 <= N < M; got {n}:{m}"):
            Pattern(n, m)
    with pytest.raises(ValueError, match="no layer has rows of a multiple of 4"):
        pai.select({"w": torch.rand(4, 3)}, 0.5, scope="2:4")
    earlier = {"w": torch.tensor([[True, False, False, False]])}
    with pytest.raises(ValueError, match="fewer than 2 of 4 weights in some group"):
        pai.select({"w": torch.rand(1, 4)}, 0.5, scope="2:4", within=earlier)


def test_masks_are_boolean_also_of_layers_that_stay_dense() -> None:
    mask = pai.select({"odd": torch.rand(3, 5), "even": torch.rand(3, 8)}, 0.5, scope="2:4")
    assert {keep.dtype for keep in mask.values()} == {torch.bool}


def test_a_rounded_two_thirds_still_gives_the_exact_pattern() -> None:
    for sparsity in (0.6667, 0.6666):
        mask = pai.select({"w": torch.rand(1000, 300)}, sparsity, scope="1:3")["w"]
        assert int(mask.sum()) == 100_000


def test_next_to_the_pattern_nothing_more_is_kept_than_the_count_says() -> None:
    mask = Pattern(2, 4).choose({"w": torch.rand(1, 8)}, 0.49, 0.5, None)["w"]
    assert int(mask.sum()) == 4
