"""Runs arranged as rows and columns: what belongs into a cell, what is kept out and why."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pai.errors import ConfigError
from pai.metrics import Kind, kind_of
from pai.reports.collect import NONE, Collection, LeftOut, Run
from pai.reports.consistency import check_keys, check_same_experiment, revision_notes, schedule_note
from pai.reports.counted import Cell, one_each, usable
from pai.reports.reached import effective
from pai.reports.ties import Standing, standing

Key = tuple[Any, ...]
_MOST_VALUES = 8  # in a message


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
    def kind(self) -> Kind:
        """Which way the metric is better and how it is shown; accuracies in percent."""
        return kind_of(self.metric)


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
    effective: bool  # whether "sparsity" is the effective one

    def key_label(self, key: str) -> str:
        """Return what is shown of a key: ``draws`` of ``scorer.draws``."""
        return "effective sparsity" if key == "sparsity" and self.effective else last_part(key)

    def column_label(self, column: Key) -> str:
        """Return ``sparsity 0.9`` or ``warmup none, sparsity 0.9``."""
        return ", ".join(f"{self.key_label(k)} {v}" for k, v in zip(self.layout.columns, column))

    @cached_property
    def standings(self) -> dict[Key, Standing[Key]]:
        """By column which rows are best and which cannot be compared."""
        sign = -1 if self.layout.kind.lower_is_better else 1
        return {
            column: standing({
                row.key: {s: sign * v for s, v in self.cells[row.key, column].values.items()}
                for row in self.rows
                if not row.reference and (row.key, column) in self.cells
            })
            for column in self.columns
        }  # fmt: skip

    @cached_property
    def bold(self) -> frozenset[tuple[Key, Key]]:
        """Per column the best cell and those tied with it."""
        return frozenset(
            (key, column) for column, found in self.standings.items() for key in found.best
        )

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
        ConfigError: there are no runs or none is selected, a key is in none of them, the metric is
            of no known kind, or two runs differ in a configuration key that is neither row nor
            column nor the seed.
    """
    check_keys(collection.runs, (*layout.rows, *layout.columns, *layout.where), layout.metric)
    kind_of(layout.metric)
    selected = [run for run in collection.runs if _matches(run, layout.where, dense_too=True)]
    if not any(_matches(run, layout.where) for run in selected):
        raise ConfigError(_none_selected(collection.runs, layout.where))
    counted, left_out = usable(selected, layout.metric)
    row_keys = layout.rows
    implicit = "baseline" not in (*layout.rows, *layout.columns)
    if implicit and any(run.baseline for run in selected):
        row_keys = (*layout.rows, "baseline")
    check_same_experiment(counted, (*row_keys, *layout.columns), layout.ignore)
    sparsities = {run.value("sparsity") for run in selected if not run.dense}

    def places(run: Run) -> list[tuple[Key, Key]]:
        """Return the cells of a run; a dense reference stands for every sparsity."""

        def values(keys: tuple[str, ...], sparsity: Any) -> Key:
            return tuple(sparsity if key == "sparsity" else run.value(key) for key in keys)

        spread = sparsities if run.dense and sparsities else {run.value("sparsity")}
        return [
            (values(row_keys, s), values(layout.columns, s)) for s in sorted(spread, key=_order)
        ]

    wanted: dict[tuple[tuple[Key, Key], int], list[Run]] = {}
    for run in counted:
        for place in places(run):
            wanted.setdefault((place, run.seed), []).append(run)
    found, copies = one_each(wanted, layout.metric)
    cells = _cells(found, layout.metric)
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
        notes=(*schedule_note(counted, row_keys), *revision_notes(counted)),
        effective=effective(selected),
    )


def _matches(run: Run, where: Mapping[str, Any], *, dense_too: bool = False) -> bool:
    """Return whether a run has these values; ``dense_too``: references whatever their sparsity."""
    return all(
        run.value(key) == value or (dense_too and run.dense and key == "sparsity")
        for key, value in where.items()
    )


def _none_selected(runs: Iterable[Run], where: Mapping[str, Any]) -> str:
    """Say that no run has these values, and which values there are."""
    found = {key: sorted({str(run.value(key)) for run in runs}) for key in where}
    told = "; ".join(
        f"{key} is {', '.join(values[:_MOST_VALUES])}{', ...' * (len(values) > _MOST_VALUES)}"
        for key, values in found.items()
    )
    asked = ", ".join(f"{key}={value}" for key, value in where.items())
    return f"where: no run has {asked}; in the runs {told}"


def _cells(found: Mapping[tuple[tuple[Key, Key], int], Run], metric: str) -> dict[Any, Cell]:
    by_place: dict[tuple[Key, Key], dict[int, Run]] = {}
    for (place, seed), run in found.items():
        by_place.setdefault(place, {})[seed] = run
    return {place: Cell(seeds, metric) for place, seeds in by_place.items()}


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
    sign = 1 if layout.kind.lower_is_better else -1

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
