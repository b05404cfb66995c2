"""One file that shows a whole sweep: tables, figures, runs, environments, configuration."""

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pai.identity import flatten
from pai.reports.collect import Collection, LeftOut, Run
from pai.reports.grid import Grid
from pai.reports.numbers import share
from pai.reports.table import MISSING, markdown, markdown_code, markdown_text, notes, shown

CAPTIONS = {
    "accuracy_against_sparsity": "Metric against sparsity, mean and band of one sample standard "
    "deviation over the seeds.",
    "layer_density": "Density of each layer after pruning, mean over the seeds.",
    "score_histograms": "Magnitude of the scores of one run per row, all layers together.",
    "accuracy_against_scoring_time": "Metric against the time that scoring took.",
}
_MOST_VALUES = 12


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Attributes:
        title: of the page.
        collection: the runs.
        grid: the table, or ``None`` if the runs do not make one.
        problem: why they do not.
        figures: PNG images by name, embedded into HTML.
        links: the files that Markdown shows instead, by the same names.
    """

    title: str
    collection: Collection
    grid: Grid | None
    problem: str | None = None
    figures: Mapping[str, bytes] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)


def html(report: Report) -> str:
    """Return a self-contained page: no scripts, nothing loaded from elsewhere."""
    return _render("report.html.j2", report)


def markdown_report(report: Report) -> str:
    """Return the same as Markdown; the figures are links to files."""
    return _render("report.md.j2", report)


def _render(template: str, report: Report) -> str:
    page = Environment(
        loader=PackageLoader("pai.reports"), autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    page.filters |= {"text": markdown_text, "code": markdown_code, "share": share}
    collection, grid = report.collection, report.grid
    left_out = grid.left_out if grid is not None else collection.unreadable
    same, varied = _configuration(collection.runs)
    text: str = page.get_template(template).render(
        title=report.title,
        problem=report.problem,
        grid=grid,
        cells={} if grid is None else _texts(grid),
        notes=[] if grid is None else notes(grid),
        table="" if grid is None else markdown(grid),
        missing_text=MISSING,
        left_out=left_out,
        status=Counter(str(run.record["status"]) for run in collection.runs).most_common(),
        unreadable=collection.unreadable,
        runs=[_line(run, grid, left_out) for run in collection.runs],
        environments=_environments(collection.runs),
        same=same,
        varied=varied,
        captions=CAPTIONS,
        figures={name: base64.b64encode(data).decode() for name, data in report.figures.items()},
        links=report.links,
    )
    return text


def _texts(grid: Grid) -> dict[Any, dict[str, Any]]:
    return {
        place: dict(zip(("mean", "spread"), shown(grid, cell)))
        | {"n": len(cell.values), "collapsed": cell.collapsed, "bold": place in grid.bold}
        for place, cell in grid.cells.items()
    }


def _line(run: Run, grid: Grid | None, left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """Return what the list of runs shows of one."""
    reason = next((out.reason for out in left_out if out.folder == run.folder), "")
    value = run.metric(grid.layout.metric if grid is not None else "test_accuracy")
    times = run.part("timing_s")
    cached = run.part("scoring").get("cached")
    return {
        "folder": str(run.folder),
        "status": str(run.record["status"]),
        "reason": reason or " ".join(str(run.record.get("error") or "").split()),
        "seed": run.seed,
        "sparsity": run.part("mask").get("sparsity"),
        "metric": value,
        "score_s": times.get("score"),
        "total_s": times.get("total"),
        "cached": "" if cached is None else "yes" if cached else "no",
    }


def _environments(runs: Sequence[Run]) -> list[tuple[int, list[tuple[str, str]]]]:
    """Return the different environments with the number of runs that were at work there."""
    found = Counter(
        text
        for run in runs
        for text in dict.fromkeys(
            json.dumps(flatten(one), sort_keys=True) for one in run.environments
        )
    )
    return [
        (count, [(key, _plain(value)) for key, value in json.loads(text).items()])
        for text, count in found.most_common()
    ]


def _configuration(
    runs: Sequence[Run],
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the keys that all runs share with their value, and the others with their values."""
    parts = ("choices", "config")
    leaves = [{k: v for part in parts for k, v in flatten(run.part(part)).items()} for run in runs]
    same, varied = [], []
    for key in dict.fromkeys(key for found in leaves for key in found):
        values = Counter(found.get(key, "absent") for found in leaves)
        if len(values) == 1:
            same.append((key, _plain(next(iter(values)))))
        else:
            told = [f"{_plain(v)} ({count})" for v, count in values.most_common(_MOST_VALUES)]
            varied.append((key, ", ".join(told) + ", ..." * (len(values) > _MOST_VALUES)))
    return same, varied


def _plain(text: str) -> str:
    return text[1:-1] if text.startswith('"') else text
