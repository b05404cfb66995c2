"""Which rows of a column cannot be told from the best one: paired bootstrap over seeds."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

_TAIL = 0.025  # on either side of an interval with a confidence of 95 %
_EXACT = 8  # numbers of seeds for which every resample is enumerated
_RESAMPLES = 20_000
_ROUNDING = 1e-12
Row = TypeVar("Row", bound=Hashable)


def lower_end(differences: Sequence[float]) -> float:
    """Return the lower end of the 95 % percentile bootstrap interval of the mean of differences.

    With ``n <= 8`` values all ``n^n`` resamples are enumerated, so the result is exact: the
    smallest resample mean ``m`` with ``P(mean <= m) >= 0.025``. For more, 20,000 resamples of a
    fixed stream are drawn. Source: Efron 1979.

    For ``n = 3`` the smallest resample mean, three times the smallest difference, has probability
    1/27 > 2.5 %, so the lower end is the smallest difference itself; the same holds for ``n = 2``.

    Raises:
        ValueError: fewer than two values.
    """
    if len(differences) < 2:
        raise ValueError(f"differences: at least two are needed, got {len(differences)}")
    if len(differences) > _EXACT:
        import numpy as np

        stream = np.random.default_rng(0)
        drawn = stream.choice(np.asarray(differences), (_RESAMPLES, len(differences)))
        return float(np.quantile(drawn.mean(axis=1), _TAIL, method="inverted_cdf"))
    reached, total = 0, len(differences) ** len(differences)
    for mean, ways in sorted(_resamples(differences)):
        reached += ways
        if reached >= _TAIL * total:
            return mean
    raise AssertionError("the ways add up to all resamples")


def _resamples(values: Sequence[float]) -> list[tuple[float, int]]:
    """Return the mean of every resample, up to order, and in how many orders it comes."""
    n, found = len(values), []
    for chosen in itertools.combinations_with_replacement(range(n), n):
        ways = math.factorial(n)
        for times in Counter(chosen).values():
            ways //= math.factorial(times)
        found.append((math.fsum(values[i] for i in chosen) / n, ways))
    return found


def tied(best: Mapping[int, float], other: Mapping[int, float]) -> bool | None:
    """Return whether ``other`` cannot be told from ``best``, both ``{seed: value}``, high is good.

    They are tied unless the interval of the mean paired difference ``best - other`` lies above 0.
    ``None`` if they have fewer than two seeds in common: then nothing can be said.
    """
    common = sorted(best.keys() & other.keys())
    if len(common) < 2:
        return None
    return lower_end([best[seed] - other[seed] for seed in common]) <= _ROUNDING


@dataclass(frozen=True)
class Standing(Generic[Row]):
    """How the rows of a column stand.

    Attributes:
        best: the best row and those tied with it.
        unknown: rows that share fewer than two seeds with the best one.
    """

    best: frozenset[Row]
    unknown: frozenset[Row]


def standing(rows: Mapping[Row, Mapping[int, float]]) -> Standing[Row]:
    """Return how ``rows``, by row ``{seed: value}``, stand; high is good.

    The best one has the highest mean of those that share two seeds with another. Where no two rows
    do, nothing is best.
    """
    shared = {
        row: any(len(own.keys() & rows[other].keys()) > 1 for other in rows if other != row)
        for row, own in rows.items()
    }
    if not any(shared.values()):
        return Standing(frozenset(), frozenset(rows))
    best = max(
        (row for row in rows if shared[row]), key=lambda row: statistics.fmean(rows[row].values())
    )
    verdicts = {row: tied(rows[best], own) for row, own in rows.items() if row != best}
    return Standing(
        frozenset([best, *(row for row, verdict in verdicts.items() if verdict)]),
        frozenset(row for row, verdict in verdicts.items() if verdict is None),
    )
