"""The paired bootstrap, against enumeration by hand and by brute force."""

import itertools
import random

import pytest

from pai.reports.ties import lower_end, tied


def brute_force(values: list[float]) -> float:
    """Return the 2.5 % quantile over all ``n^n`` resamples in order."""
    means = sorted(
        sum(chosen) / len(values) for chosen in itertools.product(values, repeat=len(values))
    )
    return next(m for i, m in enumerate(means, start=1) if i >= 0.025 * len(means))


def test_with_two_or_three_values_the_lower_end_is_the_smallest_value() -> None:
    assert lower_end([0.3, 0.1, 0.2]) == pytest.approx(0.1)
    assert lower_end([0.3, -0.5, 0.2]) == pytest.approx(-0.5)
    assert lower_end([4.0, 2.0]) == 2.0


def test_from_four_values_on_it_lies_further_in() -> None:
    # 256 resamples of (0, 4, 8, 12), 6.4 are 2.5 %: means 0 once, 1 four times, 2 ten times, ...
    assert lower_end([0.0, 4.0, 8.0, 12.0]) == pytest.approx(2)
    # of (0, 0, 0, 4): 0 in 81 of them; of (0, 4, 4, 4): 0 once, 1 twelve times
    assert lower_end([0.0, 0.0, 0.0, 4.0]) == 0
    assert lower_end([0.0, 4.0, 4.0, 4.0]) == pytest.approx(1)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_the_enumeration_is_that_of_all_resamples(n: int) -> None:
    stream = random.Random(n)
    values = [stream.gauss(0.2, 1) for _ in range(n)]
    assert lower_end(values) == pytest.approx(brute_force(values))


def test_many_values_are_drawn_and_agree_with_the_normal_interval() -> None:
    stream = random.Random(0)
    values = [stream.gauss(1, 2) for _ in range(400)]
    mean = sum(values) / 400
    deviation = (sum((v - mean) ** 2 for v in values) / 400) ** 0.5
    assert lower_end(values) == pytest.approx(mean - 1.96 * deviation / 20, abs=0.02)
    assert lower_end(values) == lower_end(values)


def test_a_row_is_tied_unless_the_best_is_ahead_at_every_one_of_three_seeds() -> None:
    best = {0: 0.90, 42: 0.91, 123: 0.92}
    assert tied(best, {0: 0.80, 42: 0.81, 123: 0.93}) is True
    assert tied(best, {0: 0.89, 42: 0.90, 123: 0.91}) is False
    assert tied(best, best) is True


def test_rows_are_paired_by_seed_not_by_position() -> None:
    best = {0: 0.90, 42: 0.80, 123: 0.70}
    assert tied(best, {123: 0.69, 0: 0.89, 42: 0.79}) is False
    assert tied(best, {0: 0.69, 42: 0.89, 123: 0.79}) is True


def test_without_two_common_seeds_nothing_is_said() -> None:
    assert tied({0: 0.9, 1: 0.9}, {1: 0.1, 2: 0.1}) is None
    with pytest.raises(ValueError, match="at least two"):
        lower_end([1.0])


def test_rounding_does_not_tell_rows_apart() -> None:
    best = {0: 0.1 + 0.2, 1: 0.1 + 0.2}
    assert tied(best, {0: 0.3, 1: 0.3}) is True
