"""Tables, figures and reports as files; each is written to a temporary name and renamed."""

import io
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pai.errors import ConfigError
from pai.records import write_bytes_atomically
from pai.reports.cells import no_formula
from pai.reports.collect import Collection
from pai.reports.consistency import check_keys
from pai.reports.extra import require
from pai.reports.grid import Grid, Layout, build_grid
from pai.reports.latex import latex
from pai.reports.table import cell_frame, markdown, remarks, run_frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KINDS = ("png", "pdf")


def write_tables(collection: Collection, grid: Grid, out: Path) -> None:
    """Write ``table.md``, ``table.tex``, ``table.csv`` (cells) and ``runs.csv`` into ``out``."""
    require("jinja2")
    name = out.resolve().name
    caption = f"{grid.layout.metric.replace('_', ' ').capitalize()}{_unit(grid.layout)}, {name}."
    lines = [markdown(grid), "", *(f"- {line}" for line in remarks(grid))]
    _write(out / "table.md", "\n".join(lines) + "\n")
    _write(out / "table.tex", latex(grid, caption, name))
    _write(out / "table.csv", _csv(cell_frame(grid)))
    _write_runs(collection, grid, out)


def write_png(figure: "Figure", path: Path) -> None:
    """Write a figure of a script as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    write_bytes_atomically(path, content.getvalue())


def write_figures(collection: Collection, layout: Layout, out: Path) -> dict[str, bytes]:
    """Write every figure the runs have data for as PNG and PDF; return the PNGs by name.

    Older ones that they no longer have data for are removed.

    Raises:
        ConfigError: the runs do not belong into one figure, or matplotlib is not installed.
    """
    require("matplotlib")
    from pai.reports.figures import NAMES, draw_all, image

    images = {}
    for name, figure in draw_all(collection, layout).items():
        for kind in KINDS:
            _write(out / f"{name}.{kind}", image(figure, kind))
        images[name] = (out / f"{name}.png").read_bytes()
    _remove(out, set(NAMES) - images.keys(), KINDS)
    return images


def _remove(out: Path, names: Iterable[str], kinds: Iterable[str]) -> None:
    for name, kind in itertools.product(names, kinds):
        if (path := out / f"{name}.{kind}").is_file():
            path.unlink()


def write_report(collection: Collection, layout: Layout, out: Path, title: str) -> Grid | None:
    """Write tables, figures, ``report.html`` and ``report.md`` into ``out``.

    Runs that do not make one table still have their report, which says why, and ``runs.csv``; what
    an earlier report left there of table and figures is removed, lest a paper goes on showing it.

    Returns:
        The table, or ``None`` if there is none.

    Raises:
        ConfigError: there are no runs, ``layout`` asks for what none of them has, or the extra
            ``reports`` is not installed.
    """
    require("matplotlib", "jinja2")
    from pai.reports.figures import NAMES
    from pai.reports.report import Report, html, markdown_report

    keys = (*layout.rows, *layout.columns, *layout.where)
    check_keys(collection.runs, keys, layout.metric)
    try:
        grid = build_grid(collection, layout)
        images = write_figures(collection, layout, out)
    except ConfigError as error:
        report = Report(title, collection, None, str(error))
        _remove(out, ("table",), ("md", "tex", "csv"))
        _remove(out, NAMES, KINDS)
        _write_runs(collection, None, out)
    else:
        links = {name: f"{name}.png" for name in images}
        report = Report(title, collection, grid, None, images, links)
        write_tables(collection, grid, out)
    _write(out / "report.html", html(report))
    _write(out / "report.md", markdown_report(report))
    return report.grid


def _write_runs(collection: Collection, grid: Grid | None, out: Path) -> None:
    _write(out / "runs.csv", _csv(run_frame(collection, grid)))


def _csv(frame: "pd.DataFrame") -> str:
    return str(frame.rename(columns=no_formula).map(no_formula).to_csv(index=False))


def _unit(layout: Layout) -> str:
    return " in percent" if layout.kind.scale == 100 else ""


def _write(path: Path, content: str | bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ConfigError(f"out: cannot write {path}: {error.strerror or error}") from error
