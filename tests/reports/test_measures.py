"""Measures of agreement, against values computed by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from pai.reports.measures import mask_iou, rank_correlation, relative_error, time_to_reach


def test_the_relative_error_is_the_distance_in_units_of_the_truths_length() -> None:
    truth = np.array([[3.0, 0.0], [0.0, 4.0]])  # length 5
    found = np.array([[3.0, 6.0], [8.0, 4.0]])  # 10 away
    assert relative_error(found, truth) == 2.0
    assert relative_error(np.zeros((2, 2)), truth) == 1.0
    assert relative_error(truth, truth) == 0.0


def test_the_relative_error_is_computed_in_double_precision() -> None:
    truth = np.full(3, 1e-30, np.float32)  # squares below the smallest float32
    assert relative_error(2 * truth, truth) == pytest.approx(1.0)


def test_the_rank_correlation_without_ties_is_spearmans_formula() -> None:
    first, second = np.array([10.0, 20.0, 30.0, 40.0]), np.array([1.0, 100.0, 2.0, 3.0])
    squares = 0**2 + 2**2 + 1**2 + 1**2  # of the differences of ranks 1 2 3 4 and 1 4 2 3
    assert rank_correlation(first, second) == pytest.approx(1 - 6 * squares / (4 * (4**2 - 1)))
    assert rank_correlation(first, np.exp(first / 10)) == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)


def test_equal_values_share_their_average_rank() -> None:
    first, second = np.array([0.0, 0.0, 5.0]), np.array([1.0, 2.0, 3.0])
    # ranks 1.5 1.5 3 and 1 2 3, centred: -0.5 -0.5 1 and -1 0 1
    assert rank_correlation(first, second) == pytest.approx(1.5 / math.sqrt(1.5 * 2))


def test_the_iou_counts_kept_weights_only() -> None:
    first = np.array([[True, True, True], [False, False, False]])
    second = np.array([[False, True, True], [True, False, False]])
    assert mask_iou(first, second) == 2 / 4
    assert mask_iou(first, first) == 1.0
    assert mask_iou(first, ~first) == 0.0


def test_independent_masks_agree_as_far_as_the_docstring_says() -> None:
    stream, sparsity = np.random.default_rng(0), 0.9
    first, second = stream.random((2, 1_000_000)) > sparsity
    assert mask_iou(first, second) == pytest.approx((1 - sparsity) / (1 + sparsity), rel=0.02)


def test_the_time_to_reach_an_error_is_the_cheapest_measurement_that_does() -> None:
    measured = [(1.0, 0.5), (4.0, 0.2), (2.0, 0.3), (8.0, 0.1), (16.0, 0.05)]
    assert time_to_reach(measured, 0.3) == 2.0
    assert time_to_reach(measured, 0.25) == 4.0
    assert time_to_reach(measured, 0.01) is None
    assert time_to_reach([], 1.0) is None


@pytest.mark.parametrize("measure", [relative_error, rank_correlation])
def test_what_cannot_be_measured_is_an_error(measure: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        measure(np.ones(3), np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"truth is zero|constant"):
        measure(np.ones(3), np.zeros(3))


def test_two_empty_masks_have_no_iou() -> None:
    with pytest.raises(ValueError, match="neither mask"):
        mask_iou(np.zeros(3, bool), np.zeros(3, bool))
