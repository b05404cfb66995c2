"""Is the order of the scorers the same on different tasks? Metrics, paired differences, ranks."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pai.errors import ConfigError
from pai.metrics import kind_of
from pai.reports.collect import Run
from pai.reports.ties import lower_end
from studies.interval import Interval
from studies.stored import check_one_study

DENSE = "none"
VARIED = ("scorer", "sparsity")
_TAIL = 0.025
Values = dict[str, dict[int, float]]
"""The metric by scorer and seed."""


@dataclass(frozen=True)
class Metric:
    """How good a network is on a task: ``key`` of the record, and how it is shown.

    Attributes:
        key: of ``metrics`` in the record.
        words: the head of the column.
    """

    key: str
    words: str

    @property
    def factor(self) -> float:
        """Shown is the value times this."""
        return kind_of(self.key).scale

    @property
    def good(self) -> int:
        """Return 1 if high is good, -1 if low is."""
        return -1 if kind_of(self.key).lower_is_better else 1


ACCURACY = Metric("test_accuracy", "test accuracy, %")
PERPLEXITY = Metric("test_perplexity", "test perplexity")


@dataclass(frozen=True)
class Task:
    """The results on one data set at one sparsity; ``dense`` by seed."""

    name: str
    sparsity: float
    metric: Metric
    values: Values
    dense: Mapping[int, float]

    def goodness(self, seeds: Sequence[int] | None = None) -> list[float]:
        """Return the mean over ``seeds`` (all) by scorer in alphabetical order, high is good."""
        return [
            self.metric.good
            * statistics.fmean(own.values() if seeds is None else [own[seed] for seed in seeds])
            for _, own in sorted(self.values.items())
        ]

    @property
    def seeds(self) -> list[int]:
        """The seeds that all scorers have."""
        return sorted(set.intersection(*(set(own) for own in self.values.values())))


def read(runs: Sequence[Run]) -> list[Task]:
    """Return the tasks of completed runs, by data set and sparsity.

    Raises:
        ConfigError: runs on one data set differ in more than scorer, sparsity and seed, a metric is
            not finite, or nothing is pruned.
    """
    for name in dict.fromkeys(run.choice("dataset") for run in runs):
        check_one_study([run for run in runs if run.choice("dataset") == name], VARIED)
    found: dict[tuple[str, float], Values] = {}
    dense: dict[str, dict[int, float]] = {}
    metrics: dict[str, Metric] = {}
    for run in runs:
        name = run.choice("dataset")
        metric = metrics.setdefault(name, _metric(run))
        value = run.metric(metric.key)
        if value is None:
            raise ConfigError(f"{run.folder}: no finite {metric.key}")
        if run.choice("scorer") == DENSE:
            _put(dense.setdefault(name, {}), run, value)
        else:
            values = found.setdefault((name, float(run.value("sparsity"))), {})
            _put(values.setdefault(run.choice("scorer"), {}), run, value)
    if not found:
        raise ConfigError("no completed run of a scorer that prunes")
    return [
        Task(name, sparsity, metrics[name], values, dense.get(name, {}))
        for (name, sparsity), values in sorted(found.items())
    ]


def _put(values: dict[int, float], run: Run, value: float) -> None:
    if values.setdefault(run.seed, value) != value:
        raise ConfigError(
            f"{run.folder}: another result than that of a run with the same scorer and seed "
            f"({value:g}, {values[run.seed]:g})"
        )


def _metric(run: Run) -> Metric:
    return ACCURACY if run.metric(PERPLEXITY.key) is None else PERPLEXITY


def difference(own: Mapping[int, float], other: Mapping[int, float]) -> tuple[float, float, float]:
    """Return the mean of the differences by seed and its 95 % percentile bootstrap interval.

    With three seeds the interval is from the smallest difference to the largest
    (:func:`pai.reports.ties.lower_end`).

    Raises:
        ValueError: fewer than two seeds in common.
    """
    found = [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]
    return statistics.fmean(found), lower_end(found), -lower_end([-value for value in found])


def correlate(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return Kendall's tau-b and Spearman's rho of two lists of numbers for the same scorers."""
    from scipy.stats import kendalltau, spearmanr

    return float(kendalltau(first, second).statistic), float(spearmanr(first, second).statistic)


def between(first: Task, second: Task) -> tuple[Interval, Interval, int]:
    """Return Kendall's tau-b and Spearman's rho of the order on two tasks, and over how many.

    The interval resamples the seeds of each task on its own, all ``n^n`` times ``n^n`` ways.
    """
    common = first.values.keys() & second.values.keys()
    one, two = (
        Task(t.name, t.sparsity, t.metric, {s: t.values[s] for s in common}, t.dense)
        for t in (first, second)
    )
    means = correlate(one.goodness(), two.goodness())
    drawn = np.array([
        correlate(a, b) for a, b in itertools.product(_resampled(one), _resampled(two))
    ])  # fmt: skip
    ends = np.nanquantile(drawn, [_TAIL, 1 - _TAIL], axis=0)
    tau, rho = (
        Interval(mean, float(low), float(high))
        for mean, low, high in zip(means, *ends, strict=True)
    )
    return tau, rho, len(common)


def _resampled(task: Task) -> list[list[float]]:
    seeds = task.seeds
    return [task.goodness(drawn) for drawn in itertools.product(seeds, repeat=len(seeds))]


def repeatability(task: Task) -> float:
    """Return Kendall's tau-b of the order of the scorers at one seed and at another, mean of pairs.

    What another task is to be compared with: an order that is not the same on the same task with
    another seed cannot be the same elsewhere.

    Raises:
        ValueError: fewer than two seeds.
    """
    pairs = itertools.combinations(task.seeds, 2)
    return statistics.fmean(correlate(task.goodness([a]), task.goodness([b]))[0] for a, b in pairs)


def metric_table(tasks: Sequence[Task], reference: str) -> str:
    """Return Markdown: a table per task, best first, with the differences to ``reference``.

    Raises:
        ConfigError: a task lacks the reference.
    """
    parts = []
    for task in tasks:
        if reference not in task.values:
            raise ConfigError(f"{task.name} at {task.sparsity:g}: no runs of scorer={reference}")
        parts.append(
            f"### {task.name}, sparsity {task.sparsity:g}\n\n{_task_table(task, reference)}"
        )
    return "\n\n".join(parts)


def _task_table(task: Task, reference: str) -> str:
    factor = task.metric.factor
    lines = [
        f"| scorer | n | {task.metric.words} | standard deviation | difference to {reference} |",
        "|---|---|---|---|---|",
    ]
    goodness = dict(zip(sorted(task.values), task.goodness(), strict=True))
    for scorer in sorted(goodness, key=lambda name: -goodness[name]):
        own = task.values[scorer]
        told = ""
        if scorer != reference:
            found = difference(own, task.values[reference])
            mean, low, high = (round(factor * value, 2) + 0.0 for value in found)
            told = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
        lines.append(f"| {scorer} | {_row(own, factor)} | {told} |")
    if task.dense:
        lines.append(f"| dense | {_row(task.dense, factor)} |  |")
    return "\n".join(lines)


def _row(own: Mapping[int, float], factor: float) -> str:
    values = [factor * value for value in own.values()]
    deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{len(values)} | {statistics.fmean(values):.2f} | {deviation}"


def correlation_table(tasks: Sequence[Task]) -> str:
    """Return Markdown: the rank correlations of all pairs of tasks at the same sparsity."""
    lines = [
        "| sparsity | tasks | scorers | Kendall's tau | Spearman's rho |",
        "|---|---|---|---|---|",
    ]
    for first, second in itertools.combinations(tasks, 2):
        if first.sparsity == second.sparsity:
            *found, count = between(first, second)
            tau, rho = (each.shown(2, " to ") for each in found)
            names = f"{first.name}, {second.name}"
            lines.append(f"| {first.sparsity:g} | {names} | {count} | {tau} | {rho} |")
    for task in tasks:
        if len(task.seeds) > 1:
            again = f"{repeatability(task):.2f}"
            names = f"{task.name}, one seed and another"
            lines.append(f"| {task.sparsity:g} | {names} | {len(task.values)} | {again} |  |")
    return "\n".join(lines)
