"""How close an estimate is to the truth, and what that closeness costs. Arrays in, numbers out."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]


def relative_error(found: Values, truth: Values) -> float:
    """Return ``||found - truth|| / ||truth||`` in the L2 norm; 1 is what zeros would have.

    Raises:
        ValueError: the shapes differ, or the truth is zero.
    """
    _check_shapes(found, truth)
    norm = float(np.linalg.norm(truth.astype(np.float64)))
    if norm == 0:
        raise ValueError("truth is zero everywhere: no error can be relative to it")
    return float(np.linalg.norm(found.astype(np.float64) - truth.astype(np.float64))) / norm


def rank_correlation(first: Values, second: Values) -> float:
    """Return Spearman's rank correlation, in -1..1; equal values share their average rank.

    Raises:
        ValueError: the shapes differ, or one of the two is constant and so has no ranking.
    """
    from scipy.stats import spearmanr

    _check_shapes(first, second)
    for values in (first, second):
        if values.size == 0 or values.min() == values.max():
            raise ValueError("constant values have no ranking to correlate")
    return float(spearmanr(first.ravel(), second.ravel()).statistic)


def mask_iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return intersection over union of the kept (True) sets, in 0..1.

    Two independent random masks of sparsity ``s`` have about ``(1 - s) / (1 + s)``.

    Raises:
        ValueError: the shapes differ, or neither mask keeps anything.
    """
    _check_shapes(first, second)
    union = int(np.logical_or(first, second).sum())
    if union == 0:
        raise ValueError("neither mask keeps a weight")
    return int(np.logical_and(first, second).sum()) / union


def time_to_reach(measured: Iterable[tuple[float, float]], error: float) -> float | None:
    """Return the least time among pairs ``(time, error)`` whose error is at most ``error``.

    ``None`` if there is no such pair: nothing is interpolated or extrapolated.
    """
    return min((time for time, reached in measured if reached <= error), default=None)


def _check_shapes(first: NDArray[Any], second: NDArray[Any]) -> None:
    if first.shape != second.shape:
        raise ValueError(f"shapes differ: {first.shape} and {second.shape}")
