"""The table as LaTeX, in booktabs' style."""

from pai.reports.grid import Grid, Key, Row
from pai.reports.series import row_runs
from pai.reports.table import MISSING, remarks, shown

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}",
}  # fmt: skip


def latex(grid: Grid, caption: str, label: str) -> str:
    r"""Return a LaTeX table; it needs ``\usepackage{booktabs}``.

    References, which do not compete, stand above a line. The number of seeds is in the caption;
    cells with another number say theirs. A dagger counts collapsed layers. What Markdown says
    below the table is in comments above it.
    """
    import pandas as pd

    counts = [len(cell.values) for cell in grid.cells.values()]
    usual = max(set(counts), key=counts.count, default=0)
    body = [
        [_name(grid, row), *(_cell(grid, (row.key, column), usual) for column in grid.columns)]
        for row in grid.rows
    ]
    keys = [
        ", ".join(map(grid.key_label, group)) for group in (grid.layout.rows, grid.layout.columns)
    ]
    values = [", ".join(str(value) for value in column) for column in grid.columns]
    frame = pd.DataFrame(
        body,
        columns=pd.MultiIndex.from_tuples(
            [("", tex_text(keys[0])), *((tex_text(keys[1]), tex_text(value)) for value in values)]
        ),
    )
    text: str = frame.style.hide(axis="index").to_latex(
        hrules=True, column_format="l" + "r" * len(grid.columns), multicol_align="c",
        caption=_caption(grid, caption, usual), label=f"tab:{_label(label)}",
        position_float="centering",
    )  # fmt: skip
    comments = [f"% {' '.join(line.split())}" for line in remarks(grid)]
    return "\n".join([*comments, _ruled(text, _references(grid))])


def tex_text(text: str) -> str:
    """Return ``text`` so that LaTeX prints it as it is."""
    return "".join(_TEX.get(letter, letter) for letter in " ".join(text.split()))


def _name(grid: Grid, row: Row) -> str:
    dense = any(run.dense for run in row_runs(grid, row))
    return tex_text(row.label) + " (dense)" * dense


def _caption(grid: Grid, caption: str, usual: int) -> str:
    parts = [tex_text(caption)]
    cells = grid.cells.values()
    unless = " unless noted" if any(len(cell.values) != usual for cell in cells) else ""
    if usual > 1:
        parts.append(f"Mean and sample standard deviation over {usual} seeds{unless}.")
    else:
        parts.append(f"One seed{unless}.")
    if grid.bold:
        parts.append(
            "Bold: the best of a column and what a paired bootstrap over seeds cannot tell from it."
        )
    if _references(grid):
        parts.append("Above the line: references, which do not compete.")
    if any(cell.collapsed for cell in cells):
        parts.append(r"$\dagger k$: $k$ layers lost every weight, summed over the seeds.")
    return " ".join(parts)


def _references(grid: Grid) -> int:
    """Return how many rows to part from the others; the grid has them first."""
    references = sum(row.reference for row in grid.rows)
    return references if references < len(grid.rows) else 0


def _ruled(text: str, references: int) -> str:
    r"""Put another ``\midrule`` below the first rows of a table that has one line for each row."""
    if not references:
        return text
    lines = text.split("\n")
    lines.insert(lines.index(r"\midrule") + 1 + references, r"\midrule")
    return "\n".join(lines)


def _cell(grid: Grid, place: tuple[Key, Key], usual: int) -> str:
    cell = grid.cells.get(place)
    if cell is None:
        return MISSING
    mean, spread = shown(grid, cell)
    text = rf"\textbf{{{mean}}}" if place in grid.bold else mean
    if spread:
        text += rf" {{\scriptsize $\pm$ {spread}}}"
    if len(cell.values) != usual:
        text += rf" {{\scriptsize ($n={len(cell.values)}$)}}"
    if cell.collapsed:  # no width, so that the numbers of a column stay in line
        text += rf"\rlap{{\scriptsize$^{{\dagger {cell.collapsed}}}$}}"
    return text


def _label(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
