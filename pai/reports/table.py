"""Tables as Markdown and CSV."""

from typing import TYPE_CHECKING, Any

from pai.reports.collect import Collection, LeftOut
from pai.reports.counted import Cell
from pai.reports.grid import Grid, Key
from pai.reports.numbers import share
from pai.reports.reached import missed

if TYPE_CHECKING:
    import pandas as pd

MISSING = "missing"


def markdown(grid: Grid) -> str:
    """Return a Markdown table: mean, sample standard deviation, number of seeds.

    Accuracies are in percent. The best cell of a column and those tied with it are bold; layers
    that lost every weight are counted, summed over the seeds.
    """
    title = ", ".join(map(grid.key_label, grid.layout.rows))
    labels = [markdown_text(grid.column_label(column)) for column in grid.columns]
    lines = [
        f"| {markdown_text(title)} | " + " | ".join(labels) + " |",
        "|---" * (len(labels) + 1) + "|",
    ]
    for row in grid.rows:
        texts = [_markdown_cell(grid, (row.key, column)) for column in grid.columns]
        lines.append(f"| {markdown_code(row.label)} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def notes(grid: Grid) -> list[str]:
    """Return what has to be known to read the table: what is not bold, whose sparsity is another.

    And what the grid says of schedules, revisions and machines.
    """
    lines = [*grid.notes, *_bold_notes(grid)]
    labels = {row.key: row.label for row in grid.rows}
    for (row, column), cell in grid.cells.items():
        if cell.reached is not None and any(missed(run) for run in cell.runs.values()):
            lines.append(
                f"not the sparsity asked for: {labels[row]}, {grid.column_label(column)}: "
                f"{share(cell.reached, 6)} reached"
            )
    return lines


def _bold_notes(grid: Grid) -> list[str]:
    few = "no two rows have two seeds in common"
    if grid.columns and not grid.bold:
        return [f"nothing is bold: {few}"]
    lines = []
    for column, found in grid.standings.items():
        unknown = [row.label for row in grid.rows if row.key in found.unknown]
        if unknown and found.best:
            lines.append(
                f"{grid.column_label(column)}: not compared, as they share fewer than two seeds "
                f"with the best row: {', '.join(unknown)}"
            )
        elif unknown:
            lines.append(f"{grid.column_label(column)}: nothing is bold, as {few}")
    return lines


def remarks(grid: Grid) -> list[str]:
    """Return what stands below the table: notes, what was kept out, what is missing."""
    lines = notes(grid)
    lines += [f"left out: {out.folder}: {out.reason}" for out in grid.left_out]
    for cell in grid.missing:
        seeds = ", ".join(str(seed) for seed in cell.seeds)
        lines.append(f"missing: {cell.row}, {cell.column}: seed {seeds}")
    return lines


def cell_frame(grid: Grid) -> "pd.DataFrame":
    """Return one line per cell, present or not, with exact numbers: fractions, not percent."""
    import pandas as pd

    lines = []
    for row in grid.rows:
        for column in grid.columns:
            cell = grid.cells.get((row.key, column))
            lines.append(
                {"row": row.label}
                | dict(zip(grid.layout.columns, column))
                | {"metric": grid.layout.metric, "reference": row.reference}
                | _numbers(cell)
                | {
                    "bold": (row.key, column) in grid.bold,
                    "missing_seeds": _listed(
                        s for s in grid.seeds if cell is None or s not in cell.values
                    ),
                }
            )
    return pd.DataFrame(lines)


def run_frame(collection: Collection, grid: Grid | None) -> "pd.DataFrame":
    """Return one line per run with every key of its record, and in ``left_out`` why it is not used.

    Records that cannot be read have a line too.
    """
    import pandas as pd

    outs = collection.unreadable
    if grid is not None:
        told = {out.folder for out in grid.left_out}
        used = {run.folder for cell in grid.cells.values() for run in cell.runs.values()}
        outs = grid.left_out + tuple(
            LeftOut(run.folder, "not selected by --where", run)
            for run in collection.runs
            if run.folder not in told | used
        )
    reasons = pd.DataFrame(
        [{"run_dir": str(out.folder), "left_out": out.reason} for out in outs],
        columns=["run_dir", "left_out"], dtype="str",
    )  # fmt: skip
    if not collection.runs:
        return reasons
    return collection.frame().merge(reasons, on="run_dir", how="outer").sort_values("run_dir")


def _numbers(cell: Cell | None) -> dict[str, Any]:
    if cell is None:
        return {"n": 0}
    values = cell.values.values()
    return {
        "n": len(values), "mean": cell.mean, "std": cell.spread, "min": min(values),
        "max": max(values), "sparsity_reached": cell.reached,
        "seeds": _listed(cell.values), "values": _listed(values),
        "collapsed_layers": cell.collapsed,
    }  # fmt: skip


def _listed(values: Any) -> str:
    return " ".join(repr(value) for value in values)


def shown(grid: Grid, cell: Cell) -> tuple[str, str]:
    """Return mean and spread as they are written."""
    kind = grid.layout.kind
    spread = "" if cell.spread is None else f"{kind.scale * cell.spread:.{kind.digits}f}"
    return f"{kind.scale * cell.mean:z.{kind.digits}f}", spread


def _markdown_cell(grid: Grid, place: tuple[Key, Key]) -> str:
    cell = grid.cells.get(place)
    if cell is None:
        return MISSING
    mean, spread = shown(grid, cell)
    text = f"{mean} ± {spread}" if spread else mean
    if place in grid.bold:
        text = f"**{text}**"
    note = f", {cell.collapsed} collapsed layer{'s' * (cell.collapsed > 1)}" * bool(cell.collapsed)
    return f"{text} (n={len(cell.values)}{note})"


def markdown_text(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is, on one line, also within a table."""
    special = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_[]|#"})
    plain = " ".join(str(text).split()).translate(special)
    return plain.replace("<", "&lt;").replace(">", "&gt;")


def markdown_code(text: str) -> str:
    """Return ``text`` as a code span that fits into a table."""
    plain = " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"
