import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pai.seeding import derive_seed, generator, global_seed, seed_of

purposes = st.text(min_size=1, max_size=12)


def draw(seed: int, purpose: str) -> Tensor:
    return torch.randn(64, generator=generator(seed, purpose))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(-(2**70), 2**70), purpose=purposes)
def test_a_derived_seed_is_valid_and_always_the_same(seed: int, purpose: str) -> None:
    value = derive_seed(seed, purpose)
    assert 0 <= value < 2**63
    assert value == derive_seed(seed, purpose)
    assert torch.equal(draw(seed, purpose), draw(seed, purpose))


@settings(max_examples=100, deadline=None)
@given(
    first=st.tuples(st.integers(0, 10**6), purposes),
    second=st.tuples(st.integers(0, 10**6), purposes),
)
def test_another_seed_or_another_purpose_is_another_stream(
    first: tuple[int, str], second: tuple[int, str]
) -> None:
    if first != second:
        assert derive_seed(*first) != derive_seed(*second)
        assert not torch.equal(draw(*first), draw(*second))


def test_neighbouring_streams_are_uncorrelated() -> None:
    rows = [
        torch.randn(20_000, generator=generator(seed, purpose))
        for seed in (0, 1)
        for purpose in ("order/1", "order/2", "order/11", "probes")
    ]
    correlation = torch.corrcoef(torch.stack(rows)) - torch.eye(len(rows))
    assert float(correlation.abs().max()) < 5 / 20_000**0.5


def test_drawing_from_one_stream_leaves_the_others_alone() -> None:
    probes, order = generator(0, "probes"), generator(0, "order")
    expected = draw(0, "order")
    torch.randn(1000, generator=probes)
    assert torch.equal(torch.randn(64, generator=order), expected)


def test_a_generator_ignores_and_keeps_the_global_state() -> None:
    torch.manual_seed(1)
    first = draw(0, "probes")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(draw(0, "probes"), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seed_means_the_same_in_every_process_and_version() -> None:
    by_hand = 0xE93D4E89E9DACE1C  # the first digits of `printf 3/order/7 | sha256sum`
    assert derive_seed(3, "order/7") == by_hand // 2


def test_the_global_seed_is_reproducible_and_differs_by_purpose() -> None:
    draws = []
    for seed, purpose in ((0, "a"), (0, "a"), (0, "b"), (1, "a")):
        torch.randn(3)
        with global_seed(seed, purpose):
            draws.append(torch.randn(16))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[3])


@pytest.mark.parametrize("raising", [False, True])
def test_the_global_state_is_restored(raising: bool) -> None:
    torch.manual_seed(5)
    expected = torch.randn(16)
    torch.manual_seed(5)
    try:
        with global_seed(0, "initialization"):
            torch.randn(100)
            if raising:
                raise KeyError
    except KeyError:
        assert raising
    assert torch.equal(torch.randn(16), expected)


def test_a_part_has_the_seed_of_the_run_unless_it_has_one_of_its_own() -> None:
    assert seed_of({"seed": 3}, "probes") == seed_of({"seed": 3, "seeds": None}, "probes") == 3
    own = {"seed": 3, "seeds": {"probes": 0, "data": None}}
    assert seed_of(own, "probes") == 0
    assert seed_of(own, "data") == seed_of(own, "initialization") == 3
