"""Figures of a sweep: accuracy against sparsity and scoring time, densities, score histograms."""

import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from pai.reports.collect import Collection
from pai.reports.counted import Cell
from pai.reports.grid import Grid, Key, Layout, Row, build_grid
from pai.reports.series import densities, read_histogram, row_runs, scoring_seconds, styles
from pai.reports.style import GREY, Style

_NAMED_LAYERS = 40  # more are numbered
_SETTINGS: Any = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}


NAMES = (
    "accuracy_against_sparsity", "layer_density", "score_histograms",
    "accuracy_against_scoring_time",
)  # fmt: skip


def draw_all(collection: Collection, layout: Layout) -> dict[str, Figure]:
    """Return the figures that the runs have data for, by file name without ending.

    Columns other than the sparsity become rows, as the sparsity is an axis or has its own panels.

    Raises:
        ConfigError: the runs do not belong into one figure (:func:`pai.reports.grid.build_grid`).
    """
    rows = (*layout.rows, *(key for key in layout.columns if key not in (*layout.rows, "sparsity")))
    rows = tuple(key for key in rows if key != "sparsity") or ("scorer",)
    grid = build_grid(collection, replace(layout, rows=rows, columns=("sparsity",)))
    if not grid.cells:
        return {}
    with rc_context(_SETTINGS):
        made = (
            accuracy_figure(grid), density_figure(collection, grid), histogram_figure(grid),
            time_figure(collection, grid),
        )  # fmt: skip
    return {n: figure for n, figure in zip(NAMES, made, strict=True) if figure is not None}


def image(figure: Figure, kind: str) -> bytes:
    """Return the bytes of a ``png`` or ``pdf`` file; the same figure gives the same bytes."""
    content = io.BytesIO()
    dated = {"CreationDate": None} if kind == "pdf" else None
    with rc_context(_SETTINGS):
        figure.savefig(content, format=kind, dpi=150, metadata=dated)
    return content.getvalue()


def accuracy_figure(grid: Grid) -> Figure:
    """Draw the metric against the sparsity: mean, and a band of one sample standard deviation."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    left = [1 - column[0] for column in grid.columns]
    axes.set(xscale="log", xlim=(1.15 * max(left), min(left) / 1.15))
    chosen = styles(grid)
    for row in grid.rows:
        points = _cells(grid, row)
        if not points:
            continue
        middle, spread = _numbers(grid, [cell for _, cell in points])
        below = [m - s for m, s in zip(middle, spread)]
        above = [m + s for m, s in zip(middle, spread)]
        if row_runs(grid, row)[0].dense:
            axes.axhline(middle[0], color=GREY, linewidth=1, label=f"{_name(row)} (dense)")
            axes.axhspan(below[0], above[0], color=GREY, alpha=0.12, linewidth=0)
            continue
        remaining = [1 - sparsity for sparsity, _ in points]
        axes.plot(remaining, middle, label=_name(row), **chosen[row.key].line)
        axes.fill_between(
            remaining, below, above, color=chosen[row.key].color, alpha=0.12, linewidth=0
        )
    axes.xaxis.set_major_locator(FixedLocator(left))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: f"{1 - x:.6g}")
    what = "removed or on no path from input to output" if grid.effective else "removed"
    axes.set_xlabel(
        f"{grid.key_label('sparsity')}: fraction of prunable weights {what} (log scale of what "
        f"remains)"
    )
    axes.set_ylabel(_metric_label(grid.layout))
    axes.set_title(f"mean and sample standard deviation, up to {len(grid.seeds)} seeds", fontsize=8)
    _legend(figure, [axes])
    return figure


def density_figure(collection: Collection, grid: Grid) -> Figure | None:
    """Draw the density of each layer, one panel per sparsity; collapsed layers are crosses at 0."""
    panels: list[tuple[float, list[tuple[Row, list[float]]]]] = []
    names: list[str] = []
    for column in grid.columns:
        lines = []
        for row in grid.rows:
            cell = grid.cells.get((row.key, column))
            if cell is None or next(iter(cell.runs.values())).dense:
                continue
            layers, density = densities(collection, list(cell.runs.values()))
            if names and layers != names:
                return None  # rows are networks: their layers share no axis
            names = layers
            lines.append((row, density))
        if lines:
            panels.append((column[0], lines))
    if not panels:
        return None
    chosen = styles(grid)
    floor = min(d for _, lines in panels for _, ds in lines for d in (*ds, 1.0) if d > 0) / 2
    figure = Figure(figsize=(8, 1.2 + 1.9 * len(panels)), layout="constrained")
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (sparsity, lines) in zip(every, panels):
        for row, density in lines:
            look, positions = chosen[row.key], range(len(density))
            alive = [d if d > 0 else math.nan for d in density]
            axes.plot(positions, alive, label=_name(row), **look.line)
            dead = [i for i, d in enumerate(density) if d == 0]
            if dead:
                axes.plot(dead, [floor] * len(dead), "x", color=look.color)
        axes.set(yscale="log", ylim=(floor / 1.4, 1.4), ylabel="density of the layer")
        axes.set_title(
            f"{grid.key_label('sparsity')} {sparsity:g} (cross at the bottom: no weight left)",
            fontsize=8,
        )
        axes.grid(axis="y", color="0.9", linewidth=0.5)
    if len(names) <= _NAMED_LAYERS:
        every[-1].set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    every[-1].set_xlabel("layer, from input to output")
    _legend(figure, list(every))
    return figure


def histogram_figure(grid: Grid) -> Figure | None:
    """Draw the scores of each row: one run, its lowest seed and sparsity; lines are the cuts."""
    found = []
    for row in grid.rows:
        runs = sorted(row_runs(grid, row), key=lambda run: (run.seed, run.value("sparsity")))
        histograms = ((run, read_histogram(run)) for run in runs)
        first = next(((run, h) for run, h in histograms if h is not None and h.total), None)
        if first is not None:
            found.append((row, *first))
    if not found:
        return None
    wide = min(4, len(found))
    high = math.ceil(len(found) / wide)
    figure = Figure(figsize=(2.2 * wide + 0.6, 1.7 * high + 0.5), layout="constrained")
    panels = figure.subplots(high, wide, squeeze=False).ravel()
    chosen = styles(grid)
    for axes, (row, run, histogram) in zip(panels, found):
        _histogram(axes, chosen[row.key], histogram)
        once = run.choice("schedule") in ("oneshot", "OneShot")
        direct = once and run.value("scope") == "global" and not grid.effective
        for column in grid.columns:
            cut = histogram.cut(column[0]) if direct else None
            if cut is not None:
                axes.axvline(cut, color="0.3", linewidth=0.5, linestyle=(0, (4, 3)))
        share = sum(histogram.negative.values()) / histogram.total
        told = f"{_name(row)}{'' if once else ', last round'}"
        axes.set_title(
            f"{told}\nzero {histogram.zeros / histogram.total:.1%}, negative {share:.1%}",
            fontsize=7,
        )
    for axes in panels[len(found) :]:
        axes.set_visible(False)
    figure.supxlabel(
        r"$\log_{10}|$score$|$ (outline: negative scores; dashed: cuts of the table's sparsities)",
        fontsize=8,
    )
    figure.supylabel("share of the weights per bin", fontsize=8)
    return figure


def _histogram(axes: Axes, look: Style, histogram: Any) -> None:
    """Draw both signs; the lowest 0.1 % of the scores are outside the panel."""
    bins = sorted({*histogram.positive, *histogram.negative})
    if not bins:
        return
    edges = [bin_ / histogram.per_decade for bin_ in (*range(bins[0], bins[-1] + 1), bins[-1] + 1)]

    def shares(counts: Any) -> list[float]:
        return [counts.get(bin_, 0) / histogram.total for bin_ in range(bins[0], bins[-1] + 1)]

    axes.stairs(shares(histogram.positive), edges, fill=True, color=look.color, alpha=0.6)
    if histogram.negative:
        axes.stairs(shares(histogram.negative), edges, color="black", linewidth=0.8)
    seen, low = 0, bins[0]
    for low in bins:
        seen += histogram.positive.get(low, 0) + histogram.negative.get(low, 0)
        if seen > 0.001 * histogram.total:
            break
    if low / histogram.per_decade < edges[-1]:
        axes.set_xlim(low / histogram.per_decade, edges[-1])


def time_figure(collection: Collection, grid: Grid) -> Figure | None:
    """Draw the metric against the time that scoring took, one panel per sparsity.

    Scores from the cache count with the time that the run needed which computed them. References
    are not in it: what pruning after training costs is the training.
    """
    seconds = scoring_seconds(collection)
    times = {}
    competing = [row for row in grid.rows if not row.reference]
    for row in competing:
        known = [t for run in row_runs(grid, row) if (t := seconds[run.folder]) is not None]
        if known:
            times[row.key] = max(statistics.median(known), 1e-4)
    columns = [c for c in grid.columns if any((key, c) in grid.cells for key in times)]
    if not columns:
        return None
    chosen = styles(grid)
    ticks = (1,) if max(times.values()) > 30 * min(times.values()) else (1, 2, 5)
    wide = min(3, len(columns))
    high = math.ceil(len(columns) / wide)
    figure = Figure(figsize=(2.4 * wide + 1.6, 2.4 * high + 0.5), layout="constrained")
    panels = list(figure.subplots(high, wide, squeeze=False).ravel())
    for axes, column in zip(panels, columns):
        for row in grid.rows:
            cell = grid.cells.get((row.key, column))
            if cell is None or row.key not in times:
                continue
            (middle,), (spread,) = _numbers(grid, [cell])
            look = chosen[row.key]
            axes.errorbar(
                times[row.key], middle, spread, elinewidth=0.8, label=_name(row), **look.dots
            )
        axes.set(xscale="log", title=grid.column_label(column))
        axes.title.set_fontsize(8)
        axes.xaxis.set_major_locator(LogLocator(subs=ticks))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(color="0.92", linewidth=0.5)
    for axes in panels[len(columns) :]:
        axes.set_visible(False)
    untimed = [row.label for row in competing if row.key not in times and row_runs(grid, row)]
    note = (
        f"\nnot shown, scores from a cache filled elsewhere: {', '.join(untimed)}"
        if untimed
        else ""
    )
    figure.supxlabel(f"time to score the network, seconds (median over runs){note}", fontsize=8)
    figure.supylabel(_metric_label(grid.layout), fontsize=8)
    _legend(figure, panels[: len(columns)])
    return figure


def _cells(grid: Grid, row: Row) -> list[tuple[float, Cell]]:
    places: list[tuple[Key, tuple[Key, Key]]] = [(c, (row.key, c)) for c in grid.columns]
    return [(column[0], grid.cells[place]) for column, place in places if place in grid.cells]


def _numbers(grid: Grid, cells: Sequence[Cell]) -> tuple[list[float], list[float]]:
    scale = grid.layout.kind.scale
    return [scale * cell.mean for cell in cells], [scale * (cell.spread or 0) for cell in cells]


def _name(row: Row) -> str:
    """Return the row's label so that matplotlib shows it: no mathematics, no hidden entry."""
    text = row.label.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _metric_label(layout: Layout) -> str:
    return layout.metric.replace("_", " ") + (" (%)" if layout.kind.scale == 100 else "")


def _legend(figure: Figure, every: Sequence[Axes]) -> None:
    """Put one legend of all panels to the right."""
    seen: dict[str, Any] = {}
    for axes in every:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            seen.setdefault(label, handle)
    if seen:
        figure.legend(
            list(seen.values()), list(seen), loc="outside right upper", frameon=False, fontsize=7,
            ncols=1 + len(seen) // 25,
        )  # fmt: skip
