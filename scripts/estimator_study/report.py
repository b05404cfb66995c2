"""From the cells of the study to Markdown tables."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from estimator_study.plan import WARMUPS
from pai.records import write_bytes_atomically
from pai.reports.measures import time_to_reach

Cell = dict[str, Any]
Series = dict[str, dict[str, list[Cell]]]
"""Cells by family (a curve of the figure), then by setting of the family (a point of it)."""

SPARSITIES = (0.9, 0.98)
LEVELS = (1.0, 0.3, 0.1, 0.03)
IOUS = [f"IoU of {what}, {s:g}" for what in ("`h`", "`w^2 h / 2`") for s in SPARSITIES]


def family(cell: Cell) -> str:
    """Return the name of the method without its number of draws or probes."""
    options = cell["options"]
    if cell["estimator"] != "hutchinson":
        names = {
            "exact_ggn": "exact Gauss-Newton", "empirical_fisher": "empirical Fisher",
            "mc_fisher": "Monte-Carlo Fisher",
        }  # fmt: skip
        return names[cell["estimator"]]
    matrix = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton"}[options["matrix"]]
    single = f", batch size {options['batch_size']}" if "batch_size" in options else ""
    return f"Hutchinson, {matrix}{single}"


def count(cell: Cell) -> str:
    """Return the number of draws or probes in words, or nothing."""
    for key, word in (("num_draws", "draw"), ("num_probes", "probe")):
        if (number := cell["options"].get(key)) is not None:
            return f"{number} {word}{'' if number == 1 else 's'}"
    return ""


def label(cell: Cell) -> str:
    """Return the full name of the method."""
    return ", ".join(part for part in (family(cell), count(cell)) if part)


def series(cells: Sequence[Cell]) -> Series:
    """Group cells of one setting, seeds together, in the order they come."""
    found: Series = {}
    for cell in cells:
        found.setdefault(family(cell), {}).setdefault(count(cell), []).append(cell)
    return found


def short(value: float) -> str:
    """Return two significant digits, whole numbers with separators from 10 on."""
    if abs(value) >= 10:
        return f"{float(f'{value:.2g}'):,.0f}"
    return f"{value:.2g}"


def spread(values: Sequence[float], show: Callable[[float], str] = short) -> str:
    """Return mean ± sample standard deviation over the seeds."""
    deviation = f" ± {show(statistics.stdev(values))}" if len(values) > 1 else ""
    return show(statistics.mean(values)) + deviation


def decimals(value: float) -> str:
    """Return two decimals."""
    return f"{value:.2f}"


def percent(value: float) -> str:
    """Return whole per cent."""
    return f"{value:.0%}"


def time_range(cells: Sequence[Cell]) -> str:
    """Return the median time in G with the smallest and largest."""
    times = [cell["gradient_passes"] for cell in cells]
    around = f" ({min(times):.1f}-{max(times):.1f})" if len(times) > 1 else ""
    return f"{statistics.median(times):.1f}{around}"


def overlaps(cells: Sequence[Cell], against: str, formula: str) -> list[str]:
    """Return the mean IoU with its spread, one text per sparsity."""
    return [
        spread([cell[against]["iou"][formula][f"{s:g}"] for cell in cells], decimals)
        for s in SPARSITIES
    ]


def values(cells: Sequence[Cell], against: str, measure: str) -> list[float]:
    """Return one measure of every cell."""
    return [cell[against][measure] for cell in cells]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    texts = ["| " + " | ".join(line) + " |" for line in (header, *rows)]
    return "\n".join([texts[0], "|---" * len(header) + "|", *texts[1:]]) + "\n"


def cost_table(cells: Sequence[Cell]) -> str:
    """Return time and agreement with the exact diagonal of the same samples, base setting."""
    base = [cell for cell in cells if cell["part"] == "base"]
    rows = [
        [
            label(group[0]), time_range(group),
            spread(values(group, "same_samples", "relative_error")),
            spread(values(group, "same_samples", "rank_correlation"), decimals),
            *overlaps(group, "same_samples", "h"), *overlaps(group, "same_samples", "w2h"),
            spread([cell["negative_share"] for cell in group], percent),
        ]
        for points in series(base).values()
        for group in points.values()
    ]  # fmt: skip
    exact = [cell for cell in base if "magnitude_iou" in cell]
    alone = [
        spread([cell["magnitude_iou"][f"{s:g}"] for cell in exact], decimals) for s in SPARSITIES
    ]
    rows.append(["magnitude alone", "0", *[""] * 4, *alone, ""])
    random = [decimals((1 - s) / (1 + s)) for s in SPARSITIES]
    rows.append(["random masks (expected)", "0", *[""] * 2, *random, *random, ""])
    header = ["method", "time / G", "relative error", "rank correlation", *IOUS, "negative"]
    return markdown(header, rows)


def reach_table(cells: Sequence[Cell]) -> str:
    """Return the least time at which the mean error is at most each level."""
    rows = []
    for name, points in series([cell for cell in cells if cell["part"] == "base"]).items():
        curve = {number: point(group) for number, group in points.items()}
        row = [name]
        for level in LEVELS:
            time = time_to_reach(curve.values(), level)
            numbers = [number for number, measured in curve.items() if measured[0] == time]
            note = f" ({numbers[0]})" if numbers and numbers[0] else ""
            row.append("not reached" if time is None else f"{time:.1f} G{note}")
        best = min(curve.values(), key=lambda measured: measured[1])
        rows.append([*row, f"{short(best[1])} at {best[0]:.1f} G"])
    header = ["method", *(f"error {level:g}" for level in LEVELS), "smallest error measured"]
    return markdown(header, rows)


def point(group: Sequence[Cell]) -> tuple[float, float]:
    """Return median time and mean error."""
    times = [cell["gradient_passes"] for cell in group]
    errors = values(group, "same_samples", "relative_error")
    return statistics.median(times), statistics.mean(errors)


def with_base(cells: Sequence[Cell], part: str) -> Iterator[list[Cell]]:
    """Yield by method the cells of a part and those of the base setting with the same methods."""
    methods = {label(cell) for cell in cells if cell["part"] == part}
    chosen = [c for c in cells if c["part"] in ("base", part) and label(c) in methods]
    for points in series(chosen).values():
        yield from points.values()


def samples_table(cells: Sequence[Cell]) -> str:
    """Return noise of the estimator beside the noise of the samples."""
    rows = []
    for group in with_base(cells, "samples"):
        for size in sorted({cell["samples"] for cell in group}):
            chosen = [cell for cell in group if cell["samples"] == size]
            rows.append([
                label(chosen[0]), f"{size}",
                spread(values(chosen, "same_samples", "relative_error")),
                spread(values(chosen, "many_samples", "relative_error")),
                spread(values(chosen, "many_samples", "rank_correlation"), decimals),
                *overlaps(chosen, "many_samples", "h"), *overlaps(chosen, "many_samples", "w2h"),
            ])  # fmt: skip
    errors = ["error, same samples", "error, many samples"]
    return markdown(["method", "samples", *errors, "rank correlation", *IOUS], rows)


def by_condition(group: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Yield one method's cells by warmup and temperature."""
    kinds = {(WARMUPS.index(cell["warmup"]), cell["temperature"]) for cell in group}
    for position, temperature in sorted(kinds):
        kind = (WARMUPS[position], temperature)
        yield [cell for cell in group if (cell["warmup"], cell["temperature"]) == kind]


def conditions_table(cells: Sequence[Cell]) -> str:
    """Return the noise of estimators at each warmup and temperature."""
    rows = [
        [
            label(chosen[0]), chosen[0]["warmup"], f"{chosen[0]['temperature']:g}",
            spread(values(chosen, "same_samples", "relative_error")),
            spread(values(chosen, "same_samples", "rank_correlation"), decimals),
            *overlaps(chosen, "same_samples", "h"), *overlaps(chosen, "same_samples", "w2h"),
            spread([cell["negative_share"] for cell in chosen], percent),
        ]
        for group in with_base(cells, "conditions")
        if group[0]["estimator"] != "exact_ggn"
        for chosen in by_condition(group)
    ]  # fmt: skip
    errors = ["relative error", "rank correlation"]
    return markdown(["method", "warmup", "T", *errors, *IOUS, "negative"], rows)


def target_table(cells: Sequence[Cell]) -> str:
    """Return how the exact diagonal of each warmup and temperature agrees with the base's."""
    exact = [
        cell for cell in cells
        if cell["estimator"] == "exact_ggn" and cell["part"] in ("base", "conditions")
    ]  # fmt: skip
    rows = []
    for chosen in by_condition(exact):
        against = "base" if chosen[0]["part"] == "conditions" else "same_samples"
        alone = [
            spread([cell["magnitude_iou"][f"{s:g}"] for cell in chosen], decimals)
            for s in SPARSITIES
        ]
        rows.append([
            chosen[0]["warmup"], f"{chosen[0]['temperature']:g}",
            spread(values(chosen, against, "rank_correlation"), decimals),
            *overlaps(chosen, against, "h"), *overlaps(chosen, against, "w2h"), *alone,
        ])  # fmt: skip
    alone = [f"IoU of `w^2 h / 2` with magnitude, {s:g}" for s in SPARSITIES]
    return markdown(["warmup", "T", "rank correlation", *IOUS, *alone], rows)


def write_tables(cells: Sequence[Cell], heading: str, path: Path) -> None:
    """Write the heading, the seeds and the five tables."""
    parts = {
        "Time and error": cost_table, "Time to reach an error": reach_table,
        "Number of samples": samples_table,
        "Temperature and warmup: the estimators' noise": conditions_table,
        "Temperature and warmup: the exact diagonal against the base's": target_table,
    }  # fmt: skip
    seeds = ", ".join(str(seed) for seed in sorted({cell["seed"] for cell in cells}))
    text = f"{heading}; mean ± sample standard deviation over the seeds {seeds}\n\n"
    text += "\n".join(f"## {title}\n\n{table(cells)}" for title, table in parts.items())
    write_bytes_atomically(path, text.encode())
