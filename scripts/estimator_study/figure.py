"""The figure of the study: error and agreement of masks against time."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from estimator_study.report import LEVELS, SPARSITIES, Cell, series
from pai.reports.write import write_png

SPARSITY = f"{SPARSITIES[-1]:g}"


def write_figure(cells: Sequence[Cell], path: Path) -> None:
    """Write error and IoU of the masks of ``w^2 h / 2`` against time, base setting, as PNG."""
    base = [cell for cell in cells if cell["part"] == "base"]
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw(left, base, lambda cell: cell["same_samples"]["relative_error"])
        draw(right, base, lambda cell: cell["same_samples"]["iou"]["w2h"][SPARSITY])
        for level in LEVELS:
            left.axhline(level, color="0.85", linewidth=0.6, zorder=0)
        left.set(yscale="log", ylabel="relative error of the diagonal")
        magnitude = [cell["magnitude_iou"][SPARSITY] for cell in base if "magnitude_iou" in cell]
        right.axhline(statistics.mean(magnitude), color="0.4", linestyle=":", label="magnitude")
        right.set(ylim=(0, 1), ylabel=f"IoU of kept weights, $w^2h/2$, sparsity {SPARSITY}")
        for axes in (left, right):
            axes.set(xscale="log", xlabel="CPU time in gradient passes over the same samples")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        for axis in (left.xaxis, right.xaxis, left.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        write_png(figure, path)


def draw(axes: Axes, cells: Sequence[Cell], measure: Callable[[Cell], float]) -> None:
    """Draw one line per family: mean over seeds, from smallest to largest."""
    for position, (name, points) in enumerate(series(cells).items()):
        groups = list(points.values())
        times = [statistics.median(c["gradient_passes"] for c in group) for group in groups]
        measured = [[measure(cell) for cell in group] for group in groups]
        color = f"C{position}"
        if groups[0][0]["estimator"] == "exact_ggn":  # its error is rounding, far below the axis
            axes.axvline(times[0], color=color, linestyle="--", label=name)
            continue
        middle = [statistics.mean(values) for values in measured]
        below = [mean - min(values) for mean, values in zip(middle, measured, strict=True)]
        above = [max(values) - mean for mean, values in zip(middle, measured, strict=True)]
        axes.errorbar(times, middle, (below, above), color=color, marker="o", markersize=3,
                      capsize=2, linewidth=1, label=name)  # fmt: skip
