"""Differences of runs that share a seed, and which of two values of a key is better by how much."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pai.errors import ConfigError
from pai.reports.grid import Grid, Key
from pai.reports.numbers import signed

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Gain:
    """Mean of paired differences as they are shown, and its interval (``None`` for one pair)."""

    mean: float
    interval: tuple[float, float] | None
    pairs: int

    def shown(self, digits: int) -> str:
        """Return mean, interval and number of pairs, with ``digits`` after the point."""
        mean, ends = signed(self.mean, digits), ""
        if self.interval is not None:
            low, high = (signed(end, digits) for end in self.interval)
            ends = f" [{low}, {high}]"
        return f"{mean}{ends} (n={self.pairs})"


def paired_gain(differences: Sequence[float]) -> Gain:
    """Return mean and 95 % t interval ``mean +- t(0.975, n - 1) s / sqrt(n)`` of differences.

    The t interval is exact for normal differences. With a handful of seeds a bootstrap, which can
    only reshuffle those few values, would be far too short.

    Raises:
        ValueError: there is no difference.
    """
    if not differences:
        raise ValueError("no pair of runs to compare")
    n, mean = len(differences), statistics.mean(differences)
    if n == 1:
        return Gain(mean, None, 1)
    from scipy.stats import t

    reach = float(t.ppf((1 + _CONFIDENCE) / 2, n - 1)) * statistics.stdev(differences) / n**0.5
    return Gain(mean, (mean - reach, mean + reach), n)


@dataclass(frozen=True)
class Contrast:
    """What one row gains over another.

    Attributes:
        label: both rows.
        gains: by column; columns where no seed has both runs are left out.
        overall: of the means over these columns, seed by seed: runs of one seed at several
            sparsities are not independent, so a seed counts once. ``None`` if no seed has them all.
    """

    label: str
    gains: dict[Key, Gain]
    overall: Gain | None


def contrasts(grid: Grid, first: Mapping[str, str], second: Mapping[str, str]) -> list[Contrast]:
    """Return what rows with the values ``first`` gain over those with ``second`` instead.

    A gain is the metric of the one minus that of the other with the same seed, in percentage
    points for accuracies; of losses and perplexities the lower one gains. Keys that are not
    mentioned are equal in both rows.

    Raises:
        ConfigError: the two do not name the same keys, a key is no row, or there is no such pair.
    """
    for key in (*first, *second):
        if key not in grid.row_keys or key not in first or key not in second:
            raise ConfigError(
                f"gain: {key} must be one of the rows ({', '.join(grid.row_keys)}) and have a "
                f"value on both sides"
            )
    found = []
    for row in grid.rows:
        named = dict(zip(grid.row_keys, row.key, strict=True))
        if any(str(named[key]) != value for key, value in first.items()):
            continue
        other = next(
            (
                r
                for r in grid.rows
                if [*map(str, r.key)] == [*map(str, (named | dict(second)).values())]
            ),
            None,
        )
        pairs = {} if other is None else _pairs(grid, row.key, other.key)
        if other is not None and pairs:
            gains = {column: paired_gain(list(found.values())) for column, found in pairs.items()}
            found.append(Contrast(_label(row.key, other.key), gains, _overall(pairs)))
    if not found:
        raise ConfigError(f"gain: no two rows differ in {dict(first)} and {dict(second)} alone")
    return found


def gain_table(grid: Grid, found: Sequence[Contrast]) -> str:
    """Return a Markdown table: one row per contrast, with 95 % t intervals of the mean."""
    heads = ["gain", *(grid.column_label(column) for column in grid.columns), "mean of these"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    digits = grid.layout.kind.digits
    for contrast in found:
        gains = [*(contrast.gains.get(column) for column in grid.columns), contrast.overall]
        cells = ["–" if gain is None else gain.shown(digits) for gain in gains]
        lines.append("| " + " | ".join([contrast.label, *cells]) + " |")
    return "\n".join(lines)


def _label(first: Key, second: Key) -> str:
    own, its = (", ".join(map(str, key)) for key in (first, second))
    return f"{own} over {its}"


def _pairs(grid: Grid, first: Key, second: Key) -> dict[Key, dict[int, float]]:
    """Return the differences of two rows by column and seed."""
    kind = grid.layout.kind
    sign = kind.scale * (-1 if kind.lower_is_better else 1)
    found = {}
    for column in grid.columns:
        if (first, column) in grid.cells and (second, column) in grid.cells:
            own, its = (grid.cells[key, column].values for key in (first, second))
            differences = {seed: sign * (own[seed] - its[seed]) for seed in own if seed in its}
            if differences:
                found[column] = differences
    return found


def _overall(pairs: Mapping[Key, Mapping[int, float]]) -> Gain | None:
    seeds = set.intersection(*(set(found) for found in pairs.values()))
    means = [statistics.fmean(found[seed] for found in pairs.values()) for seed in sorted(seeds)]
    return paired_gain(means) if means else None
