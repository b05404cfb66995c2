"""Runs arranged as rows and columns: what belongs into a cell, what is kept out and why."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pai.errors import ConfigError
from pai.reports.collect import NONE, Collection, LeftOut, Run
from pai.reports.consistency import check_keys, check_same_experiment, revision_notes, schedule_note
from pai.reports.ties import tied

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Layout:
    """What the rows and the columns are: groups (``warmup``) or config keys (``scorer.draws``).

    ``where`` selects runs by their value of a key; dense references are selected whatever their
    sparsity. ``ignore`` names config keys in which runs may differ.
    """

    rows: tuple[str, ...] = ("scorer",)
    columns: tuple[str, ...] = ("sparsity",)
    metric: str = "test_accuracy"
    where: Mapping[str, Any] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        keys = (*self.rows, *self.columns)
        if not self.rows or not self.columns:
            raise ConfigError("rows, columns: each needs at least one key")
        for key in keys:
            if keys.count(key) > 1 or key == "seed":
                why = "is averaged over" if key == "seed" else "is there twice"
                raise ConfigError(f"rows, columns: {key!r} {why}")

    @property
    def lower_is_better(self) -> bool:
        """Whether the metric is a loss."""
        return self.metric.endswith("loss")

    @property
    def scale(self) -> float:
        """100 for accuracies, which are shown in percent."""
        return 100.0 if "accuracy" in self.metric else 1.0


@dataclass(frozen=True)
class Cell:
    """The runs of one row and column, one per seed."""

    runs: Mapping[int, Run]
    metric: str

    @cached_property
    def values(self) -> dict[int, float]:
        """The metric by seed."""
        found = {seed: run.metric(self.metric) for seed, run in self.runs.items()}
        return {seed: value for seed, value in sorted(found.items()) if value is not None}

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds (``n - 1``); ``None`` for one seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def collapsed(self) -> int:
        """How many layers lost every weight, summed over the seeds."""
        return sum(
            len(run.part("mask").get("collapsed_layers") or ()) for run in self.runs.values()
        )


@dataclass(frozen=True)
class Row:
    """A row's values; references (dense, pruned after training) do not compete."""

    key: Key
    label: str
    reference: bool


@dataclass(frozen=True)
class Missing:
    """Seeds that a cell lacks, although other cells have them."""

    row: str
    column: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """A table before it is written down."""

    layout: Layout
    row_keys: tuple[str, ...]  # the layout's, and "baseline" where some runs have one
    rows: tuple[Row, ...]
    columns: tuple[Key, ...]
    cells: Mapping[tuple[Key, Key], Cell]
    seeds: tuple[int, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    def column_label(self, column: Key) -> str:
        """Return ``sparsity 0.9`` or ``warmup none, sparsity 0.9``."""
        return ", ".join(f"{last_part(k)} {v}" for k, v in zip(self.layout.columns, column))

    @cached_property
    def bold(self) -> frozenset[tuple[Key, Key]]:
        """Per column the best cell and those tied with it (:func:`pai.reports.ties.tied`).

        Nothing in a column where no two rows have two seeds in common.
        """
        sign = -1 if self.layout.lower_is_better else 1
        marked: set[tuple[Key, Key]] = set()
        for column in self.columns:
            competing = {
                row.key: {s: sign * v for s, v in self.cells[row.key, column].values.items()}
                for row in self.rows
                if not row.reference and (row.key, column) in self.cells
            }
            if not competing:
                continue
            best = max(competing, key=lambda key: statistics.fmean(competing[key].values()))
            others = {k: tied(competing[best], v) for k, v in competing.items() if k != best}
            if any(verdict is not None for verdict in others.values()):
                marked |= {(key, column) for key, verdict in others.items() if verdict}
                marked.add((best, column))
        return frozenset(marked)

    @cached_property
    def missing(self) -> tuple[Missing, ...]:
        """The cells that lack a seed that the table has elsewhere."""
        found = []
        for row in self.rows:
            for column in self.columns:
                cell = self.cells.get((row.key, column))
                lacking = tuple(s for s in self.seeds if cell is None or s not in cell.values)
                if lacking:
                    found.append(Missing(row.label, self.column_label(column), lacking))
        return tuple(found)


def build_grid(collection: Collection, layout: Layout) -> Grid:
    """Arrange the runs of ``collection``.

    Kept out, with a reason: what could not be read, is not completed or lacks the metric; copies of
    a run (same configuration and seed), all but one if they agree in metric and mask, and all of
    them if they do not.

    Raises:
        ConfigError: there are no runs, a key is in none of them, or two runs differ in a
            configuration key that is neither row nor column nor the seed.
    """
    check_keys(collection.runs, (*layout.rows, *layout.columns, *layout.where), layout.metric)
    selected = [run for run in collection.runs if _selected(run, layout.where)]
    usable, left_out = _usable(selected, layout.metric)
    row_keys = layout.rows
    implicit = "baseline" not in (*layout.rows, *layout.columns)
    if implicit and any(run.baseline for run in selected):
        row_keys = (*layout.rows, "baseline")
    check_same_experiment(usable, (*row_keys, *layout.columns), layout.ignore)
    sparsities = {run.value("sparsity") for run in selected if not run.dense}

    def places(run: Run) -> list[tuple[Key, Key]]:
        """Return the cells of a run; a dense reference stands for every sparsity."""

        def values(keys: tuple[str, ...], sparsity: Any) -> Key:
            return tuple(sparsity if key == "sparsity" else run.value(key) for key in keys)

        spread = sparsities if run.dense and sparsities else {run.value("sparsity")}
        return [
            (values(row_keys, s), values(layout.columns, s)) for s in sorted(spread, key=_order)
        ]

    cells, copies = _cells(usable, places, layout.metric)
    every = {place for run in selected for place in places(run)}
    rows = [_row(row_keys, key, selected) for key in {row for row, _ in every}]
    columns = sorted({column for _, column in every}, key=lambda c: [_order(v) for v in c])
    return Grid(
        layout=layout,
        row_keys=row_keys,
        rows=tuple(_sorted_rows(rows, columns, cells, layout)),
        columns=tuple(columns),
        cells=cells,
        seeds=tuple(sorted({run.seed for run in selected})),
        left_out=(*collection.unreadable, *left_out, *copies),
        notes=(*schedule_note(usable, row_keys), *revision_notes(usable)),
    )


def _selected(run: Run, where: Mapping[str, Any]) -> bool:
    return all(
        run.value(key) == value or (run.dense and key == "sparsity") for key, value in where.items()
    )


def _usable(runs: Iterable[Run], metric: str) -> tuple[list[Run], list[LeftOut]]:
    usable, left_out = [], []
    for run in runs:
        status, error = run.record["status"], run.record.get("error")
        if status == "completed" and run.metric(metric) is not None:
            usable.append(run)
        elif status == "completed":
            left_out.append(LeftOut(run.folder, f"{metric} is not a finite number", run))
        else:
            reason = f"{status}: {' '.join(str(error).split())}" if error else str(status)
            if status == "running":
                reason += f" (or killed) since {run.record.get('started_at')}"
            left_out.append(LeftOut(run.folder, reason, run))
    return usable, left_out


def _cells(
    runs: Iterable[Run], places: Any, metric: str
) -> tuple[dict[tuple[Key, Key], Cell], list[LeftOut]]:
    """Return the cells and the copies that were kept out of them."""
    repeated: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        repeated.setdefault((tuple(places(run)), run.seed), []).append(run)
    found: dict[tuple[Key, Key], dict[int, Run]] = {}
    left_out = []
    for (where, seed), group in repeated.items():
        first, *others = group
        results = {(run.metric(metric), run.part("mask").get("sha256")) for run in group}
        if len(results) == 1:
            left_out += [
                LeftOut(run.folder, f"duplicate of {first.folder}, same result", run)
                for run in others
            ]
        else:
            names = ", ".join(str(run.folder) for run in group)
            reason = f"duplicate with another result; of these none is used: {names}"
            left_out += [LeftOut(run.folder, reason, run) for run in group]
            continue
        for place in where:
            found.setdefault(place, {})[seed] = first
    return {place: Cell(seeds, metric) for place, seeds in found.items()}, left_out


def _row(keys: tuple[str, ...], key: Key, runs: Iterable[Run]) -> Row:
    values = dict(zip(keys, key, strict=True))
    baseline = values.get("baseline", NONE)
    dense = any(run.dense and all(run.value(k) == v or k == "sparsity" for k, v in values.items())
                for run in runs)  # fmt: skip
    shown = [str(baseline)] if baseline != NONE else []
    for name, value in values.items():
        if name == "baseline" or (name == "scorer" and str(baseline).startswith(f"{value}_")):
            continue  # magnitude_after_training names its scorer
        if name == keys[0] and not shown:
            shown.append(str(value))
        elif value != NONE:
            shown.append(str(value) if isinstance(value, str) else f"{last_part(name)} {value}")
    return Row(key, ", ".join(shown), dense or baseline != NONE)


def _sorted_rows(
    rows: Iterable[Row], columns: Iterable[Key], cells: Mapping[tuple[Key, Key], Cell],
    layout: Layout,
) -> list[Row]:  # fmt: skip
    """Return the references, then the others by their mean over the columns that all rows have."""
    rows = list(rows)
    present = [row for row in rows if any((row.key, column) in cells for column in columns)]
    shared = [c for c in columns if all((row.key, c) in cells for row in present)]
    sign = 1 if layout.lower_is_better else -1

    def order(row: Row) -> tuple[Any, ...]:
        own = [c for c in shared or columns if (row.key, c) in cells]
        mean = statistics.fmean(cells[row.key, c].mean for c in own) if own else sign * float("inf")
        return (not row.reference, sign * mean if own else float("inf"), row.label)

    return sorted(rows, key=order)


def last_part(key: str) -> str:
    """Return ``draws`` of ``scorer.draws``."""
    return key.rpartition(".")[2]


def _order(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), "") if number else (1, 0.0, str(value))
